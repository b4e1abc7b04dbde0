"""What runs as PID 1 in the initramfs (`init`), and the three roles: boot, second, restorer."""
