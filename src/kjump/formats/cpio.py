"""cpio archives of the kind the kernel unpacks as initramfs ("newc"): written reproducibly, and read.

An entry, beginning at a multiple of 4:

    0    "070701" ("070702" with a checksum)
    6    13 numbers of 8 hexadecimal digits: ino mode uid gid nlink mtime filesize devmajor devminor rdevmajor
         rdevminor namesize check
    110  name with its NUL, padding to 4; contents, padding to 4

The checksum is the sum of the bytes of a regular file; of other entries it says nothing.

The entry "TRAILER!!!" ends an archive. An initrd may hold several, each at a multiple of 4, with zeros
between. Source: Documentation/driver-api/early-userspace/buffer-format.rst.
"""

from __future__ import annotations

import stat
from binascii import Error as HexError
from binascii import unhexlify
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from struct import Struct

from kjump.errors import FormatError
from kjump.ranges import align_up

_MAGIC = b"070701"
_MAGIC_CHECKSUM = b"070702"
_HEADER_SIZE = 110
_NUMBERS = Struct(">13I")
_TRAILER = "TRAILER!!!"
_PATH_MAX = 4096
_LIMIT = 1 << 32


@dataclass(frozen=True, slots=True)
class Entry:
    """A file: name relative to the root, mode with its type (S_IFREG ...), contents (of a symlink: target).

    `mtime` is in seconds since 1970; `rdev` is the (major, minor) of a device.
    """

    name: str
    mode: int
    data: bytes = b""
    uid: int = 0
    gid: int = 0
    mtime: int = 0
    rdev: tuple[int, int] = (0, 0)

    @property
    def is_directory(self) -> bool:
        """Whether the entry is a directory."""
        return stat.S_ISDIR(self.mode)


def regular(name: str, data: bytes, permissions: int = 0o644) -> Entry:
    """Return an entry for a regular file."""
    return Entry(name, stat.S_IFREG | permissions, data)


def directory(name: str, permissions: int = 0o755) -> Entry:
    """Return an entry for a directory."""
    return Entry(name, stat.S_IFDIR | permissions)


def symlink(name: str, target: str) -> Entry:
    """Return an entry for a symbolic link to `target`."""
    return Entry(name, stat.S_IFLNK | 0o777, target.encode("utf-8", "surrogateescape"))


def char_device(name: str, major: int, minor: int, permissions: int = 0o600) -> Entry:
    """Return an entry for a character device."""
    return Entry(name, stat.S_IFCHR | permissions, rdev=(major, minor))


def write(entries: Iterable[Entry], *, align: int = 512) -> bytes:
    """Return an archive of `entries`, padded to `align`; the same entries give the same bytes.

    Directories above an entry come before it, and are added (0755, root) when missing. Hard links are not
    made. A leading "/" or "./" of a name is dropped. FormatError when a name comes twice or is unfit, or a
    number is too big.
    """
    ordered = _with_parents(entries)
    links = _link_counts(ordered)
    parts = [_encode(entry, ino, links[entry.name]) for ino, entry in enumerate(ordered, 1)]
    parts.append(_encode(Entry(_TRAILER, 0), 0, 1))
    return join([b"".join(parts)], align=align)


def join(archives: Iterable[bytes | bytearray | memoryview], *, align: int = 512) -> bytes:
    """Return archives, compressed or not, one after another, each padded with zeros to `align` (4, 8 ...)."""
    if align <= 0 or align % 4:
        raise FormatError(f"cpio: archives cannot be aligned to {align}: the kernel wants a multiple of 4")
    parts: list[bytes | bytearray | memoryview] = []
    for archive in archives:
        parts += (archive, bytes(-len(archive) % align))
    return b"".join(parts)


def iterate(data: bytes | bytearray | memoryview) -> Iterator[Entry]:
    """Go through the entries of all archives in `data`; FormatError when it is cut off or of another kind.

    The several names of a hard linked file come as they stand: all but one of them without contents.
    """
    return (entry for entry, _, _ in _walk(memoryview(data)))


def without(data: bytes, name: str) -> bytes:
    """Return the archives in `data` less the entry `name`; as they are when there is none. FormatError as `iterate`."""
    view = memoryview(data)
    for entry, start, end in _walk(view):
        if entry.name == name:
            return b"".join((view[:start], view[end:]))
    return data


def _walk(view: memoryview) -> Iterator[tuple[Entry, int, int]]:
    """Go through the entries of all archives, each with where it begins and ends; FormatError as `iterate`."""
    at = 0
    while at < len(view):
        start = at
        entry, at = _decode(view, at)
        if entry.name == _TRAILER:
            at = _skip_zeros(view, at)
        else:
            yield entry, start, at
            if at >= len(view):
                raise FormatError("cpio: the archive is cut off: it ends without its trailer")


