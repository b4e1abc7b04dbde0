"""Hibernation, snapshots, roll-back and resume from the first kernel's side."""

DEFAULT_WATCHDOG = 30
"""The machine's watchdog timeout in seconds while a second kernel has a job: a kernel that hangs so long is left for
the first one. The job feeds the watchdog four times in that time."""
