"""One example of each type that crosses a process, a disk or a jump: every field says something."""

from pathlib import Path

from kjump.formats import ext4, xfs
from kjump.formats.e820 import RAM, RESERVED, E820Entry
from kjump.formats.jbd2 import Journal, LogEnd
from kjump.formats.superblock import Details, MemoryUse, Saved
from kjump.gates import Gate
from kjump.hibernate.clock import Moment
from kjump.hibernate.jobs import Assignment, CommandJob, LookJob, NoJob, RestoreJob, SaveJob, ShellJob, Then
from kjump.hibernate.report import Report, Stamps
from kjump.host.kernel_memory import FreePages
from kjump.image.facts import Hook, ImageFacts, Kind, SystemFacts, Tool
from kjump.memory import PAGE_SIZE
from kjump.peers.on_disk import Part, Stored
from kjump.peers.registry import Peer, State
from kjump.peers.standby import Wanted
from kjump.ranges import Range
from kjump.target.device import Place
from kjump.target.states import Departure, DiskState, FileSystem, Lineage, Mounted, Written

MIB = 1 << 20
COOKIE = bytes(range(16))
MEMORY = MemoryUse(5, 6)
SAVED = Saved(1000, 500, 0.5, 1.25, MEMORY, -3)
SYSTEM = SystemFacts(
    release="6.1.0",
    cpu_model="a CPU",
    cpu_flags=frozenset({"fpu", "la57"}),
    la57=True,
    memory_map=(E820Entry(Range(0, 0x9F000), RAM), E820Entry(Range(0xF0000, MIB), RESERVED)),
    window=Range(16 * MIB, 144 * MIB),
    low=Range(PAGE_SIZE, 0x9F000),
    gate_address=143 * MIB,
    elf_headers_size=PAGE_SIZE,
    loops_per_jiffy=4_000_000,
)
IDENTITY = ext4.Identity(
    ext4.Mounts("00" * 16, 1, 2, 3, 1, "/"), Journal(7, 8, -5, "11" * 16), LogEnd(9, 10, "22" * 32)
)
XFS = xfs.Identity("33" * 16, 4, 5, "44" * 32)
MOUNTED = Mounted("/dev/sda1", "/", "ext4", True)
FILE_SYSTEM = FileSystem(MOUNTED, DiskState("ab" * 32, IDENTITY, XFS))
DEPARTURE = Departure(Lineage("boot/1", "c0ffee"), (Written("/dev/sda1", (3, 24)),))
HOOK = Hook(b"#!/bin/sh\n", (Tool("/bin/busybox", "cd" * 32),), 30.0)
FACTS = ImageFacts(
    kind=Kind.HIBERNATION,
    system=SYSTEM,
    gate=Gate(mailbox=0x12345000, cookie=COOKIE, a_gdt_base=0xFFFFFFFF80000000),
    kept_head=0x5000,
    saved_at=1e9,
    file_systems=(FILE_SYSTEM,),
    departure=DEPARTURE,
    hook=HOOK,
    dump_level=31,
)
REPORT = Report(
    reason="r",
    traceback="t",
    panic="p",
    log=("a", "b"),
    boot_seconds=1.5,
    boot_seconds_cold=2.5,
    vmcoreinfo=(4096, 1024),
    saved=SAVED,
    stamps=Stamps(1, 2, 3, 4),
    seed=bytes(32),
    clock=Moment(1e9, 5, 0.5),
    restored_bytes=6,
    restore_seconds=0.25,
    restore_memory=MEMORY,
    hook_seconds=0.75,
    rolled_back=2,
    status=-9,
    pid=7,
    output="o",
    cut=8,
    resident=True,
    release="6.12.0",
)
SAVE_JOB = SaveJob(
    kind=Kind.SNAPSHOT,
    then=Then.BACK,
    target=Place("/dev/sda2", (Range(0, 4096), Range(8192, 12288))),
    cookie=COOKIE,
    system=SYSTEM,
    file_systems=(MOUNTED,),
    ram=(Range(PAGE_SIZE, 512 * MIB),),
    free_pages=FreePages.ZERO,
    level=3,
    dump_level=1,
    hook=HOOK,
    departure=DEPARTURE,
    fault="panic@0.5",
)
STORED = Stored("/var/peer", 4096, "1-00", (Part(4096, 8192, 100, 50, 7),))
PEER = Peer("B", "k", ["i"], "quiet", SYSTEM.window, SYSTEM.low, 143 * MIB, 4096, "6.1.0", 3, False, "gone", 1.5)
STATE = State("boot", COOKIE.hex(), 2 * MIB, 0x5002, {"kexec_image": 1, "x": 2}, 4, STORED, [PEER])
EXAMPLES = [
    MEMORY,
    SAVED,
    Details("r", 1, SAVED, "boot"),
    SYSTEM,
    *(IDENTITY, IDENTITY.superblock, IDENTITY.journal, IDENTITY.log, XFS),
    *(MOUNTED, FILE_SYSTEM.state, FILE_SYSTEM, DEPARTURE.lineage, DEPARTURE.written[0], DEPARTURE),
    *(HOOK, HOOK.tools[0], FACTS),
    *(REPORT, REPORT.stamps, REPORT.clock),
    SAVE_JOB.target,
    *(
        Assignment(job, 4096, 5.5, 30, bytes(32))
        for job in (
            SAVE_JOB,
            LookJob(("info",)),
            CommandJob(("a", "b"), True),
            ShellJob(),
            NoJob(),
            RestoreJob(Kind.SNAPSHOT, SAVE_JOB.target, COOKIE, REPORT),
        )
    ),
    *(STORED.parts[0], STORED, PEER, STATE, Wanted(Path("k"), Path("i"), 96 * MIB)),
]
