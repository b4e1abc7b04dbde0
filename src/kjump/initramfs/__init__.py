"""The small root file system that boot kernel, B and C run: what is in it, and how it is built."""
