"""A QEMU machine as a context manager: QMP, a status channel of its own, disks, a console log.

The guest's answers come on a virtio-serial port, never scraped from the console. A machine that goes away
is `LostMachineError`, apart from a command in it that failed. The process dies with ours.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import itertools
import json
import os
import re
import shlex
import shutil
import socket
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

from qemu.qmp import QMPClient, QMPError

from kjump.errors import LabError

PORT_NAME = "kjump.status"
QEMU = "qemu-system-x86_64"
CPU = "max,erms=off,fsrm=off"
"""A CPU with all that QEMU knows, but for quick string instructions: QEMU's translator carries out `rep movsb` and
`rep stosb` byte by byte, and both kernels and libraries prefer them where a CPU says that they are quick."""
WATCHDOG = ("-device", "i6300esb", "-action", "watchdog=inject-nmi")
"""More arguments for a machine with a watchdog that ends a hang by an NMI."""


class LostMachineError(LabError):
    """The machine ended, or said nothing for too long, while something was expected of it."""


@dataclass(frozen=True)
class IoError:
    """A bad block: each `operation` ("read", "write") of the block with `byte` of disk `disk` (0: vda) fails."""

    disk: int
    operation: str
    byte: int

    def drive(self, path: Path) -> str:
        """Return the words of a -drive that has the disk `path` fail so."""
        rule = {"event": "none", "iotype": self.operation, "errno": "5", "sector": str(self.byte // 512), "once": "off"}
        words = [f"file.inject-error.0.{name}={value}" for name, value in rule.items()]
        return ",".join(["file.driver=blkdebug", "file.image.driver=file", f"file.image.filename={path}", *words])


@dataclass(frozen=True)
class MachineConfig:
    """A machine to start: sizes in bytes, `disks` raw image files in the order vda, vdb, ...

    `cpu` is a QEMU CPU model; `extra` more QEMU arguments; `accelerator` one found by `accelerator()`.
    `incoming` is a state that `Machine.save_state` wrote, for a machine that goes on from there. With `preallocate` the
    host gives all of its memory before it is switched on, not page by page as it is touched: for measurements.
    """

    kernel: Path
    initrd: Path | None
    command_line: str
    memory: int = 768 << 20
    cpus: int = 2
    cpu: str = CPU
    disks: tuple[Path, ...] = ()
    extra: tuple[str, ...] = ()
    accelerator: str = "tcg"
    io_errors: tuple[IoError, ...] = ()
    incoming: Path | None = None
    preallocate: bool = False

    def arguments(self, folder: Path) -> list[str]:
        """Return QEMU's command line; its sockets lie in `folder`."""
        accelerator = "tcg,thread=multi" if self.accelerator == "tcg" else self.accelerator
        machine = [QEMU, "-nodefaults", "-display", "none", "-no-reboot", "-machine", "q35"]
        machine += [
            "-accel",
            accelerator,
            "-cpu",
            self.cpu,
            "-smp",
            str(self.cpus),
            "-m",
            f"{self.memory >> 20}M",
        ]
        # Linux counts the timer's interrupts while it loops, and panics ("IO-APIC + timer doesn't work!") when an
        # emulator on a busy host has been late with them. Under KVM it leaves that out by itself.
        machine += ["-kernel", str(self.kernel), "-append", f"{self.command_line} no_timer_check"]
        if self.initrd is not None:
            machine += ["-initrd", str(self.initrd)]
        if self.preallocate:
            backend = f"memory-backend-ram,id=ram,size={self.memory >> 20}M,prealloc=on,prealloc-threads={self.cpus}"
            machine += ["-object", backend, "-machine", "memory-backend=ram", "-S"]
        if self.incoming is not None:
            machine += ["-incoming", f"exec:cat {shlex.quote(str(self.incoming))}"]
        return [*machine, *_channels(folder), *self._disks(), "-device", "virtio-rng-pci", *self.extra]

    def _disks(self) -> Iterator[str]:
        for index, path in enumerate(self.disks):
            failing = [error.drive(path) for error in self.io_errors if error.disk == index]
            file = failing[0] if failing else f"file={path}"
            yield from ("-drive", f"{file},format=raw,if=none,id=disk{index},cache=none,aio=threads")
            yield from ("-device", f"virtio-blk-pci,drive=disk{index}")


