"""Programs in physical mode: C functions, flat binaries and BIOS services behind a gate, here or emulated."""
