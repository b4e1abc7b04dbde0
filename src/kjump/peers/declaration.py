"""Arranges declared peers in one Plan: a window, a share of low memory, a gate and a door for each peer."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from kjump.errors import FormatError, PlanError, UsageError
from kjump.formats import cmdline, cpio
from kjump.formats.record import Record
from kjump.gates import FLAG_CHOOSE, FLAG_INIT_CPUS, GATE_ENTRY, Gate
from kjump.host import hugetlbfs, kernel_memory
from kjump.kexec import mailbox
from kjump.kexec import second_kernel as described
from kjump.kexec.linux import LinuxPeer, Surroundings, elf_headers_size, low_memory_segment, read_kernel, read_once
from kjump.kexec.placement import window_here
from kjump.kexec.plan import ARCH_X86_64, PRESERVE_CONTEXT, Plan, make_plan
from kjump.kexec.window import DEFAULT_SIZE, WindowLayout, lay_out, split_low_memory
from kjump.memory import PAGE_SIZE
from kjump.peers.registry import Peer
from kjump.ranges import Range, RangeSet

ROLE = "resident"
_KEYS = {"name", "kernel", "initrd", "append", "window_size"}


@dataclass(frozen=True)
class Declared:
    """A peer as declared: `initrds` are concatenated, `append` is added to its kernel's command line.

    When `window` is None one of `window_size` bytes is chosen.
    """

    name: str
    kernel: Path
    initrds: tuple[Path, ...]
    append: str = ""
    window: Range | None = None
    window_size: int = DEFAULT_SIZE


def read_declaration(text: str, *, kernel: Path | None = None, initrd: Path | None = None) -> list[Declared]:
    """Read a TOML file with a table `[[peer]]` for each peer; `kernel` and `initrd` are the defaults.

    UsageError, with the reason, when the file is not such a declaration.
    """
    import tomllib

    try:
        tables = tomllib.loads(text).get("peer", [])
    except tomllib.TOMLDecodeError as error:
        raise UsageError(f"the declaration of peers is not TOML: {error}") from None
    if not isinstance(tables, list) or not tables or not all(isinstance(table, dict) for table in tables):
        raise UsageError("the declaration has no [[peer]]")
    declared = [_declared(number, table, kernel, initrd) for number, table in enumerate(tables, 1)]
    if len({d.name for d in declared}) < len(declared):
        raise UsageError("two peers in the declaration have the same name")
    return declared


def _declared(number: int, table: Mapping[str, object], kernel: Path | None, initrd: Path | None) -> Declared:
    name = table.get("name", f"B{number}")
    if unknown := set(table) - _KEYS:
        raise UsageError(f"peer {name}: unknown key {', '.join(sorted(unknown))}; known are {', '.join(sorted(_KEYS))}")
    record = Record(table, f"peer {name}")
    initrds: tuple[str, ...] = (str(initrd),) if initrd else ()
    try:
        if "initrd" in record:
            initrds = (record.text("initrd"),) if isinstance(table["initrd"], str) else record.texts("initrd")
        image = Path(record.text("kernel")) if "kernel" in record else kernel
        if image is None or not initrds:
            raise UsageError(f"peer {name}: give its kernel and initrd")
        return Declared(
            record.optional("name", record.text, f"B{number}"),
            image,
            tuple(map(Path, initrds)),
            record.optional("append", record.text, ""),
            window_size=record.optional("window_size", record.integer, DEFAULT_SIZE),
        )
    except FormatError as error:
        raise UsageError(f"{error} in the declaration of peers") from None


@dataclass(frozen=True)
class Arrangement:
    """Peers with their addresses: `plan` loads them all; `page` and `cookie` are the channel's."""

    plan: Plan
    peers: list[Peer]
    page: hugetlbfs.StandingPage
    cookie: bytes


