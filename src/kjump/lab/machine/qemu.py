"""A virtual machine as a context manager: a QEMU process, its status channel, QMP, serial console and console log.

QEMU ends with this process. No other module starts QEMU.
"""

from __future__ import annotations

import contextlib
import functools
import os
import re
import shlex
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType

from qemu.qmp import QMPError

from kjump.errors import LabError
from kjump.formats.record import Record
from kjump.lab.machine import tools
from kjump.lab.machine.console import SerialConsole
from kjump.lab.machine.guest_channel import GuestChannel, LostMachineError
from kjump.lab.machine.qemu_config import VirtualMachineConfig
from kjump.lab.machine.qmp import QmpConnection

QEMU = "qemu-system-x86_64"
QEMU_PACKAGE = "qemu-system-x86"
_CONNECT = 60.0
"""Timeout in seconds for QEMU to start, also when it preallocates gigabytes."""
_POWER_OFF = ("python3", "-c", "from kjump.lab.guest.agent import power_off; power_off()")


@dataclass
class VirtualMachine:
    """A running QEMU; a context manager. `started` is the monotonic time of the machine's start."""

    config: VirtualMachineConfig
    log: Path | None = None
    folder: Path = field(init=False)
    guest: GuestChannel = field(init=False)
    started: float = field(init=False)
    _last_words: str = field(init=False, default="", repr=False)

    def __enter__(self) -> VirtualMachine:
        """Start QEMU and connect to it; LabError when it does not start."""
        if shutil.which(QEMU) is None:
            raise LabError(f"{QEMU} is not installed: apt install {QEMU_PACKAGE}")
        parent = [tools.path_of("setpriv"), "--pdeathsig", "KILL"]
        self.folder = Path(tempfile.mkdtemp(prefix="kjump-vm-"))
        command = [*parent, QEMU, *self.config.arguments(self.folder)]
        self.started = time.monotonic()
        self._errors = (self.folder / "qemu.err").open("w")
        self._process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=self._errors, stderr=self._errors)
        try:
            self._console = SerialConsole(self._connect("console"))
            self.guest = GuestChannel(self._connect("status"), self._ending)
            self._qmp = QmpConnection(self.folder / "qmp")
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

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End QEMU if it still runs, keep the console log if the configuration says so, and remove all other files.

        After an exception the CPUs' registers are added to the log, since the guest may hang.
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
        """Return the CPUs' registers, read twice to show whether they change; empty if QEMU does not answer."""
        found = ""
        with contextlib.suppress(Exception):
            for wait, moment in ((0, "when it was given up"), (1, "a second later")):
                time.sleep(wait)
                said = str(self.execute("human-monitor-command", **{"command-line": "info registers -a"}))
                found += f"\n--- the CPUs {moment}\n" + "".join(_REGISTERS.findall(said))
        return found

    def console(self) -> str:
        """Return all output of the serial console so far."""
        if not hasattr(self, "_console"):
            return ""  # QEMU did not start
        if self._process.poll() is not None:
            self._console.wait_for_the_end()
        return self._console.text()

    def type(self, keys: bytes) -> None:
        """Send `keys` to the serial console."""
        self._console.type(keys)

    def execute(self, command: str, **arguments: object) -> object:
        """Run a QMP command and return its result."""
        return self._qmp.execute(command, arguments)

    def _status(self, query: str) -> str:
        """Return the field `status` of a QMP query."""
        return Record(self.execute(query), f"the answer to QMP's {query}").text("status")

    def save_state(self, path: Path) -> None:
        """Stop the machine and write its state to `path`; copy its disks before `go_on` lets it run again."""
        self.execute("stop")
        self.execute("migrate-set-parameters", **{"max-bandwidth": 1 << 40})
        self.execute("migrate", uri=f"exec:cat > {shlex.quote(str(path))}")
        self._wait_while(lambda: self._status("query-migrate") in ("setup", "active"), "state to be written")
        status = self._status("query-migrate")
        if status != "completed":
            raise LabError(f"the state of the machine could not be written: {status}")

    def go_on(self) -> None:
        """Let a stopped machine run; a machine started from a state runs when the state has been read."""
        self._wait_while(lambda: self._status("query-status") == "inmigrate", "state to be read")
        self.execute("cont")

    def _wait_while(self, condition: Callable[[], bool], what: str) -> None:
        deadline = time.monotonic() + 120
        while condition():
            if time.monotonic() > deadline:
                raise LostMachineError(f"waiting for the {what}: nothing came within 120 s")
            time.sleep(0.02)

    def kill(self) -> None:
        """Cut the machine's power (SIGKILL of QEMU)."""
        self._process.kill()
        self._process.wait()

    def power_off(self, timeout: float = 180.0) -> str:
        """Let the guest unmount cleanly and switch itself off; return the reason as `wait_off`."""
        self.guest.start(*_POWER_OFF)
        return self.wait_off(timeout)

    def wait_off(self, timeout: float = 60.0) -> str:
        """Wait until the machine is off; return the reason: "guest-shutdown", "guest-reset" (also a triple fault), ...

        LostMachineError when it is still on after `timeout` seconds.
        """
        try:
            self._process.wait(timeout)
        except subprocess.TimeoutExpired:
            raise LostMachineError(f"the machine is still on after {timeout:.0f} s") from None
        return self._ending()

    def _ending(self) -> str:
        """Return why the machine ended, or QEMU's exit status (negative: a signal) and its last line of output."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(5)
        deadline = time.monotonic() + 2
        while self._qmp.shutdown_reason is None and time.monotonic() < deadline:
            time.sleep(0.01)
        if self._qmp.shutdown_reason is not None:
            return self._qmp.shutdown_reason
        return ": ".join([f"QEMU exited {self._process.poll()}", *self._said().splitlines()[-1:]])

    def _said(self) -> str:
        """Return QEMU's output, also after the machine's folder has been removed."""
        with contextlib.suppress(FileNotFoundError):
            self._last_words = (self.folder / "qemu.err").read_text().strip()
        return self._last_words


_REGISTERS = re.compile(r"^(?:CPU#|R[A-Z0-9]+ ?=|EAX|ESI|EIP|CR0).*\n", re.MULTILINE)
"""Lines of QEMU's register dump with a CPU's number, general registers, program counter, flags, control registers."""


@functools.cache
def accelerator(kernel: Path) -> str:
    """Return the accelerator that works on this host, "kvm" or "tcg", found by booting `kernel`.

    A /dev/kvm may exist and still not run a guest (nested virtualisation without hardware support).
    """
    if not os.access("/dev/kvm", os.R_OK | os.W_OK):
        return "tcg"
    config = VirtualMachineConfig(kernel, None, "console=ttyS0 panic=-1", accelerator="kvm", cpu="host", cpus=1)
    try:
        with VirtualMachine(config) as machine:
            # Without a root file system the kernel panics; with -no-reboot QEMU then ends as after an ordinary reset.
            if machine.wait_off(20) == "guest-reset" and "Kernel panic" in machine.console():
                return "kvm"
    except (LabError, QMPError):
        pass
    return "tcg"
