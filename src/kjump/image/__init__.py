"""The image: a saved first kernel as a vmcore in a seekable zstd stream; written, checked, restored."""

DEFAULT_LEVEL = -2
"""The zstd level of images."""
