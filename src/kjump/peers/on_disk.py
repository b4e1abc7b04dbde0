"""Resident peers on disk: the memory of parked peers in a file, so that the first kernel can use that memory.

A parked peer consists of its window and its low memory, which the source pages of the loaded image hold while A runs.
Loaded again, as the data of segments, they are a peer that can be entered: its gate says so, and the channel is at the
address it knows. That is valid during one boot of A, and while A has the same devices.

The file is a sequence of zstd frames, one for each part; the list of parts is in the record of the peers (`registry`).
A skippable frame at the beginning identifies the file (RFC 8878, 3.1.2).
"""

from __future__ import annotations

import contextlib
import os
import struct
import threading
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from pathlib import Path

from kjump import _core
from kjump.errors import HostError, UsageError
from kjump.formats.record import Json, JsonObject, Record
from kjump.gates import GATE_ENTRY
from kjump.hibernate import post_mortem
from kjump.host import kernel_memory
from kjump.host.libc import share_one_heap
from kjump.kexec.plan import ARCH_X86_64, PRESERVE_CONTEXT, SEGMENT_MAX, Plan, Segment, make_plan
from kjump.memory import PAGE_SIZE, PhysicalMemory
from kjump.ranges import Range

_TITLE = b"kjump: memory of resident peers"
_HEADER = struct.pack("<II", 0x184D2A50, len(_TITLE)) + _TITLE
_LEVEL = -2
_ADDRESS_END = 1 << 52
_PATH = 4096
_MOST_PARTS = 1024
_CHUNK = 4 << 20
_LEAST_GAP = 64
"""The least number of consecutive zero pages at which a part is ended rather than the zeros stored."""
_PCI = Path("/sys/bus/pci/devices")


@dataclass(frozen=True)
class Part:
    """One segment: `memory` bytes from physical `address` on, of which all but the first `data` bytes are zeros.

    The first `data` bytes are compressed to `stored` bytes of the file; `checksum` is the low half of their XXH64.
    """

    address: int
    memory: int
    data: int
    stored: int
    checksum: int

    def to_json(self) -> JsonObject:
        """Return it as JSON for the record of the peers."""
        return vars(self).copy()

    @classmethod
    def from_json(cls, record: Record) -> Part:
        """Read what `to_json` gave; FormatError."""
        return cls(
            record.integer("address", high=_ADDRESS_END),
            record.integer("memory", high=_ADDRESS_END),
            record.integer("data", high=_ADDRESS_END),
            record.integer("stored", high=_ADDRESS_END),
            record.integer("checksum", high=(1 << 32) - 1),
        )


@dataclass(frozen=True)
class Stored:
    """Peers in the file `path`; `entry` is the physical address to jump to, `devices` identifies A's devices."""

    path: str
    entry: int
    devices: str
    parts: tuple[Part, ...]

    def to_json(self) -> JsonObject:
        """Return it as JSON for the record of the peers."""
        parts: list[Json] = [part.to_json() for part in self.parts]
        return {"path": self.path, "entry": self.entry, "devices": self.devices, "parts": parts}

    @classmethod
    def from_json(cls, record: Record) -> Stored:
        """Read what `to_json` gave; FormatError."""
        return cls(
            record.text("path", limit=_PATH),
            record.integer("entry", high=_ADDRESS_END),
            record.text("devices", limit=_PATH),
            tuple(Part.from_json(item) for item in record.items("parts", limit=_MOST_PARTS)),
        )

    @property
    def size(self) -> int:
        """The size of the file in bytes."""
        return len(_HEADER) + sum(part.stored for part in self.parts)

    @property
    def memory(self) -> int:
        """The bytes of memory that loading the peers takes, the file itself not counted."""
        return sum(part.memory + part.data for part in self.parts)

    def is_good(self) -> bool:
        """Tell whether the file exists, and A's devices have not changed since it was written."""
        try:
            return Path(self.path).stat().st_size == self.size and devices() == self.devices
        except OSError:
            return False

    def plan(self, ahead: Unpacking | None = None) -> Plan:
        """Return the Plan that loads the peers and enters one; HostError when the file's contents have changed.

        `ahead` is an unpacking that has begun already; it is ignored if it is of other peers.
        """
        if not self.is_good():
            raise HostError(f"{self.path} is not as it was written, or devices have changed since: drop it, begin anew")
        if ahead is None or ahead.stored != self:
            ahead = Unpacking(self, threads=(os.cpu_count() or 1) - 1)
        contents = ahead.result()
        segments = [Segment(p.address, p.memory, data, "peer") for p, data in zip(self.parts, contents, strict=True)]
        return make_plan(self.entry, segments, ARCH_X86_64 | PRESERVE_CONTEXT)


