"""Save a parked kernel to a target (in B), restore it from there (in C), and the image itself."""

DEFAULT_LEVEL = -2
"""The zstd level of images."""
DEFAULT_WATCHDOG = 30
"""Seconds; B feeds it four times as often."""
