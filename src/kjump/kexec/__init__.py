"""kjump.kexec"""
