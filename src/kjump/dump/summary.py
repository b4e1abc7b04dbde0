"""A summary of a dump: its kernel, and the number of pages of each class."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from kjump.dump import bitmaps, dmesg
from kjump.dump.classes import PageClass
from kjump.dump.dmesg import printable
from kjump.dump.identity import KernelIdentity, identify
from kjump.dump.selection import select_level
from kjump.dump.source import Source
from kjump.errors import FormatError

_NAMES = {
    PageClass.FREE: "free",
    PageClass.CACHE: "page cache",
    PageClass.CACHE_PRIVATE: "page cache, private",
    PageClass.USER: "user",
    PageClass.HWPOISON: "memory error",
    PageClass.OFFLINE: "offline",
}


@dataclass(frozen=True)
class Summary:
    """A dump's contents. `classes` are numbers of pages by name, which add up to `total`; pages may be missing."""

    kind: str
    kernel: KernelIdentity
    total: int
    classes: dict[str, int]
    zeros: int | None
    panic: str | None
    uptime: float | None
    complete: bool
    consistent: bool
    trouble: str | None
    warnings: tuple[str, ...] = ()

    def lines(self) -> dict[str, str]:
        """Return the other fields by name, as text that is safe to print on a terminal."""
        offset = self.kernel.kernel_offset
        crash = self.kernel.crash_time
        found = {
            "file": self.kind,
            "kernel": self.kernel.release or "unknown",
            "machine": self.kernel.machine or "unknown",
            "build": self.kernel.version,
            "host": self.kernel.node,
            "crashed": "" if crash is None else datetime.fromtimestamp(crash, UTC).strftime("%Y-%m-%d %H:%M:%S UTC"),
            "last log line": "" if self.uptime is None else f"{self.uptime:.1f} s after boot",
            "panic": self.panic or "",
            "CPUs": str(self.kernel.cpus or "unknown"),
            "KASLR offset": "unknown" if offset is None else hex(offset),
            "pages of zeros": "" if self.zeros is None else str(self.zeros),
            "trouble": self.trouble or "",
        }
        return {name: printable(value) for name, value in found.items() if value}

    def as_json(self) -> dict[str, Any]:
        """Return all of it as JSON."""
        return {
            "kind": self.kind,
            "release": self.kernel.release,
            "version": self.kernel.version,
            "machine": self.kernel.machine or None,
            "node": self.kernel.node,
            "crash_time": self.kernel.crash_time,
            "cpus": self.kernel.cpus,
            "phys_base": self.kernel.phys_base,
            "kernel_offset": self.kernel.kernel_offset,
            "build_id": self.kernel.build_id,
            "pages": self.total,
            "page_size": 4096,
            "classes": self.classes,
            "zero_pages": self.zeros,
            "panic": self.panic,
            "last_log_seconds": self.uptime,
            "complete": self.complete,
            "consistent": self.consistent,
            "trouble": self.trouble,
            "warnings": list(self.warnings),
        }


def summarize(source: Source, *, zeros: bool, threads: int) -> Summary:
    """Summarize `source`; with `zeros` read each page, to count those of zeros.

    Fields that cannot be determined are empty, and `trouble` says why.
    """
    total = bitmaps.count(source.present)
    classes, trouble, warnings = _classes(source, total)
    if source.missing:
        classes["missing"] = source.missing
    zero_pages = None
    if zeros:
        from kjump.dump.pipeline import drop_zeros  # needs _dump, which a second kernel may not have

        zero_pages = drop_zeros(source, bytearray(source.present), threads)
    panic, uptime = _log(source)
    return Summary(
        kind=source.kind,
        kernel=identify(source),
        total=total + source.missing,
        classes=classes,
        zeros=zero_pages,
        panic=panic,
        uptime=uptime,
        complete=source.complete,
        consistent=not source.live,
        trouble=trouble,
        warnings=(*source.warnings, *warnings),
    )


def _classes(source: Source, total: int) -> tuple[dict[str, int], str | None, tuple[str, ...]]:
    try:
        selection = select_level(source.layout, source.present, 31)
    except FormatError as error:
        return {"unknown": total}, str(error), ()
    found = {"kernel": bitmaps.count(selection.keep)}
    found |= {_NAMES[c]: n for c, n in selection.left_out.items() if n or c <= PageClass.USER}
    if selection.no_struct:
        found["no struct page"] = selection.no_struct
    return found, None, selection.warnings


def _log(source: Source) -> tuple[str | None, float | None]:
    try:
        lines = list(dmesg.records(source.layout))
    except FormatError:
        return None, None
    return dmesg.panic_message(lines), lines[-1].nanoseconds / 1e9 if lines else None
