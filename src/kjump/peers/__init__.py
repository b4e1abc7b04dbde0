"""Second kernels that stay: A's side of booting them once and switching to and from them as often as wanted."""

from pathlib import Path

FOLDER = Path("/run/kjump")
"""Where A remembers its resident peers."""
