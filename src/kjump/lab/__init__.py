"""The laboratory: virtual machines, and demonstrations and faults that are tried in them.

A module of this package is a demonstration (`hibernation`, `snapshot`, `rollback`, `switching`, `calling`, `big_image`)
or what several of them need; `machine` has what runs on this host, `guest` what runs inside, `campaign` the faults.
Everything that kjump does to a machine is tried here first, and nothing here touches the machine it runs on.
"""
