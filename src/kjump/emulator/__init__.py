"""The emulated machine: the same Plans as on the real kernel, on a CPU that unicorn emulates; needs no privileges.

Only this package imports unicorn (and capstone). The kernel's half of a jump is ours: `linux.py` loads, the
assembly in control64.S and control32.S jumps and comes back.
"""
