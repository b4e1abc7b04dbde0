"""PID 1 of the laboratory's Linux A: runs commands that come on the status channel, and says how they end.

One JSON object a line: {"id": N, "run": [argv...]} comes in, {"id": N, "status": S, "stdout": ..., "stderr": ...}
goes out. Commands run side by side.
"""

from __future__ import annotations

import json
import os
import subprocess
import threading
import time
from pathlib import Path
from typing import Any

from kjump.init import system
from kjump.init.status import find_port
from kjump.kexec import syscalls

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
    system.mount("none", "/", None, 32, "")  # MS_REMOUNT: read-write, whatever the boot loader said
    os.environ.update(_ENVIRONMENT)
    subprocess.run(["busybox", "ip", "link", "set", "lo", "up"], check=False)
    options = system.kernel_options()
    path = _wait_for_port(options.get("kjump.status", "kjump.status"))
    fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    _Agent(fd).serve()


def _wait_for_port(name: str) -> str:
    while True:
        path = find_port(name)
        if path is not None:
            return path
        time.sleep(0.05)


class _Agent:
    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._lock = threading.Lock()

    def _send(self, message: dict[str, Any]) -> None:
        data = json.dumps(message).encode() + b"\n"
        with self._lock:
            while data:
                data = data[os.write(self._fd, data) :]

    def serve(self) -> None:
        self._send({"event": "ready", "uptime": system.uptime()})
        pending = b""
        while True:
            received = os.read(self._fd, 65536)
            if not received:
                time.sleep(0.02)  # nobody has the other end open
                continue
            *lines, pending = (pending + received).split(b"\n")
            for line in lines:
                request = json.loads(line)
                threading.Thread(target=self._run, args=(request["id"], request["run"])).start()

    def _run(self, number: int, command: list[str]) -> None:
        try:
            done = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False)
            status, stdout, stderr = done.returncode, done.stdout, done.stderr
        except OSError as error:
            status, stdout, stderr = 127, "", f"{command[0]}: {error.strerror}"
        self._send({"id": number, "status": status, "stdout": stdout, "stderr": stderr})


def power_off() -> None:
    """Leave the file systems clean and switch the guest off; run as a command in the guest."""
    os.sync()
    # Emergency remount read-only: works with files still open for writing, and leaves a clean ext4.
    Path("/proc/sysrq-trigger").write_text("u")
    while " rw" in next(line for line in Path("/proc/mounts").read_text().splitlines() if " / ext4" in line):
        time.sleep(0.02)
    os.sync()
    syscalls.power_off()


if __name__ == "__main__":
    main()