class Unpacking:
    """The unpacking of a file of peers by threads, while the caller does something else."""

    def __init__(self, stored: Stored, threads: int) -> None:
        """Begin to unpack `stored`, with `threads` threads."""
        self.stored = stored
        starts = accumulate((part.stored for part in stored.parts), initial=len(_HEADER))
        jobs = zip(stored.parts, starts, range(len(stored.parts)), strict=False)
        self._left = sorted(jobs, key=lambda job: job[0].data)
        self._found = [b""] * len(stored.parts)
        self._failures: list[Exception] = []
        share_one_heap()  # else tens of megabytes of freed memory stay allocated, and are saved in an image
        self._threads = [threading.Thread(target=self._work, daemon=True) for _ in range(threads)]
        for thread in self._threads:
            thread.start()

    def _work(self) -> None:
        try:
            with open(self.stored.path, "rb", buffering=0) as file:  # noqa: PTH123
                while self._left and not self._failures:
                    part, start, index = self._left.pop()  # the largest first
                    if part.data:
                        frame = os.pread(file.fileno(), part.stored, start)
                        self._found[index] = _core.decompress_frame(frame, part.data, part.checksum)
        except IndexError:
            pass  # another thread has taken the last one
        except Exception as error:
            self._failures.append(error)

    def result(self) -> list[bytes]:
        """Wait for the threads, and return the data of each part; HostError when the file's contents have changed."""
        self._work()
        found = self.drop()
        for error in self._failures:
            why = f"cannot be read ({error.strerror})" if isinstance(error, OSError) else f"is damaged ({error})"
            raise HostError(f"{self.stored.path} {why}: drop it, and begin anew")
        return found

    def drop(self) -> list[bytes]:
        """Stop unpacking; return what is unpacked so far, and keep no reference to it."""
        self._left.clear()
        for thread in self._threads:
            thread.join()
        with contextlib.suppress(OSError), open(self.stored.path, "rb") as file:  # noqa: PTH123
            # Drop the file from the page cache, so that no image contains it.
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        found, self._found = self._found, []
        return found


def refuse_other_file(path: Path) -> None:
    """Raise UsageError when `path` exists and is no file that `store` has written: it would be overwritten."""
    try:
        with path.open("rb") as file:
            found = file.read(len(_HEADER))
    except FileNotFoundError:
        return
    except OSError as error:
        raise UsageError(f"cannot look into {path}: {error.strerror}") from None
    if found != _HEADER:
        raise UsageError(f"{path} is there already, and is not a kernel on standby: name another file")


def store(path: Path, places: Sequence[Range], gate: int) -> Stored:
    """Write the loaded image's contents of `places` (physical, page-aligned) to the file `path`, readable by root only.

    `gate` is the physical address of the first peer's gate. HostError, with no file left, when that cannot be written.
    """
    partial = path.with_name(path.name + ".part")
    parts = []
    try:
        with kernel_memory.Kcore() as kcore, open(partial, "wb", opener=_private) as file:
            memory = post_mortem.peer_memory(kcore)
            file.write(_HEADER)
            for segment, size in cut([(place, _used(memory, place)) for place in places]):
                data = _core.compress_bytes(memory.read(segment.start, size), _LEVEL) if size else b""
                # A frame ends with its checksum (RFC 8878, 3.1.1), the same that a seek table has.
                parts.append(Part(segment.start, segment.size, size, len(data), int.from_bytes(data[-4:], "little")))
                file.write(data)
            file.flush()
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        partial.replace(path)
    except OSError as error:
        raise HostError(f"cannot write {path}: {error.strerror}") from None
    finally:
        partial.unlink(missing_ok=True)
    return Stored(str(path.absolute()), gate + GATE_ENTRY, devices(), tuple(parts))


def devices() -> str:
    """Return a text that identifies this machine's PCI devices and their slots: their number, and a CRC-32."""
    found = sorted(_PCI.iterdir()) if _PCI.exists() else []
    checksum = 0
    for device in found:
        for name in ("vendor", "device", "resource"):
            checksum = zlib.crc32(f"{device.name} {name} {(device / name).read_text()}\n".encode(), checksum)
    return f"{len(found)}-{checksum:08x}"  # a CRC, because importing hashlib takes longer than all of this


def _private(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)


def _used(memory: PhysicalMemory, place: Range) -> list[Range]:
    """Return the ranges of `place` that are not zeros; ranges with small gaps of zeros between them are joined."""
    found = []
    for start in range(place.start, place.end, _CHUNK):
        chunk = memory.read(start, min(_CHUNK, place.end - start))
        zeros = _core.zero_pages(chunk)
        for first, last in _core.bitmap_runs(zeros, 0, len(chunk) // PAGE_SIZE, False, _LEAST_GAP):
            found.append(Range(start + first * PAGE_SIZE, start + last * PAGE_SIZE))
    return found


def cut(used: Sequence[tuple[Range, Sequence[Range]]], most: int = SEGMENT_MAX) -> list[tuple[Range, int]]:
    """Return up to `most` ranges that cover the places of `used`, each with its size in bytes up to the trailing zeros.

    `used` has for each place its ranges that are not zeros, in order. The cuts are made at the longest runs of zeros.
    """
    gaps = [(after.start - before.end, after.start) for _, runs in used for before, after in pairwise(runs)]
    cuts = sorted(start for _, start in sorted(gaps, reverse=True)[: max(0, most - len(used))])
    found = []
    for place, runs in used:
        bounds = [place.start, *(at for at in cuts if place.start < at < place.end), place.end]
        for start, end in pairwise(bounds):
            last = max((run.end for run in runs if start <= run.start < end), default=start)
            found.append((Range(start, end), last - start))
    return found
