"""The initramfs of the boot kernel, the second kernel and the restoring kernel: its contents and how it is built."""