def _with_parents(entries: Iterable[Entry]) -> list[Entry]:
    given: dict[str, Entry] = {}
    for entry in entries:
        clean = replace(entry, name=_clean_name(entry.name))
        if clean.name in given:
            raise FormatError(f"cpio: {clean.name} comes twice")
        given[clean.name] = clean
    ordered: dict[str, Entry] = {}
    for name in given:
        for parent in _parents(name):
            if parent not in ordered:
                ordered[parent] = given.get(parent, directory(parent))
            if not ordered[parent].is_directory:
                raise FormatError(f"cpio: {name} cannot lie in {parent}, which is no directory")
        ordered.setdefault(name, given[name])
    return list(ordered.values())


def _clean_name(name: str) -> str:
    parts = [part for part in name.split("/") if part not in ("", ".")]
    clean = "/".join(parts) or "."
    too_long = len(clean.encode("utf-8", "surrogateescape")) >= _PATH_MAX
    if not name or ".." in parts or "\0" in name or too_long or clean == _TRAILER:
        raise FormatError(f"cpio: an entry cannot be named {name[:80]!r}")
    return clean


def _parents(name: str) -> list[str]:
    parts = name.split("/")
    return ["/".join(parts[:depth]) for depth in range(1, len(parts))]


def _link_counts(entries: list[Entry]) -> dict[str, int]:
    links = {entry.name: 2 if entry.is_directory else 1 for entry in entries}
    for entry in entries:
        parent = entry.name.rpartition("/")[0] or "."
        if entry.is_directory and entry.name != "." and parent in links:
            links[parent] += 1
    return links


def _encode(entry: Entry, ino: int, nlink: int) -> bytes:
    name = entry.name.encode("utf-8", "surrogateescape") + b"\0"
    numbers = (ino, entry.mode, entry.uid, entry.gid, nlink, entry.mtime, len(entry.data), 0, 0, *entry.rdev)
    if not all(0 <= number < _LIMIT for number in numbers):
        raise FormatError(f"cpio: {entry.name}: a number of it (size, time, owner) does not fit in 32 bits")
    if stat.S_ISLNK(entry.mode) and not 0 < len(entry.data) < _PATH_MAX:
        raise FormatError(f"cpio: the symbolic link {entry.name} has a target of {len(entry.data)} bytes")
    digits = b"".join(b"%08x" % number for number in (*numbers, len(name), 0))
    return b"".join((_padded(_MAGIC + digits + name), entry.data, bytes(-len(entry.data) % 4)))


def _decode(view: memoryview, at: int) -> tuple[Entry, int]:
    numbers, magic = _numbers(view, at)
    _, mode, uid, gid, _, mtime, size, _, _, major, minor, namesize, check = numbers
    name_at = at + _HEADER_SIZE
    data_at = align_up(name_at + namesize, 4)
    if data_at + size > len(view):
        raise FormatError(f"cpio: the archive is cut off: the entry at {at:#x} ends at {data_at + size:#x}")
    name = _decode_name(bytes(view[name_at : name_at + namesize]), at)
    data = bytes(view[data_at : data_at + size])
    if magic == _MAGIC_CHECKSUM and stat.S_ISREG(mode) and sum(data) % _LIMIT != check:
        raise FormatError(f"cpio: the contents of {name} are damaged: their checksum is wrong")
    return Entry(name, mode, data, uid, gid, mtime, (major, minor)), align_up(data_at + size, 4)


def _numbers(view: memoryview, at: int) -> tuple[tuple[int, ...], bytes]:
    header = bytes(view[at : at + _HEADER_SIZE])
    magic = header[:6]
    if len(header) < _HEADER_SIZE and magic in (b"", _MAGIC, _MAGIC_CHECKSUM):
        raise FormatError(f"cpio: the archive is cut off within the entry at {at:#x}")
    if magic not in (_MAGIC, _MAGIC_CHECKSUM):
        raise FormatError(f"no cpio archive of the newc kind at offset {at:#x}; is it compressed?")
    try:
        return _NUMBERS.unpack(unhexlify(header[6:])), magic
    except HexError:
        raise FormatError(f"cpio: the header at {at:#x} is damaged: it has other things than digits") from None


def _decode_name(name: bytes, at: int) -> str:
    if not name.endswith(b"\0") or name.count(b"\0") != 1:
        raise FormatError(f"cpio: the name of the entry at {at:#x} does not end where it should")
    return name[:-1].decode("utf-8", "surrogateescape")


def _skip_zeros(view: memoryview, at: int) -> int:
    while at < len(view) and not view[at]:
        at += 1
    if at < len(view) and at % 4:
        raise FormatError(f"cpio: the archive at {at:#x} does not begin at a multiple of 4")
    return at


def _padded(data: bytes) -> bytes:
    return data + bytes(-len(data) % 4)
