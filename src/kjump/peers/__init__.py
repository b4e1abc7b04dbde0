"""Resident second kernels, from the first kernel's side: booted once, switched to any number of times."""

from pathlib import Path

FOLDER = Path("/run/kjump")
"""The folder in which the first kernel records its resident peers."""