def _channels(folder: Path) -> list[str]:
    def chardev(name: str) -> str:
        return f"socket,id={name},path={folder / name},server=on,wait=off"

    return [
        *("-chardev", chardev("qmp"), "-mon", "chardev=qmp,mode=control"),
        *("-chardev", chardev("console"), "-serial", "chardev:console"),
        *("-device", "virtio-serial-pci", "-chardev", chardev("status")),
        *("-device", f"virtserialport,chardev=status,name={PORT_NAME}"),
    ]


@dataclass(frozen=True)
class Event:
    """Something the guest said: its `name`, its other `details`, and when it reached us (monotonic seconds)."""

    name: str
    details: dict[str, Any]
    time: float


@dataclass(frozen=True)
class Reply:
    """The end of a command in the guest: exit `status`, and what it printed."""

    status: int
    stdout: str
    stderr: str
    time: float


class Guest:
    """The host's end of the status channel: events as they come, commands and their replies."""

    def __init__(self, connection: socket.socket, ending: Callable[[], str]) -> None:
        """Listen on `connection` from now on, in a thread of its own; `ending` says why the machine ended."""
        self._socket = connection
        self._ending = ending
        self._changed = threading.Condition()
        self._ended = False
        self.events: list[Event] = []
        self._replies: dict[int, Reply] = {}
        threading.Thread(target=self._listen, daemon=True).start()

    def _listen(self) -> None:
        with contextlib.suppress(OSError), self._socket.makefile("rb") as lines:
            for line in lines:
                self._take(line)
        with self._changed:
            self._ended = True
            self._changed.notify_all()

    def _take(self, line: bytes) -> None:
        now = time.monotonic()
        try:
            message = json.loads(line)
        except ValueError:
            return  # a line cut short by a power-off
        with self._changed:
            if "event" in message:
                self.events.append(Event(message.pop("event"), message, now))
            elif "id" in message:
                reply = Reply(message["status"], message["stdout"], message["stderr"], now)
                self._replies[message["id"]] = reply
            self._changed.notify_all()

    def wait(self, found: Callable[[], Any], what: str, timeout: float) -> Any:
        """Wait until `found` returns something, and return that; LostMachineError after `timeout` seconds."""
        deadline = time.monotonic() + timeout
        with self._changed:
            while True:
                result = found()
                if result is not None:
                    return result
                left = deadline - time.monotonic()
                if self._ended or left <= 0:
                    late = f"nothing came within {timeout:.0f} s"
                    why = f"the machine ended: {self._ending()}" if self._ended else late
                    raise LostMachineError(f"waiting for {what}: {why}")
                self._changed.wait(left)

    def seen(self, *names: str, since: float = 0.0) -> Event | None:
        """Return the first event with one of `names` from (monotonic) `since` on that has come, if one has."""
        return next((e for e in self.events if e.name in names and e.time >= since), None)

    def event(self, *names: str, timeout: float = 60.0, since: float = 0.0) -> Event:
        """Return the first event with one of `names` from (monotonic) `since` on, waiting for it."""

        result: Event = self.wait(lambda: self.seen(*names, since=since), f"event {' or '.join(names)}", timeout)
        return result

    def start(self, *command: str) -> int:
        """Start `command` in the guest; return the number under which its reply will come."""
        number = next(_numbers)
        self._socket.sendall(json.dumps({"id": number, "run": command}).encode() + b"\n")
        return number

    def finished(self, number: int) -> Reply | None:
        """Return the reply to command `number` if it has come."""
        return self._replies.get(number)

    def reply(self, number: int, timeout: float = 120.0) -> Reply:
        """Return the reply to command `number`, which another machine (before a resume) may have been given."""
        result: Reply = self.wait(lambda: self.finished(number), f"reply {number}", timeout)
        return result

    def run(self, *command: str, timeout: float = 120.0, check: bool = True) -> Reply:
        """Run `command` in the guest to its end; LabError when `check` is set and it fails."""
        reply = self.reply(self.start(*command), timeout)
        if check and reply.status:
            raise LabError(f"in the guest `{' '.join(command)}` exited {reply.status}: {reply.stderr.strip()}")
        return reply


_CONNECT = 60.0
"""Seconds in which QEMU is there, with gigabytes to preallocate too."""

_numbers = itertools.count(int(time.time()) << 8)


