"""The fault campaign: provokes the faults of a hibernation in virtual machines."""
