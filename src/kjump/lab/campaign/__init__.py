"""The fault campaign: everything that may go wrong in a hibernation, provoked for real."""
