"""What runs inside a lab machine: its PID 1, work that must not be disturbed, and measurements."""
