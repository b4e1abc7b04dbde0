"""PID 1 of the lab's systems: runs commands that arrive on the status channel, and reports their end.

The messages are defined in `messages`. Commands run concurrently.
"""

from __future__ import annotations

import json
import os
import subprocess
import threading
import time
from pathlib import Path

from kjump.errors import FormatError
from kjump.formats.record import JsonObject, Record
from kjump.init import system
from kjump.init.status import find_port
from kjump.kexec import syscalls
from kjump.lab.guest.messages import CommandEnd, CommandRequest

_ENVIRONMENT = {
    "PATH": "/usr/bin:/usr/sbin:/bin:/sbin",
    "HOME": "/root",
    "TERM": "dumb",
    "PYTHONUNBUFFERED": "1",
}


def main() -> None:
    """Set the system up and serve the status channel for ever."""
    system.mount_proc()
    system.mount_sys_and_dev()
    for kind, where in (("tmpfs", "/run"), ("tmpfs", "/tmp"), ("devpts", "/dev/pts")):
        os.makedirs(where, exist_ok=True)  # noqa: PTH103
        system.mount(kind, where, kind)
    system.mount("none", "/", None, 32, "")  # MS_REMOUNT: read-write, also if the boot mounted it read-only
    os.environ.update(_ENVIRONMENT)
    subprocess.run(["busybox", "ip", "link", "set", "lo", "up"], check=False)
    options = system.kernel_options()
    path = _wait_for_port(options.get("kjump.status", "kjump.status"))
    fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    Agent(fd).serve()


def _wait_for_port(name: str) -> str:
    while True:
        path = find_port(name)
        if path is not None:
            return path
        time.sleep(0.05)


class Agent:
    """Serves the status channel."""

    def __init__(self, fd: int) -> None:
        """Serve the channel that is open as `fd`."""
        self._fd = fd
        self._lock = threading.Lock()

    def _send(self, message: JsonObject) -> None:
        data = json.dumps(message).encode() + b"\n"
        with self._lock:
            while data:
                data = data[os.write(self._fd, data) :]

    def serve(self) -> None:
        """Send the event "ready", and run commands for ever."""
        self._send({"event": "ready", "uptime": system.uptime()})
        pending = b""
        while True:
            received = os.read(self._fd, 65536)
            if not received:
                time.sleep(0.02)  # the host's end is not open
                continue
            *lines, pending = (pending + received).split(b"\n")
            for line in lines:
                self.take(line)

    def take(self, line: bytes) -> None:
        """Start the command of a request in a thread; a line that is no request is answered by an event."""
        try:
            request = CommandRequest.from_json(Record.parse(line, "a request"))
        except FormatError as error:
            self._send({"event": "request-refused", "reason": str(error)})
            return
        threading.Thread(target=self._run, args=(request,)).start()

    def _run(self, request: CommandRequest) -> None:
        command = request.command
        try:
            done = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False)
            status, stdout, stderr = done.returncode, done.stdout, done.stderr
        except (OSError, ValueError, IndexError) as error:  # no such program, a zero byte in an argument, no program
            status, stdout, stderr = 127, "", f"cannot run {' '.join(command)!r}: {error}"
        self._send(CommandEnd(request.number, status, stdout, stderr).to_json())


def power_off() -> None:
    """Remount the file systems read-only and switch the guest off; run as a command in the guest."""
    os.sync()
    # Emergency remount read-only: works with files still open for writing, and leaves a clean ext4.
    Path("/proc/sysrq-trigger").write_text("u")
    while " rw" in next(line for line in Path("/proc/mounts").read_text().splitlines() if " / ext4" in line):
        time.sleep(0.02)
    os.sync()
    syscalls.power_off()


if __name__ == "__main__":
    main()