class _Qmp:
    """QMP on an event loop in a thread, for callers that are not asynchronous."""

    def __init__(self, path: Path) -> None:
        self._loop = asyncio.new_event_loop()
        threading.Thread(target=self._loop.run_forever, daemon=True).start()
        self._client = QMPClient("kjump")
        self.shutdown_reason: str | None = None
        self._run(self._client.connect(str(path)), 10)
        self._watching = asyncio.run_coroutine_threadsafe(self._watch(), self._loop)

    async def _watch(self) -> None:
        with (
            contextlib.suppress(QMPError, asyncio.CancelledError),
            self._client.listener("SHUTDOWN") as events,
        ):
            async for event in events:
                data = event["data"]
                assert isinstance(data, dict)
                self.shutdown_reason = str(data["reason"])

    def _run(self, awaitable: Any, timeout: float) -> Any:
        return asyncio.run_coroutine_threadsafe(awaitable, self._loop).result(timeout)

    def execute(self, command: str, arguments: dict[str, object] | None) -> Any:
        return self._run(self._client.execute(command, arguments), 60)

    def close(self) -> None:
        self._watching.cancel()
        with contextlib.suppress(Exception):
            self._run(self._client.disconnect(), 5)
        self._loop.call_soon_threadsafe(self._loop.stop)


