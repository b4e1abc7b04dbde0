"""Save a parked kernel to a target (in B), restore it from there (in C), and the image itself."""

DEFAULT_LEVEL = -2
"""The zstd level of images."""
DEFAULT_WATCHDOG = 30
"""Seconds after which a B that has a job and does not feed the machine's watchdog is brought back; it feeds it four
times as often."""
