"""Save a parked kernel to a target (in B), restore it from there (in C), and the image itself."""
