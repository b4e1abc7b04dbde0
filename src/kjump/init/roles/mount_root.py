"""An ordinary boot: find the root file system, mount it as the kernel itself would, and hand over to its init.

Options are the kernel's own, see Documentation/admin-guide/kernel-parameters: root=, rootfstype=, rootflags=, ro, rw,
rootwait, rootdelay=, init=. Of the kernel's initramfs-less boot this differs in three points: the type is taken from
the file system's signature, rootflags= may hold what mount(8) translates (noatime, ...), and rootdelay= is how long
to wait at most.
"""

from __future__ import annotations

import errno

from kjump.errors import HostError, TargetError
from kjump.host import root
from kjump.init.look_for import patience
from kjump.init.system import Role, mount, switch_root, uptime, wait_for_device
from kjump.target import identify

_ROOT = "/newroot"
_READ_ONLY = 1
_GENERIC = {
    "defaults": (0, 0),
    "ro": (_READ_ONLY, 0),
    "rw": (0, _READ_ONLY),
    "nosuid": (2, 0),
    "suid": (0, 2),
    "nodev": (4, 0),
    "dev": (0, 4),
    "noexec": (8, 0),
    "exec": (0, 8),
    "sync": (16, 0),
    "async": (0, 16),
    "dirsync": (128, 0),
    "noatime": (1024, 0),
    "atime": (0, 1024),
    "nodiratime": (2048, 0),
    "diratime": (0, 2048),
    "relatime": (1 << 21, 0),
    "norelatime": (0, 1 << 21),
    "strictatime": (1 << 24, 0),
    "lazytime": (1 << 25, 0),
    "nolazytime": (0, 1 << 25),
}
"""Options that are flags of mount(2) (include/uapi/linux/mount.h), not of a file system: bits to set, bits to clear."""
_FOR_USER_SPACE = frozenset({"_netdev", "nofail", "auto", "noauto", "user", "nouser"})
_OTHER_TYPE = (errno.EINVAL, errno.ENODEV)
_WRITE_PROTECTED = (errno.EACCES, errno.EROFS)
_NO_FILE_SYSTEM = {
    "crypto_LUKS": "an encrypted volume, which this initramfs does not unlock",
    "swap": "swap space",
    "swsuspend": "swap space with an image of the kernel's own hibernation",
    "jbd": "the journal of another file system",
}


def boot_as_usual(role: Role) -> None:
    """Mount the root file system and hand over; HostError says what is not there, or fails."""
    name = role.options.get("root", "")
    if not name:
        raise HostError("no root= on the kernel command line: there is nothing to boot")
    device = _wait(role, name)
    called = device if device == name else f"{device} ({name})"
    flags, data = mount_flags(role.options)
    _mount(device, called, kinds(device, role.options.get("rootfstype", "")), flags, data)
    role.status.send("root-mounted", uptime=uptime())
    role.status.close()
    init = role.options.get("init") or "/sbin/init"
    try:
        switch_root(_ROOT, init)
    except OSError as error:
        raise HostError(f"{init} on the root device {called} cannot be started: {error.strerror}") from None


def _wait(role: Role, name: str) -> str:
    """Return the root device; with `rootwait` however long it takes. HostError when it does not appear."""
    try:
        device = wait_for_device(name, patience(role))
        if device is None and "rootwait" in role.options:
            role.console.line(f"kjump: waiting for the root device {name} (rootwait)")
        while device is None and "rootwait" in role.options:
            device = wait_for_device(name, 1.0)
    except TargetError as error:
        raise HostError(f"the root device cannot be told: {error}") from None
    if device is None:
        raise HostError(f"the root device {name} does not appear")
    return device


def kinds(device: str, wanted: str) -> tuple[str, ...]:
    """Return the types to mount `device` as, in this order: `wanted` (separated by commas), else by its signature.

    HostError when it carries what is no file system. Of an unknown one all types are tried that the kernel has.
    """
    if wanted:
        return tuple(filter(None, wanted.split(",")))
    found = identify.tags_of(device)
    if found is None:
        return _known_types() or ("ext4",)
    if found.kind in _NO_FILE_SYSTEM:
        raise HostError(f"the root device {device} carries {_NO_FILE_SYSTEM[found.kind]}, not a file system")
    # The driver of ext4 takes the older ones too, and kernels seldom have another for them.
    return ("ext4", found.kind) if found.kind in ("ext2", "ext3") else (found.kind,)


def _known_types() -> tuple[str, ...]:
    try:
        lines = root.at("/proc/filesystems").read_text().splitlines()
    except OSError:
        return ()
    return tuple(line.strip() for line in lines if not line.startswith("nodev"))


def mount_flags(options: dict[str, str]) -> tuple[int, str]:
    """Return flags and data for mount(2): read-only unless `rw` is the last of `ro` and `rw`, as in the kernel."""
    last = [name for name in options if name in ("ro", "rw")][-1:]
    flags, rest = (0 if last == ["rw"] else _READ_ONLY), []
    for word in filter(None, options.get("rootflags", "").split(",")):
        if word in _GENERIC:
            to_set, to_clear = _GENERIC[word]
            flags = flags & ~to_clear | to_set
        elif word not in _FOR_USER_SPACE and not word.lower().startswith("x-"):
            rest.append(word)
    return flags, ",".join(rest)


def _mount(device: str, called: str, types: tuple[str, ...], flags: int, data: str) -> None:
    """Mount `device` as the first of `types` that will do; read-only when it cannot be written to. HostError."""
    failure: OSError | None = None
    for kind in types:
        for tried in (flags, flags | _READ_ONLY):
            try:
                mount(device, _ROOT, kind, tried, data)
                return
            except OSError as error:
                failure = error
            if failure.errno not in _WRITE_PROTECTED:
                break
        if failure is not None and failure.errno not in _OTHER_TYPE:
            break
    why = failure.strerror if failure else "no type to try"
    raise HostError(f"the root device {called} cannot be mounted as {' or '.join(types)}: {why}")
