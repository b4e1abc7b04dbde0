"""What a dump says of its kernel: release, utsname, time of the crash, CPUs, panic message."""

from __future__ import annotations

from dataclasses import dataclass

from kjump.dump.source import Source
from kjump.errors import FormatError
from kjump.formats import kdump, notes

_FIELD = 65
"""Bytes of each of the six strings of struct new_utsname."""


@dataclass(frozen=True)
class KernelIdentity:
    """A kernel's identity. `utsname` is its struct new_utsname (390 bytes), `crash_time` in seconds since 1970."""

    release: str
    utsname: bytes
    crash_time: int | None
    cpus: int
    phys_base: int
    kernel_offset: int
    build_id: str | None

    @property
    def version(self) -> str:
        """The kernel's build, as uname -v prints it."""
        return _text(self.utsname[3 * _FIELD : 4 * _FIELD])

    @property
    def machine(self) -> str:
        """The machine, as uname -m prints it."""
        return _text(self.utsname[4 * _FIELD : 5 * _FIELD])

    @property
    def node(self) -> str:
        """The host name."""
        return _text(self.utsname[_FIELD : 2 * _FIELD])


def _text(field: bytes) -> str:
    return field.partition(b"\0")[0].decode("ascii", "replace")


def identify(source: Source) -> KernelIdentity:
    """Return what `source` says; what cannot be read is empty. FormatError only when VMCOREINFO is damaged."""
    if notes.find(source.notes, notes.VMCOREINFO) is None:
        return KernelIdentity("", b"", None, max(1, cpu_count(source.notes)), 0, 0, None)
    info = source.info
    return KernelIdentity(
        release=info.entries.get("OSRELEASE", ""),
        utsname=_utsname(source),
        crash_time=info.crash_time,
        cpus=max(1, cpu_count(source.notes)),
        phys_base=info.get_number("phys_base", 0),
        kernel_offset=info.kernel_offset,
        build_id=info.build_id,
    )


def cpu_count(data: bytes) -> int:
    """Return of how many CPUs there are registers in the notes `data`."""
    return sum(note.name == notes.CORE and note.type == notes.NT_PRSTATUS for note in notes.iterate(data))


def _utsname(source: Source) -> bytes:
    info = source.info
    try:
        at = info.symbol("init_uts_ns") + info.offset("uts_namespace.name")
        return source.layout.read(at, kdump.UTSNAME_SIZE)
    except FormatError:
        machine = "x86_64" if source.word == 8 else "i686"
        words = ("Linux", "", info.entries.get("OSRELEASE", ""), "", machine, "")
        return b"".join(word.encode("ascii", "replace")[: _FIELD - 1].ljust(_FIELD, b"\0") for word in words)
