"""Where an image is kept: block devices, files, and the identities of file systems that must not change meanwhile."""