def arrange(declared: Sequence[Declared], channel: Path) -> Arrangement:
    """Place the peers in memory, and make the channel's page in the file `channel`.

    KjumpError when that fails; the page does not exist then.
    """
    around = _machine()
    windows = _windows(declared)
    lows = split_low_memory(around.low, len(declared))
    lent = RangeSet([*windows, *lows])
    cookie = os.urandom(mailbox.COOKIE_SIZE)
    page = hugetlbfs.create(channel, lent)
    try:
        fields = dataclasses.replace(
            around.gate, flags=FLAG_INIT_CPUS | FLAG_CHOOSE, mailbox=page.address, cookie=cookie
        )
        around = dataclasses.replace(around, gate=fields, lent=lent)
        layouts = [layout_of(window, around, len(windows)) for window in windows]
        plan = _plan(declared, layouts, lows, around)
    except BaseException:
        page.close()
        hugetlbfs.remove(channel)
        raise
    peers = [
        Peer(
            d.name,
            str(d.kernel),
            [str(i) for i in d.initrds],
            d.append,
            layout.window,
            low,
            layout.gate,
        )
        for d, layout, low in zip(declared, layouts, lows, strict=True)
    ]
    return Arrangement(plan, peers, page, cookie)


def _machine() -> Surroundings:
    """Return what peers are told of the machine; its gate has A's GDT."""
    with kernel_memory.Kcore() as kcore:
        note = kcore.vmcoreinfo_note()
        base, limit = kernel_memory.boot_cpu_gdt(kcore)
    return described.describe_machine(Gate(a_gdt_base=base, a_gdt_limit=limit), vmcoreinfo_note=note)


def pages_to_restart(peer: Peer, peers: Sequence[Peer]) -> dict[int, bytes]:
    """Return the contents (physical page address -> page) from which `peer`, one of `peers`, is started anew.

    The pages of its gate and its door are left out. KjumpError when its files cannot be read, or do not fit any more.
    """
    lent = RangeSet(place for p in peers for place in p.places)
    around = dataclasses.replace(_machine(), low=peer.low, lent=lent)
    layout = layout_of(peer.window, around, len(peers))
    declared = Declared(peer.name, Path(peer.kernel), tuple(map(Path, peer.initrds)), peer.append)
    found = {}
    for segment in linux_peer(declared, layout).segments(around, peers[0].gate):
        for offset in range(0, len(segment.data), PAGE_SIZE):
            address = segment.address + offset
            if not layout.gate <= address < layout.boot_params:
                found[address] = segment.data[offset : offset + PAGE_SIZE]
    return found


def _windows(declared: Sequence[Declared]) -> list[Range]:
    """Return a window for each peer; the declared windows are placed first, the others around them."""
    taken = [d.window for d in declared if d.window is not None]
    windows = []
    for d in declared:
        window = d.window
        if window is None:
            window = window_here(d.window_size, taken)
            taken.append(window)
        windows.append(window)
    if RangeSet(windows).size < sum(w.size for w in windows):
        raise PlanError("the windows of two peers overlap")
    return windows


def headers_size(around: Surroundings, peers: int) -> int:
    """Return the bytes set aside in a window for the ELF headers of /proc/vmcore when there are `peers` peers."""
    return elf_headers_size(around.ram, around.vmcoreinfo_note, 2 * peers)


def layout_of(window: Range, around: Surroundings, peers: int) -> WindowLayout:
    """Return the layout of `window`, of one of `peers` peers; PlanError when it cannot hold a kernel."""
    size = headers_size(around, peers)
    return lay_out(window, elf_headers_size=size, memory_end=around.memory_end, huge=around.huge)


def _plan(
    declared: Sequence[Declared], layouts: Sequence[WindowLayout], lows: Sequence[Range], around: Surroundings
) -> Plan:
    first = layouts[0].gate
    segments = []
    for d, layout, low in zip(declared, layouts, lows, strict=True):
        segments += linux_peer(d, layout).segments(dataclasses.replace(around, low=low), first)
        segments.append(low_memory_segment(low))
    return make_plan(first + GATE_ENTRY, segments, ARCH_X86_64 | PRESERVE_CONTEXT)


def linux_peer(declared: Declared, layout: WindowLayout) -> LinuxPeer:
    """Return the peer with its files read, to be loaded in `layout`; KjumpError when they cannot be read."""
    try:
        kernel = read_kernel(declared.kernel)
        initrd = cpio.join([read_once(path) for path in declared.initrds])
    except OSError as error:
        raise UsageError(f"peer {declared.name}: cannot read {error.filename}: {error.strerror}") from None
    with kernel_memory.Kcore() as kcore:
        line = described.second_command_line(kernel, ROLE, kcore)
    options = [
        layout.way_back.option,
        f"kjump.gate={layout.gate:#x}",
        cmdline.word("kjump.peer", declared.name),
        declared.append,
    ]
    return LinuxPeer(kernel, initrd, cmdline.join([line, *options]), layout)
