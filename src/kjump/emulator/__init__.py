"""The emulated machine: runs the same Plans as a real kernel, on a CPU that unicorn emulates, without privileges.

Only this package imports unicorn (and capstone). It implements the kernel's half of a jump: `linux.py` loads, and the
assembly in control64.S and control32.S jumps and comes back.
"""
