"""What virtual machines of the lab consist of: kernels, disks, QEMU, the channel to the guest, an installed system."""
