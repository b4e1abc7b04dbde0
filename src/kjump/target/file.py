"""Target files: an ordinary file on a mounted ext4 whose blocks keep an image.

B, C and a boot never mount the file system; they reach the file's blocks by their numbers on the device, as the
kernel does with a swap file and `resume_offset=`. That is sound only while those blocks hold nothing but the file's
contents, as they are, and stay where they are:

- all of the file is in written extents, so nothing about it changes when its blocks do;
- nothing lies between its blocks and the disk: no encryption, compression, journalled data, no device that maps blocks;
- it is looked up again at each hibernation, and must still begin where the boot loader was told.

The kernel guards a swap file in use. A target file is guarded while it matters, from the write of the cookie to the
jump: it stays open (so its blocks are nobody else's even if it is removed) and under a write lease (so whoever would
truncate or defragment it waits). It is not made immutable: the kernel would refuse our own write too, and a file that
has moved between two hibernations is noticed. What another system does to it while the machine is off changes the
file system's identity, and the image is refused.

Linux A writes through the file (recent kernels forbid writing to a mounted device), directly, and then looks on
the device whether it is there.
"""

from __future__ import annotations

import contextlib
import fcntl
import mmap
import os
import signal
from pathlib import Path

from kjump.errors import FormatError, TargetError
from kjump.formats import extentmap, fiemap
from kjump.formats.superblock import SUPERBLOCK_SIZE, State
from kjump.host import root
from kjump.ranges import Range, align_up
from kjump.target import disks
from kjump.target.device import Place, Target
from kjump.target.disks import FdDisk

BLOCK = extentmap.BLOCK
MOUNTINFO = Path("/proc/self/mountinfo")
_AT_A_TIME = 256
_CHUNK = 1 << 20
_START_OF_DEVICE = 0x11000
"""Where superblocks are; a file's block there would be taken for a change of the file system."""

_MIDDLEMEN = {
    "/virtual/block/dm-": "device mapper (LVM, encryption, ...)",
    "/virtual/block/md": "software RAID",
    "/virtual/block/loop": "a loop device",
    "/virtual/block/nbd": "a network block device",
    "/virtual/block/zram": "memory (zram)",
    "/virtual/block/": "a virtual block device",
    "/devices/rbd/": "a network block device",
    "/nvme-fabrics/": "a disk over the network (NVMe over fabrics)",
    "/session": "a disk over the network (iSCSI)",
}
"""What in a device's place in /sys shows that its blocks are not those of a disk in this machine."""


class FileTarget(Target):
    """A target file as the system that has its file system mounted sees it; `place` is where others find it."""

    def __init__(self, path: str | Path) -> None:
        """Open the file; TargetError when it, or where it lies, is not fit to be a target."""
        self.path = str(path)
        self.extents = ()
        try:
            fd = os.open(self.path, os.O_RDWR | os.O_CLOEXEC)
        except OSError as error:
            raise TargetError(f"target {self.path} cannot be opened: {error.strerror}") from None
        try:
            self.place = _locate(fd, self.path)
            # Only now: file systems that refuse direct access at all are refused by name before.
            fcntl.fcntl(fd, fcntl.F_SETFL, fcntl.fcntl(fd, fcntl.F_GETFL) | os.O_DIRECT)
        except BaseException:
            os.close(fd)
            raise
        self._fd = fd
        self.disk = FdDisk(fd)
        self.capacity = sum(e.size for e in self.place.extents)

    @property
    def first_block(self) -> int:
        """The number of its first block on the device, in units of 4096 bytes, as `resume_offset=` counts."""
        return self.place.extents[0].start // BLOCK

    def refuse_if_it_carries_something(self) -> None:
        """Raise TargetError unless `create` made this file, and it is still where it was then."""
        make = "make it with `kjump target create`"
        try:
            superblock = self.read_superblock()
            extent_map = self.read(SUPERBLOCK_SIZE, min(superblock.map_length, extentmap.MAX_LENGTH))
            then = extentmap.unpack(extent_map, superblock.cookie)
        except FormatError:
            raise TargetError(f"{self.path} is a file that holds something else, not a target: {make}") from None
        if then[0].start != self.place.extents[0].start:
            raise TargetError(
                f"{self.path} has moved on its device since it was made (block {then[0].start // BLOCK} -> "
                f"{self.first_block}): remove it, {make} again, and give the kernel its new options"
            )

    def hold(self) -> None:
        """Take a lease, for which nobody else may have it open, and look anew where it is; TargetError otherwise."""
        try:
            fcntl.fcntl(self._fd, fcntl.F_SETSIG, signal.SIGURG)  # which is ignored, when somebody wants it back
            fcntl.fcntl(self._fd, fcntl.F_SETLEASE, fcntl.F_WRLCK)
        except OSError as error:
            raise TargetError(f"{self.path} is open in another program, or cannot be kept: {error.strerror}") from None
        self.place = _locate(self._fd, self.path)

    def check_on_device(self) -> None:
        """Raise TargetError unless the device shows at the file's first block what was written to the file."""
        with Target(self.place.device, writable=False, extents=self.place.extents) as device:
            length = SUPERBLOCK_SIZE + extentmap.length_for(len(self.place.extents))
            if device.read(0, length) != self.read(0, length):
                raise TargetError(f"what is written to {self.path} does not appear on {self.place.device}")


def open_for_image(path: str) -> Target:
    """Open what a user named as a target, a block device or a file, for writing; TargetError when it cannot be one."""
    try:
        regular = disks.current().is_file(path)
    except OSError as error:
        raise TargetError(f"target {path} cannot be opened: {error.strerror}") from None
    return FileTarget(path) if regular else Target(path, writable=True)


