"""The running kernel as the first kernel's user space sees it: procfs, sysfs, kcore, locked memory, hugetlbfs, libc."""
