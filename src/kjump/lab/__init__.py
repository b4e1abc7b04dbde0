"""The laboratory: kernels built from source, QEMU machines, scenes of several boots on one disk.

Everything that kjump does to a machine is tried here first, and nothing here touches the machine it runs on.
"""
