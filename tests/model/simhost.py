"""What a simulated machine must put in the product's place: little, for interfaces do the rest."""

from __future__ import annotations

import contextlib
import io
import mmap
import os
import random
import shutil
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import simmemory
from simmachine import EXTENTS, TARGET, Left, Machine

from kjump.hibernate import after_jump, resume, rollback
from kjump.host import kernel_memory, root
from kjump.host.locked_memory import HUGE_PAGE
from kjump.image import reserved_memory
from kjump.init import main as pid1
from kjump.init import system
from kjump.init.roles import boot, mount_root
from kjump.kexec import loader, mailbox
from kjump.memory import PAGE_SIZE
from kjump.target import device, disks
from kjump.target import file as target_file
from kjump.target.device import Target


class _Pages:
    """A's pinned page, in simulated memory: see `host.locked_memory.HostPages`."""

    def __init__(self, machine: Machine) -> None:
        self._memory = machine.memory
        self.addresses = (simmemory.MAILBOX,)

    def write(self, index: int, data: bytes) -> None:
        self._memory.write(self.addresses[index], data)

    def read(self, index: int, length: int = PAGE_SIZE) -> bytes:
        return self._memory.read(self.addresses[index], length)

    def check(self) -> None:
        pass


class _Huge:
    """A boot kernel's huge pages: see `host.locked_memory.HugeFile`."""

    def __init__(self, machine: Machine, name: str, count: int) -> None:
        self.count = count
        self.fd = os.memfd_create(name)
        os.ftruncate(self.fd, count * HUGE_PAGE)
        self.memory = mmap.mmap(self.fd, count * HUGE_PAGE)
        self.addresses = [simmemory.HUGE_AT + i * HUGE_PAGE for i in range(count)]
        machine.room = self

    def read(self, address: int, length: int) -> bytes:
        """Return what lies at a physical address."""
        at = address - simmemory.HUGE_AT
        return self.memory[at : at + length]

    def release(self) -> None:
        if not self.memory.closed:
            self.memory.close()
            os.close(self.fd)


def _tell(machine: Machine) -> Any:
    def tell(console: Any, name: str, error: BaseException) -> None:
        if isinstance(error, Left) or not machine.kernel.alive:
            raise Left
        machine.surprised(name, error)
        say(console, name, error)

    say = pid1._tell
    return tell


def _patches(machine: Machine) -> list[Any]:
    def file_target(path: str) -> Target:
        return Target(TARGET, writable=True, extents=EXTENTS)

    hook = threading.excepthook
    nothing = lambda *_, **__: None  # noqa: E731
    ends = SimpleNamespace(_exit=lambda _: machine.panic())
    pairs: list[tuple[Any, str, Any]] = [
        (mailbox, "HostPages", lambda count, avoid: _Pages(machine)),
        (reserved_memory, "HugeFile", lambda name, count: _Huge(machine, name, count)),
        (after_jump, "set_clock", lambda *_: 0.0),
        (device, "_PAUSES", (0.0,) * 5),
        (rollback, "everyone_stopped", contextlib.nullcontext),
        (target_file, "FileTarget", file_target),
        (pid1, "_tell", _tell(machine)),
        (pid1, "time", SimpleNamespace(sleep=nothing)),
        (pid1, "os", ends),
        (system, "mount_proc", nothing),
        (system, "mount_sys_and_dev", nothing),
        (mount_root, "mount", nothing),
        (mount_root, "switch_root", lambda *_: machine.leave("ordinary")),
        (boot, "KERNEL", machine.folder / "boot/vmlinuz"),
        (boot, "own_initrd", simmemory.initrd),
        (resume, "fresh_seed", lambda *_: bytes(32)),
        (threading, "excepthook", lambda args: None if isinstance(args.exc_value, Left) else hook(args)),
    ]
    return [mock.patch.object(*pair) for pair in pairs]


@contextlib.contextmanager
def machine(seed: object, **how: Any) -> Iterator[Machine]:
    """Have a machine of which all of the product is part meanwhile."""
    folder = Path(tempfile.mkdtemp(prefix="kjump-", dir="/dev/shm" if Path("/dev/shm").is_dir() else None))
    try:
        made = Machine(folder, random.Random(str(seed)), **how)
        with contextlib.ExitStack() as stack:
            stack.callback(made.close)
            for context in (
                root.below(folder),
                loader.used(made),
                disks.used(made.disks),
                contextlib.redirect_stdout(io.StringIO()),
                *_patches(made),
            ):
                stack.enter_context(context)
            kernel_memory.forget_symbols()
            stack.callback(kernel_memory.forget_symbols)
            if made.file:
                from kjump.formats.superblock import State

                with Target(TARGET, writable=True, extents=EXTENTS) as target:
                    target.write_fresh(State.EMPTY, 0)
                made.log.clear()
            yield made
    finally:
        shutil.rmtree(folder, ignore_errors=True)
