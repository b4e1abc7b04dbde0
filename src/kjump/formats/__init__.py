"""Formats: bytes <-> values, one module for each; nothing here opens a file or makes a system call.

Whatever the bytes, a reader returns a value or raises `kjump.errors.FormatError`, and takes no more
memory than the bytes it was given account for.
"""
