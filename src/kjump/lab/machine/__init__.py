"""The parts of the lab's virtual machines: kernels, disks, QEMU, the channel to the guest, an installed system."""
