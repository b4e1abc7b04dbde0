"""kjump: leave a running Linux, run something else on the bare machine, and come back."""

__version__ = "0.1.0"
