"""kjump.hibernate"""
