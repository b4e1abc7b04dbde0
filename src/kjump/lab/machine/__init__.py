"""Machines of the lab: kernels built from source, QEMU, disks, scenes of several boots on one disk."""
