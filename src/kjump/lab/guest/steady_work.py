"""Work that a switch must not disturb, in A and in a peer alike: counters, open files, a TCP connection, a timer.

`start` leaves a process for each behind; `verify` prints a JSON object: {"checks": name -> bool, "values": ...}. Run in
the guest or in a peer: `python3 -ISc 'from kjump.lab.guest.steady_work import main; main()' start|verify`. What it
imports must fit into a small initramfs.
"""

from __future__ import annotations

import fcntl
import json
import mmap
import os
import signal
import socket
import struct
import sys
import time
from collections.abc import Callable
from typing import Any

SLOTS = ("counter", "lines", "sent", "received", "wrong", "ticks", "late")
_BOARD = "/tmp/steady.board"
_LOG = "/tmp/steady.log"
_PIDS = "/tmp/steady.pids"
_PAUSE = 0.3
_SIOCSIFFLAGS = 0x8914
_IFF_UP_RUNNING = 0x41
_INTERVAL = 0.02


class _Board:
    """Counters in a file mapped by all processes of the work."""

    def __init__(self) -> None:
        fd = os.open(_BOARD, os.O_RDWR | os.O_CREAT, 0o600)
        os.ftruncate(fd, mmap.PAGESIZE)
        self._memory = mmap.mmap(fd, mmap.PAGESIZE)
        os.close(fd)

    def add(self, slot: str) -> None:
        at = SLOTS.index(slot) * 8
        (old,) = struct.unpack_from("<Q", self._memory, at)
        struct.pack_into("<Q", self._memory, at, old + 1)

    def values(self) -> dict[str, int]:
        return dict(zip(SLOTS, struct.unpack_from(f"<{len(SLOTS)}Q", self._memory), strict=True))


def _count(board: _Board) -> None:
    while True:
        board.add("counter")
        time.sleep(0.002)


def _append(board: _Board) -> None:
    with open(_LOG, "w") as log:  # noqa: PTH123
        number = 0
        while True:
            log.write(f"line {number}\n")
            log.flush()
            board.add("lines")
            number += 1
            time.sleep(0.005)


def _connection() -> tuple[socket.socket, socket.socket]:
    """Return both ends of a TCP connection over loopback."""
    with socket.socket() as control:
        fcntl.ioctl(control, _SIOCSIFFLAGS, struct.pack("16sH14x", b"lo", _IFF_UP_RUNNING))
    near = socket.socket()
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen()
        near.connect(server.getsockname())
        far, _ = server.accept()
    return near, far


def _talk(board: _Board, near: socket.socket) -> None:
    """Send numbers and expect each back, one higher."""
    number = 0
    while True:
        near.sendall(struct.pack("<Q", number))
        board.add("sent")
        if near.recv(8, socket.MSG_WAITALL) != struct.pack("<Q", number + 1):
            board.add("wrong")
        board.add("received")
        number += 1
        time.sleep(0.003)


def _echo(board: _Board, far: socket.socket) -> None:
    while True:
        data = far.recv(8, socket.MSG_WAITALL)
        if len(data) != 8:
            board.add("wrong")
            return
        far.sendall(struct.pack("<Q", struct.unpack("<Q", data)[0] + 1))


def _tick(board: _Board) -> None:
    signal.signal(signal.SIGALRM, lambda *_: board.add("ticks"))
    signal.setitimer(signal.ITIMER_REAL, _INTERVAL, _INTERVAL)
    while True:
        signal.pause()


def _spawn(function: Callable[..., None], *arguments: Any) -> int:
    pid = os.fork()
    if pid == 0:
        os.setsid()
        null = os.open(os.devnull, os.O_RDWR)
        for fd in (0, 1, 2):
            os.dup2(null, fd)  # whoever reads what `start` prints waits for the end of all of us otherwise
        try:
            function(*arguments)
        finally:
            os._exit(1)
    return pid


def start() -> None:
    """Start it all."""
    board = _Board()
    near, far = _connection()
    pids = [
        _spawn(_count, board),
        _spawn(_append, board),
        _spawn(_talk, board, near),
        _spawn(_echo, board, far),
        _spawn(_tick, board),
    ]
    with open(_PIDS, "w") as file:  # noqa: PTH123
        json.dump([(pid, _started(pid)) for pid in pids], file)


def _started(pid: int) -> str:
    """Return when a process started, in clock ticks since boot: it changes when the process is another one."""
    try:
        with open(f"/proc/{pid}/stat") as stat:  # noqa: PTH123
            return stat.read().rsplit(")", 1)[1].split()[19]
    except OSError:
        return ""


def verify() -> dict[str, Any]:
    """Look at it twice; return whether all goes on and nothing was lost."""
    board = _Board()
    before = board.values()
    time.sleep(_PAUSE)
    after = board.values()
    with open(_LOG) as log:  # noqa: PTH123
        text = log.read()
    lines = text.splitlines() if text.endswith("\n") else text.splitlines()[:-1]
    with open(_PIDS) as file:  # noqa: PTH123
        pids = json.load(file)
    checks = {
        "counter": after["counter"] > before["counter"] > 0,
        "file": lines == [f"line {n}" for n in range(len(lines))] and len(lines) >= after["lines"] > before["lines"],
        "tcp": after["received"] > before["received"] > 0 and after["wrong"] == 0,
        "timer": after["ticks"] > before["ticks"] > 0,
        "processes": all(_started(pid) == started for pid, started in pids),
    }
    return {"checks": checks, "values": after}


def main() -> None:
    """Run as a command."""
    if sys.argv[1:] == ["start"]:
        start()
        return
    answer = verify()
    print(json.dumps(answer))
    sys.exit(0 if all(answer["checks"].values()) else 1)


if __name__ == "__main__":
    main()
