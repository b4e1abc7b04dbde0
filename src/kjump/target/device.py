"""Targets: what keeps an image, behind a 4 KiB superblock: a block device, or the blocks of a file on one.

To all readers and writers a target is one run of bytes. On a block device that is the device; of a file target it is
the file's extents on the device, laid end to end, so that kernels which must not mount the file system reach them.

All access is direct (O_DIRECT), so neither A's cached blocks nor B's can hide what the disk holds, and every
change of state is flushed before the next step. The device is opened exclusively, which Linux refuses while
it is mounted or in use as swap.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import struct
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

from kjump.errors import FormatError, ImageError, TargetError
from kjump.formats import cmdline, extentmap, signatures
from kjump.formats.record import JsonObject, Record
from kjump.formats.superblock import SUPERBLOCK_SIZE, State, Superblock, is_of
from kjump.ranges import Range
from kjump.target import disks

_BLOCK = 4096
_PATH = 4096
_PAUSES = (0.0, 0.1, 0.4, 1.0, 2.0)
"""Seconds before each try to read a superblock, or give an image up: a disk that was just woken may need some."""


@dataclass(frozen=True)
class Place:
    """Where a target is: a block `device`, and the byte ranges of it that the target is made of (none: all of it)."""

    device: str
    extents: tuple[Range, ...] = ()

    def boot_options(self, name: str = "") -> tuple[str, ...]:
        """Return the kernel options, as they are written, with which a boot finds an image here.

        `name` is what it calls the device, if another name (see `kjump.target.identify`).

        PlanError when the device has a name that cannot be written on a kernel's command line.
        """
        resume = cmdline.word("kjump.resume", name or self.device)
        return (resume, f"kjump.resume_offset={self.extents[0].start // _BLOCK}") if self.extents else (resume,)

    def to_json(self) -> JsonObject:
        """Return it for a job."""
        return {"device": self.device, "extents": [[e.start, e.end] for e in self.extents]}

    @classmethod
    def from_json(cls, record: Record) -> Place:
        """Read what `to_json` gave; FormatError."""
        return cls(record.text("device", limit=_PATH), record.ranges("extents", limit=extentmap.MAX_EXTENTS))


class Target:
    """An open target; `capacity` is its size in bytes, `place` where another kernel finds it.

    `extents` is how the bytes of the target lie in `disk`; empty when they lie there as they are.
    """

    _known: Superblock | None = None
    """The superblock as it was read or written last."""

    def __init__(self, path: str | Path, *, writable: bool, extents: tuple[Range, ...] = ()) -> None:
        """Open a block device, or `extents` of it; TargetError when it is missing, in use, or not a block device."""
        self.path = str(path)
        self.place = Place(self.path, extents)
        self.extents = extents
        self.disk, size = disks.current().open(self.path, writable=writable)
        if any(e.end > size for e in extents):
            self.disk.close()
            raise TargetError(f"{self.path} has only {size} bytes, too few to hold the target")
        self.capacity = sum(e.size for e in extents) or size

    def close(self) -> None:
        """Close the device."""
        self.disk.close()

    def __enter__(self) -> Target:
        """Use as a context manager; the device is closed at the end."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close the device."""
        self.close()

    def _pieces(self, offset: int, length: int) -> Iterator[tuple[int, int]]:
        """Go through (offset in `disk`, length) of `length` bytes of the target, without what lies beyond its end."""
        if not self.extents:
            yield offset, length
        at = 0
        for extent in self.extents:
            part = Range(at, at + extent.size).intersection(Range.of_size(offset, length))
            if part.size:
                yield extent.start + part.start - at, part.size
            at += extent.size

    def packed_extents(self) -> bytes:
        """Return `extents` as the native core takes them: native u64 pairs (offset, length)."""
        return b"".join(struct.pack("=QQ", e.start, e.size) for e in self.extents)

    def read(self, offset: int, length: int) -> bytes:
        """Return `length` bytes from byte `offset` of the target; TargetError on an I/O error or past its end."""
        if offset + length > self.capacity:
            raise TargetError(f"{self.path} ends before byte {offset + length}")
        start = offset // _BLOCK * _BLOCK
        size = -(-(offset + length - start) // _BLOCK) * _BLOCK
        buffer = mmap.mmap(-1, max(size, _BLOCK))
        done = 0
        try:
            for at, count in self._pieces(start, size):
                done += self._read_piece(memoryview(buffer)[done : done + count], at)
        except OSError as error:
            raise TargetError(f"reading {self.path} at byte {offset} failed: {error.strerror}") from None
        if done < offset + length - start:
            raise TargetError(f"{self.path} ends before byte {offset + length}")
        return bytes(buffer[offset - start : offset - start + length])

    def _read_piece(self, view: memoryview, at: int) -> int:
        done = 0
        while done < len(view):
            count = self.disk.read_into(view[done:], at + done)
            if count == 0:
                break
            done += count
        return done

    def write(self, offset: int, data: bytes) -> None:
        """Write `data`, whole blocks, at byte `offset`, and flush it to the medium; TargetError on an I/O error."""
        buffer = mmap.mmap(-1, len(data))
        buffer[:] = data
        done = 0
        try:
            for at, count in self._pieces(offset, len(data)):
                end = done + count
                while done < end:
                    written = self.disk.write_from(memoryview(buffer)[done:end], at)
                    at, done = at + written, done + written
            self.disk.flush()
        except OSError as error:
            raise TargetError(f"writing {self.path} at byte {offset} failed: {error.strerror}") from None
        if done != len(data):
            raise TargetError(f"{self.path} ends before byte {offset + len(data)}")

    def read_patiently(self, offset: int, length: int) -> bytes:
        """Return what `read` does, after some tries: a disk that has just been woken may need them."""
        for pause in _PAUSES:
            time.sleep(pause)
            try:
                return self.read(offset, length)
            except TargetError as error:
                failure = error
        raise failure

    def read_superblock(self, *, patiently: bool = True) -> Superblock:
        """Return the superblock; FormatError when there is none, or it is damaged. TargetError on an I/O error.

        A read that fails is tried again for a while, unless somebody looks through many devices: then not `patiently`.
        """
        read = self.read_patiently if patiently else self.read
        self._known = Superblock.unpack(read(0, SUPERBLOCK_SIZE))
        return self._known

    def write_superblock(self, superblock: Superblock) -> None:
        """Write `superblock` and flush it to the medium; TargetError on an I/O error."""
        self._known = superblock  # also when that fails: it may be on the medium all the same
        self.write(0, superblock.pack())

    def extent_map(self, cookie: bytes) -> bytes:
        """Return the extent map that stands behind a superblock with `cookie`; empty on a whole device."""
        return extentmap.pack(self.place.extents, cookie) if self.place.extents else b""

    def refuse_if_it_carries_something(self) -> None:
        """Raise TargetError when the device carries a file system, swap space or the like, by its signature."""
        size = min(signatures.LENGTH, self.capacity // _BLOCK * _BLOCK)
        carried = signatures.found(self.read(0, size))
        if carried is not None:
            raise TargetError(f"target {self.path} carries {carried}: wipe it first, or give --overwrite")

    def arm(self) -> Superblock:
        """Make the target ready for one image: write a superblock with a new random cookie and return it.

        The generation counts up from what was there, so that two images are never taken for each other.
        """
        try:
            generation = self.read_superblock().generation + 1
        except FormatError:
            generation = 1
        return self.write_fresh(State.ARMED, generation)

    def hold(self) -> None:
        """Keep others from it while it is open, or raise TargetError; a device is opened exclusively in any case."""

    def check_on_device(self) -> None:
        """Raise TargetError unless other kernels will find what was written here; a device itself needs no proof."""

    def write_fresh(self, state: State, generation: int) -> Superblock:
        """Write and return a superblock with a new cookie, and before it the extent map that goes with it."""
        cookie = os.urandom(16)
        extent_map = self.extent_map(cookie)
        if extent_map:
            self.write(SUPERBLOCK_SIZE, extent_map)
        superblock = Superblock(
            state=state, generation=generation, cookie=cookie, capacity=self.capacity, map_length=len(extent_map)
        )
        self.write_superblock(superblock)
        return superblock

    def invalidate(self, reason: str) -> bool:
        """Make a complete or attempted image unusable, durably; tell whether there was one.

        Tries again for a while, as `give_up_image` does. TargetError when it cannot be read or written.
        """
        try:
            superblock = self._read_superblock_in_the_end()
        except FormatError:
            return False
        if superblock.state not in (State.COMPLETE, State.ATTEMPTED):
            return False
        self.give_up_image(reason)
        return True

    def _read_superblock_in_the_end(self) -> Superblock:
        """Return the superblock, though the disk may need some tries; FormatError or TargetError as when reading it."""
        for pause in _PAUSES[:-1]:
            time.sleep(pause)
            with contextlib.suppress(TargetError):
                return self.read_superblock()
        time.sleep(_PAUSES[-1])
        return self.read_superblock()

    def give_up_image(self, reason: str) -> None:
        """Make the image unusable for which the superblock was read or written here last, whatever it reads now.

        Tries again for a while, and then writes even if the superblock says invalid: a write whose flush failed can be
        read back from the drive's cache, and is gone with the power. What has another cookie, or is no superblock, is
        somebody else's, and is left. TargetError when it cannot be written, OSError when there is no memory to do it.
        """
        known = self._known
        if known is None:
            raise TargetError(f"nothing is known of an image on {self.path}")
        for pause in _PAUSES:
            time.sleep(pause)
            found = known
            with contextlib.suppress(FormatError, TargetError, OSError):  # OSError: no memory for a buffer
                data = self.read(0, SUPERBLOCK_SIZE)
                if not is_of(data, known.cookie):
                    return
                found = Superblock.unpack(data)
            details = found.details if found.state is State.INVALID else found.details.because(reason)
            try:
                self.write_superblock(found.evolve(state=State.INVALID, details=details))
                return
            except (TargetError, OSError) as error:
                failure = error
        raise failure


def open_at(path: str, offset: int, *, writable: bool) -> Target:
    """Open the target whose superblock is at byte `offset` of a block device: 0 for the device, else a file target.

    ImageError when there is none, TargetError when the device cannot be used.
    """
    if not offset:
        return Target(path, writable=writable)
    with Target(path, writable=False) as device:
        try:
            superblock = Superblock.unpack(device.read_patiently(offset, SUPERBLOCK_SIZE))
            length = superblock.map_length
            if not 0 < length <= extentmap.MAX_LENGTH:
                raise FormatError("the superblock is not that of a file target")
            extents = extentmap.unpack(device.read_patiently(offset + SUPERBLOCK_SIZE, length), superblock.cookie)
            if extents[0].start != offset:
                raise FormatError("this is a copy of a target file, not where the file was when it was written")
        except FormatError as error:
            raise ImageError(f"{path}, block {offset // extentmap.BLOCK}: {error}") from None
    return Target(path, writable=writable, extents=extents)


def find_target(cookie: bytes, place: Place, *, timeout: float) -> Target:
    """Return, open for writing, the target whose superblock carries `cookie`; the device of `place` is tried first.

    Device names need not be the same in another kernel; the cookie is. TargetError when none appears within
    `timeout` seconds.
    """
    deadline = time.monotonic() + timeout
    while True:
        for path in [place.device, *(d for d in disks.current().names() if d != place.device)]:
            found = _try_target(Place(path, place.extents), cookie)
            if found is not None:
                return found
        if time.monotonic() > deadline:
            raise TargetError(
                f"no block device carries the cookie that was written to {place.device}: was the disk exchanged?"
            )
        time.sleep(0.02)


def _try_target(place: Place, cookie: bytes) -> Target | None:
    try:
        target = Target(place.device, writable=True, extents=place.extents)
    except TargetError:
        return None
    try:
        superblock = target.read_superblock(patiently=False)
        if superblock.cookie == cookie and superblock.map_length == len(target.extent_map(cookie)):
            return target
    except (FormatError, TargetError):
        pass
    target.close()
    return None


def why_not_resumable(superblock: Superblock) -> str | None:
    """Return why the image behind `superblock` must not be resumed, as a sentence, or None when it may."""
    reason = superblock.details.reason
    sentences = {
        State.EMPTY: "the target holds no image",
        State.ARMED: "the target was made ready, but no image was written",
        State.WRITING: "the image is half written: the save was interrupted",
        State.ATTEMPTED: f"a resume of this image was tried before and failed{': ' + reason if reason else ''}",
        State.CONSUMED: "the image was resumed already; an image is never run twice",
        State.INVALID: f"the image was invalidated{': ' + reason if reason else ''}",
        State.SNAPSHOT: "it holds a snapshot, which no boot resumes by itself; `kjump rollback` goes back to it"
        + (f"; the last roll-back to it failed: {reason}" if reason else ""),
        State.DUMP: "it holds a debugging dump: pages are left out of it, so no system can be brought back from it",
    }
    return sentences.get(superblock.state)


def check_digest(target: Target, superblock: Superblock, head: bytes, seek_table: bytes) -> None:
    """Compare the digest over seek table, headers and extent map with the superblock's; ImageError when they differ."""
    if superblock.digest != digest(head, seek_table, target.extent_map(superblock.cookie)):
        raise ImageError(
            f"the image on {target.path} is damaged: its headers or seek table do not match the superblock"
        )


def digest(head: bytes, seek_table: bytes, extent_map: bytes) -> bytes:
    """Return the SHA-256 digest over seek table, headers and extent map, as the superblock keeps it."""
    import hashlib  # not needed before the jump, and slow to load

    return hashlib.sha256(seek_table + head + extent_map).digest()
