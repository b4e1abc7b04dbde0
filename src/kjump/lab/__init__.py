"""kjump.lab"""