@dataclass
class Machine:
    """A running QEMU; use as a context manager. `started` is the monotonic time at which it was switched on."""

    config: MachineConfig
    log: Path | None = None
    folder: Path = field(init=False)
    guest: Guest = field(init=False)
    started: float = field(init=False)
    _printed: bytearray = field(init=False, default_factory=bytearray, repr=False)
    _last_words: str = field(init=False, default="", repr=False)

    def __enter__(self) -> Machine:
        """Start QEMU and connect to it; LabError when it does not start."""
        if shutil.which(QEMU) is None:
            raise LabError(f"{QEMU} is not installed: apt install qemu-system-x86")
        self.folder = Path(tempfile.mkdtemp(prefix="kjump-vm-"))
        command = ["setpriv", "--pdeathsig", "KILL", *self.config.arguments(self.folder)]
        self.started = time.monotonic()
        self._errors = (self.folder / "qemu.err").open("w")
        self._process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=self._errors, stderr=self._errors)
        try:
            self._console = self._connect("console")
            self._listener = threading.Thread(target=self._listen, daemon=True)
            self._listener.start()
            self.guest = Guest(self._connect("status"), self._ending)
            self._qmp = _Qmp(self.folder / "qmp")
            if self.config.preallocate:
                self.started = time.monotonic()
                self.go_on()
        except QMPError as error:
            self.__exit__(None, None, None)
            raise LabError(f"QEMU ended as soon as it was started: {self._said() or error}") from None
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def _connect(self, name: str) -> socket.socket:
        deadline = time.monotonic() + _CONNECT
        while True:
            connection = socket.socket(socket.AF_UNIX)
            try:
                connection.connect(str(self.folder / name))
                return connection
            except OSError:
                connection.close()
                if self._process.poll() is not None or time.monotonic() > deadline:
                    raise LabError(f"QEMU did not start: {self._said()}") from None
                time.sleep(0.01)

    def _listen(self) -> None:
        # Not QEMU's own logfile=: a byte that finds the socket full is tried again, and is in that file twice.
        with contextlib.suppress(OSError):
            while data := self._console.recv(65536):
                self._printed += data

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End QEMU if it still runs, keep the console log where it was asked for, remove the rest.

        When it is given up because of an error, the log says what its CPUs were at: it may hang.
        """
        at_last = ""
        if self._process.poll() is None:
            at_last = self._cpus() if kind is not None and self.log is not None else ""
            self._process.kill()
        self._process.wait()
        self._said()
        self._errors.close()
        if hasattr(self, "_qmp"):
            self._qmp.close()
        if self.log is not None:
            with self.log.open("a") as log:
                log.write(self.console() + at_last)
        shutil.rmtree(self.folder, ignore_errors=True)

    def _cpus(self) -> str:
        """Return the CPUs' registers, twice: do they go on? Nothing if QEMU does not say."""
        found = ""
        with contextlib.suppress(Exception):
            for wait, moment in ((0, "when it was given up"), (1, "a second later")):
                time.sleep(wait)
                said = str(self.execute("human-monitor-command", **{"command-line": "info registers -a"}))
                found += f"\n--- the CPUs {moment}\n" + "".join(_REGISTERS.findall(said))
        return found

    def console(self) -> str:
        """Return all that came out of the serial console so far."""
        if self._process.poll() is not None and hasattr(self, "_listener"):
            self._listener.join(5)  # what QEMU wrote last is still on its way
        return self._printed.decode(errors="replace")

    def type(self, keys: bytes) -> None:
        """Send `keys` to the serial console."""
        self._console.sendall(keys)

    def execute(self, command: str, **arguments: object) -> Any:
        """Run a QMP command and return its result."""
        return self._qmp.execute(command, arguments or None)

    def save_state(self, path: Path) -> None:
        """Stop the machine and write its state to `path`; `go_on` lets it run again. Copy its disks before that."""
        self.execute("stop")
        self.execute("migrate-set-parameters", **{"max-bandwidth": 1 << 40})
        self.execute("migrate", uri=f"exec:cat > {shlex.quote(str(path))}")
        self._wait_while(lambda: self.execute("query-migrate")["status"] in ("setup", "active"), "state to be written")
        status = self.execute("query-migrate")["status"]
        if status != "completed":
            raise LabError(f"the state of the machine could not be written: {status}")

    def go_on(self) -> None:
        """Let a stopped machine run, or one that was started from a state once that has been read."""
        self._wait_while(lambda: self.execute("query-status")["status"] == "inmigrate", "state to be read")
        self.execute("cont")

    def _wait_while(self, condition: Callable[[], bool], what: str) -> None:
        deadline = time.monotonic() + 120
        while condition():
            if time.monotonic() > deadline:
                raise LostMachineError(f"waiting for the {what}: nothing came within 120 s")
            time.sleep(0.02)

    def kill(self) -> None:
        """Take the power away."""
        self._process.kill()
        self._process.wait()

    def wait_off(self, timeout: float = 60.0) -> str:
        """Wait until the machine is off; return why: "guest-shutdown", "guest-reset" (also a triple fault), ...

        LostMachineError when it is still on after `timeout` seconds.
        """
        try:
            self._process.wait(timeout)
        except subprocess.TimeoutExpired:
            raise LostMachineError(f"the machine is still on after {timeout:.0f} s") from None
        return self._ending()

    def _ending(self) -> str:
        """Return why the machine ended, or how QEMU itself did (a negative status is a signal) and its last line."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(5)
        deadline = time.monotonic() + 2
        while self._qmp.shutdown_reason is None and time.monotonic() < deadline:
            time.sleep(0.01)
        if self._qmp.shutdown_reason is not None:
            return self._qmp.shutdown_reason
        return ": ".join([f"QEMU exited {self._process.poll()}", *self._said().splitlines()[-1:]])

    def _said(self) -> str:
        """Return what QEMU printed; also once the machine is no more, and its folder with it."""
        with contextlib.suppress(FileNotFoundError):
            self._last_words = (self.folder / "qemu.err").read_text().strip()
        return self._last_words


_REGISTERS = re.compile(r"^(?:CPU#|R[A-Z0-9]+ ?=|EAX|ESI|EIP|CR0).*\n", re.MULTILINE)
"""Of what QEMU says of a CPU: its number, general registers, program counter and flags, control registers."""

_KERNEL_LINE = re.compile(r"\[ *\d+\.\d{6}\] [^\n]*\n")


def without_kernel_lines(console: str) -> str:
    """Return what programs wrote to a serial console: the kernel prints its lines at once, in the midst of theirs."""
    return _KERNEL_LINE.sub("", console)


@functools.cache
def accelerator(kernel: Path) -> str:
    """Return the accelerator that really runs a guest here: "kvm" or "tcg". Told by booting `kernel`.

    A /dev/kvm may exist and still not run anything (nested virtualisation without hardware support).
    """
    if not os.access("/dev/kvm", os.R_OK | os.W_OK):
        return "tcg"
    config = MachineConfig(kernel, None, "console=ttyS0 panic=-1", accelerator="kvm", cpu="host", cpus=1)
    try:
        with Machine(config) as machine:
            # Without a root file system a kernel that runs panics, and -no-reboot makes that an ordinary end.
            if machine.wait_off(20) == "guest-reset" and "Kernel panic" in machine.console():
                return "kvm"
    except (LabError, QMPError):
        pass
    return "tcg"
