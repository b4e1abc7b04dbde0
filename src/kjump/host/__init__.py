"""Interfaces to the running kernel: procfs, sysfs, kcore, locked memory, hugetlbfs, libc."""
