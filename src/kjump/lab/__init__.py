"""The laboratory: virtual machines, and demonstrations and faults that are tried in them.

A module of this package is a demonstration (`hibernation`, `snapshot`, `rollback`, `switching`, `calling`, `big_image`)
or shared by several of them. `machine` has the code that runs on this host, `guest` the code that runs in the virtual
machine, `campaign` the faults. Nothing here jumps or hibernates on the host.
"""
