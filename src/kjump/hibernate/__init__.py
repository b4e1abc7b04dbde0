"""Hibernation, snapshots, roll-back and resume from the first kernel's side."""

DEFAULT_WATCHDOG = 30
"""Seconds after which a second kernel that has a job and does not feed the machine's watchdog is brought back; it is
fed four times as often."""
