"""Programs in physical mode: C functions, flat binaries and BIOS services, on this machine or an emulated one."""
