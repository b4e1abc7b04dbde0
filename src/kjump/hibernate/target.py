"""Targets: the block device that keeps an image, behind a 4 KiB superblock.

All access is direct (O_DIRECT), so neither A's cached blocks nor B's can hide what the disk holds, and every
change of state is flushed before the next step. The device is opened exclusively, which Linux refuses while
it is mounted or in use as swap.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import mmap
import os
import secrets
import stat
import time
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType

from kjump.errors import FormatError, ImageError, TargetError
from kjump.formats import signatures
from kjump.formats.superblock import SUPERBLOCK_SIZE, State, Superblock

IMAGE_OFFSET = SUPERBLOCK_SIZE
_BLKGETSIZE64 = 0x80081272
_BLOCK = 4096


class Target:
    """An open target; `capacity` is the size of the device in bytes."""

    def __init__(self, path: str | Path, *, writable: bool) -> None:
        """Open the device; TargetError when it is missing, in use, or not a block device."""
        self.path = str(path)
        flags = os.O_DIRECT | os.O_CLOEXEC | (os.O_RDWR | os.O_EXCL if writable else os.O_RDONLY)
        try:
            self.fd = os.open(self.path, flags)
        except OSError as error:
            why = "it is mounted, or in use as swap" if error.errno == errno.EBUSY else error.strerror
            raise TargetError(f"target {self.path} cannot be opened: {why}") from None
        try:
            self.capacity = _device_size(self.fd, self.path)
        except BaseException:
            os.close(self.fd)
            raise

    def close(self) -> None:
        """Close the device."""
        os.close(self.fd)

    def __enter__(self) -> Target:
        """Use as a context manager; the device is closed at the end."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close the device."""
        self.close()

    def read(self, offset: int, length: int) -> bytes:
        """Return `length` bytes from byte `offset` of the device; TargetError on an I/O error or past its end."""
        start = offset // _BLOCK * _BLOCK
        size = -(-(offset + length - start) // _BLOCK) * _BLOCK
        buffer = mmap.mmap(-1, max(size, _BLOCK))
        try:
            done = 0
            while done < size:
                count = os.preadv(self.fd, [memoryview(buffer)[done:size]], start + done)
                if count == 0:
                    break
                done += count
        except OSError as error:
            raise TargetError(f"reading {self.path} at byte {offset} failed: {error.strerror}") from None
        if done < offset + length - start:
            raise TargetError(f"{self.path} ends before byte {offset + length}")
        return bytes(buffer[offset - start : offset - start + length])

    def read_superblock(self) -> Superblock:
        """Return the superblock; FormatError when there is none, or it is damaged."""
        return Superblock.unpack(self.read(0, SUPERBLOCK_SIZE))

    def write_superblock(self, superblock: Superblock) -> None:
        """Write `superblock` and flush it to the medium; TargetError on an I/O error."""
        buffer = mmap.mmap(-1, SUPERBLOCK_SIZE)
        buffer[:] = superblock.pack()
        try:
            written = os.pwritev(self.fd, [buffer], 0)
            os.fsync(self.fd)
        except OSError as error:
            raise TargetError(f"writing the superblock of {self.path} failed: {error.strerror}") from None
        if written != SUPERBLOCK_SIZE:
            raise TargetError(f"writing the superblock of {self.path} stopped after {written} bytes")

    def refuse_if_it_carries_something(self) -> None:
        """Raise TargetError when the device carries a file system, swap space or the like, by its signature."""
        size = min(signatures.LENGTH, self.capacity // _BLOCK * _BLOCK)
        carried = signatures.found(self.read(0, size))
        if carried is not None:
            raise TargetError(f"target {self.path} carries {carried}: wipe it first, or give --force")

    def arm(self) -> Superblock:
        """Make the target ready for one image: write a superblock with a new random cookie and return it.

        The generation counts up from what was there, so that two images are never taken for each other.
        """
        try:
            generation = self.read_superblock().generation + 1
        except FormatError:
            generation = 1
        superblock = Superblock(
            state=State.ARMED, generation=generation, cookie=secrets.token_bytes(16), capacity=self.capacity
        )
        self.write_superblock(superblock)
        return superblock

    def invalidate(self, reason: str) -> bool:
        """Make a complete or attempted image unusable, durably; tell whether there was one."""
        try:
            superblock = self.read_superblock()
        except FormatError:
            return False
        if superblock.state not in (State.COMPLETE, State.ATTEMPTED):
            return False
        self.write_superblock(superblock.evolve(state=State.INVALID, details={"reason": reason}))
        return True


def _device_size(fd: int, path: str) -> int:
    if not stat.S_ISBLK(os.fstat(fd).st_mode):
        raise TargetError(f"target {path} is not a block device: give a partition or disk")
    size = bytearray(8)
    fcntl.ioctl(fd, _BLKGETSIZE64, size)
    return int.from_bytes(size, "little")


def block_devices() -> Iterator[str]:
    """Go through the device files of all block devices there are (disks and partitions)."""
    try:
        names = sorted(os.listdir("/sys/class/block"))  # noqa: PTH208
    except OSError:
        return
    for name in names:
        yield "/dev/" + name.replace("!", "/")


def find_target(cookie: bytes, hint: str, *, timeout: float) -> Target:
    """Return, open for writing, the device whose superblock carries `cookie`; `hint` is tried first.

    Device names need not be the same in another kernel; the cookie is. TargetError when none appears within
    `timeout` seconds.
    """
    deadline = time.monotonic() + timeout
    while True:
        for path in [hint, *(d for d in block_devices() if d != hint)]:
            found = _try_target(path, cookie)
            if found is not None:
                return found
        if time.monotonic() > deadline:
            raise TargetError(f"no block device carries the cookie that was written to {hint}: was the disk exchanged?")
        time.sleep(0.02)


def _try_target(path: str, cookie: bytes) -> Target | None:
    try:
        target = Target(path, writable=True)
    except TargetError:
        return None
    try:
        if target.read_superblock().cookie == cookie:
            return target
    except (FormatError, TargetError):
        pass
    target.close()
    return None


def why_not_resumable(superblock: Superblock) -> str | None:
    """Return why the image behind `superblock` must not be resumed, as a sentence, or None when it may."""
    reason = str(superblock.details.get("reason", ""))
    sentences = {
        State.EMPTY: "the target holds no image",
        State.ARMED: "the target was made ready, but no image was written",
        State.WRITING: "the image is half written: the save was interrupted",
        State.ATTEMPTED: f"a resume of this image was tried before and failed{': ' + reason if reason else ''}",
        State.CONSUMED: "the image was resumed already; an image is never run twice",
        State.INVALID: f"the image was invalidated{': ' + reason if reason else ''}",
    }
    return sentences.get(superblock.state)


def check_digest(target: Target, superblock: Superblock, head: bytes, seek_table: bytes) -> None:
    """Compare the digest over seek table and headers with the superblock's; ImageError when they differ."""
    if superblock.digest != digest(head, seek_table):
        raise ImageError(
            f"the image on {target.path} is damaged: its headers or seek table do not match the superblock"
        )


def digest(head: bytes, seek_table: bytes) -> bytes:
    """Return the SHA-256 digest over seek table, then headers, as the superblock keeps it."""
    return hashlib.sha256(seek_table + head).digest()
