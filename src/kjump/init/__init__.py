"""PID 1 of the initramfs: its roles (`roles`), the jobs of a second kernel (`jobs`), and what they need of a system."""
