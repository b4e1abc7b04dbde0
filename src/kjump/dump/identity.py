"""The identity of a dump's kernel: release, utsname, time of the crash, CPUs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from kjump.dump.source import Source
from kjump.errors import FormatError
from kjump.formats import kdump, notes

_FIELD = 65
"""Bytes of each of the six strings of struct new_utsname."""

_T = TypeVar("_T")


@dataclass(frozen=True)
class KernelIdentity:
    """A kernel's identity; fields that are not in the dump are empty or None.

    `utsname` is its struct new_utsname (390 bytes), `crash_time` in seconds since 1970, `cpus` the number of CPUs whose
    registers are in the dump, `headers_machine` the machine (uname -m) in the dump's own headers.
    """

    release: str
    utsname: bytes
    crash_time: int | None
    cpus: int | None
    phys_base: int | None
    kernel_offset: int | None
    build_id: str | None
    headers_machine: str = ""

    @property
    def version(self) -> str:
        """The kernel's build, as uname -v prints it."""
        return _text(self.utsname[3 * _FIELD : 4 * _FIELD])

    @property
    def machine(self) -> str:
        """The machine, as uname -m prints it."""
        return _text(self.utsname[4 * _FIELD : 5 * _FIELD]) or self.headers_machine

    @property
    def node(self) -> str:
        """The host name."""
        return _text(self.utsname[_FIELD : 2 * _FIELD])

    def as_utsname(self) -> bytes:
        """Return a struct new_utsname: the kernel's own, or one made of the other fields."""
        if self.utsname:
            return self.utsname
        words = ("Linux", "", self.release, "", self.machine, "")
        return b"".join(word.encode("ascii", "replace")[: _FIELD - 1].ljust(_FIELD, b"\0") for word in words)


def _text(field: bytes) -> str:
    return field.partition(b"\0")[0].decode("ascii", "replace")


def identify(source: Source) -> KernelIdentity:
    """Return the identity of the kernel in `source`; fields that are missing or damaged are empty or None."""
    cpus = None if source.live else cpu_count(source.notes) or None  # /proc/kcore always has one CPU's registers
    try:
        info = source.info
    except FormatError:
        release = _text(source.utsname[2 * _FIELD : 3 * _FIELD])
        return KernelIdentity(release, source.utsname, None, cpus, None, None, None, source.machine)
    return KernelIdentity(
        release=info.entries.get("OSRELEASE", ""),
        utsname=_utsname(source),
        crash_time=_told(lambda: info.crash_time),
        cpus=cpus,
        phys_base=_told(lambda: info.get_number("phys_base", None)),
        kernel_offset=_told(lambda: info.kernel_offset) if "KERNELOFFSET" in info.entries else None,
        build_id=info.build_id,
        headers_machine=source.machine,
    )


def _told(value: Callable[[], _T]) -> _T | None:
    try:
        return value()
    except FormatError:
        return None


def cpu_count(data: bytes) -> int:
    """Return the number of CPUs whose registers are in the notes `data` (NT_PRSTATUS)."""
    return sum(note.name == notes.CORE and note.type == notes.NT_PRSTATUS for note in notes.iterate(data))


def _utsname(source: Source) -> bytes:
    info = source.info
    try:
        at = info.symbol("init_uts_ns") + info.offset("uts_namespace.name")
        found = source.layout.read(at, kdump.UTSNAME_SIZE)
    except FormatError:
        return source.utsname
    return found if found.startswith(b"Linux\0") else source.utsname