def create(path: str, size: int) -> FileTarget:
    """Make a target file of `size` bytes (rounded up to whole blocks), all of it written; return it open.

    TargetError when the file exists, there is no room, or its file system or device cannot keep a target; no file
    is left behind then.
    """
    size = align_up(size, BLOCK)
    if size < 16 * BLOCK:
        raise TargetError(f"a target of {size} bytes is too small: an image takes megabytes")
    try:
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise TargetError(f"cannot make {path}: {error.strerror}") from None
    try:
        _device_of(fd, path)
        os.posix_fallocate(fd, 0, size)
        _write_zeros(path, size)
        target = FileTarget(path)
        target.write_fresh(State.EMPTY, 0)
        target.check_on_device()
    except BaseException as error:
        with contextlib.suppress(OSError):
            Path(path).unlink()
        if isinstance(error, OSError):
            raise TargetError(f"cannot make {path} of {size >> 20} MiB: {error.strerror}") from None
        raise
    finally:
        os.close(fd)
    return target


def _write_zeros(path: str, size: int) -> None:
    """Write every block: what is only allocated stays marked as unwritten, and would read as zeros later."""
    fd = os.open(path, os.O_WRONLY | os.O_DIRECT | os.O_CLOEXEC)
    try:
        zeros = mmap.mmap(-1, _CHUNK)
        at = 0
        while at < size:
            at += os.pwritev(fd, [memoryview(zeros)[: min(_CHUNK, size - at)]], at)
        os.fsync(fd)
    finally:
        os.close(fd)
    folder = os.open(Path(path).absolute().parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def _locate(fd: int, path: str) -> Place:
    """Return where the file lies; TargetError with the reason when it cannot be a target."""
    device = _device_of(fd, path)
    size = os.fstat(fd).st_size
    if size % BLOCK or not size:
        raise TargetError(f"{path} has {size} bytes, not a multiple of {BLOCK}: make it with `kjump target create`")
    attributes = fiemap.attributes_against(_attributes(fd, path))
    if attributes:
        raise TargetError(f"{path} is {attributes}: its blocks must hold its contents as they are, and be writable")
    extents = join(_extents(fd, path), size, path)
    if any(e.start < _START_OF_DEVICE for e in extents):
        raise TargetError(f"{path} lies among the first blocks of {device}: make another")
    try:
        extentmap.pack(extents, bytes(16))
    except FormatError as error:
        raise TargetError(f"{path} lies in {len(extents)} pieces and cannot be a target: {error}") from None
    return Place(device, extents)


def _attributes(fd: int, path: str) -> int:
    argument = bytearray(8)
    try:
        fcntl.ioctl(fd, fiemap.GETFLAGS_REQUEST, argument)
    except OSError as error:
        raise TargetError(f"the attributes of {path} cannot be read: {error.strerror}") from None
    return int.from_bytes(argument[:4], "little")


def _extents(fd: int, path: str) -> list[fiemap.MappedExtent]:
    found: list[fiemap.MappedExtent] = []
    while not found or not found[-1].last:
        argument = fiemap.request(found[-1].logical + found[-1].length if found else 0, _AT_A_TIME)
        try:
            fcntl.ioctl(fd, fiemap.FIEMAP_REQUEST, argument)
        except OSError as error:
            raise TargetError(f"where {path} lies cannot be told: {error.strerror}") from None
        more = fiemap.answer(argument)
        if not more:
            break
        found += more
    return found


def join(extents: list[fiemap.MappedExtent], size: int, path: str) -> tuple[Range, ...]:
    """Return the byte ranges of the device that hold the `size` bytes of the file `path`, joined where they touch.

    TargetError when some of it is a hole, or in an extent that must not be written from outside.
    """
    ranges: list[Range] = []
    at = 0
    for extent in extents:
        if at >= size:
            break
        if extent.logical != at:
            raise TargetError(f"{path} has a hole at byte {at}: make it with `kjump target create`")
        if extent.unfit:
            raise TargetError(f"{path} is {extent.unfit} at byte {at}: make it with `kjump target create`")
        length = min(extent.length, size - at)
        if ranges and ranges[-1].end == extent.physical:
            ranges[-1] = Range(ranges[-1].start, extent.physical + length)
        else:
            ranges.append(Range.of_size(extent.physical, length))
        at += length
    if at < size:
        raise TargetError(f"{path} has a hole at byte {at}: make it with `kjump target create`")
    return tuple(ranges)


def _device_of(fd: int, path: str) -> str:
    """Return the block device that holds the file, which must be a disk or partition with ext4."""
    number = os.fstat(fd).st_dev
    name = f"{os.major(number)}:{os.minor(number)}"
    kind, options = _mount_of(name, root.at(MOUNTINFO).read_text())
    if kind != "ext4":
        raise TargetError(f"{path} is on {kind or 'an unknown file system'}: a target file must be on ext4")
    if "data=journal" in options:
        raise TargetError(f"{path} is on an ext4 with data=journal, which writes through its journal: mount it without")
    place = os.path.realpath(f"/sys/dev/block/{name}")
    for words, what in _MIDDLEMEN.items():
        if words in place:
            raise TargetError(f"{path} is on {what}, {Path(place).name}: a target file must be on a disk or partition")
    if not os.path.exists(place):  # noqa: PTH110
        raise TargetError(f"{path} is on device {name}, which is not in /sys")
    return "/dev/" + Path(place).name.replace("!", "/")


def _mount_of(number: str, mountinfo: str) -> tuple[str, list[str]]:
    """Return type and options of the file system on device `number` (major:minor); see proc(5) for the fields."""
    for line in mountinfo.splitlines():
        fields = line.split()
        if fields[2] == number:
            kind, _, options = fields[fields.index("-") + 1 :][:3]
            return kind, options.split(",")
    return "", []
