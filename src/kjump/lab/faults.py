"""The fault campaign."""

WATCHDOG = ("-device", "i6300esb", "-action", "watchdog=inject-nmi")
"""QEMU's arguments for a watchdog whose expiry is an NMI."""
