"""kjump.formats"""
