"""kjump.initramfs"""
