"""Work that a switch must not disturb, in the first kernel and in a peer alike: counters, files, TCP, a timer.

`start` starts a background process for each; `verify` prints a `WorkloadAccount` as JSON. Run in the guest or in a
peer: `python3 -ISc 'from kjump.lab.guest.switching_workload import main; main()' start|verify`. Its imports must fit in
a small initramfs.
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
from typing import ParamSpec

from kjump.lab.guest.activity import CounterBoard, WorkloadAccount, detach, numbered_lines, spawn, start_time

P = ParamSpec("P")

SLOTS = ("counter", "lines", "sent", "received", "wrong", "ticks")
_BOARD = "/tmp/steady.board"
_LOG = "/tmp/steady.log"
_PIDS = "/tmp/steady.pids"
_PAUSE = 0.3
_SIOCSIFFLAGS = 0x8914
_IFF_UP_RUNNING = 0x41
_INTERVAL = 0.02


def _board() -> CounterBoard:
    """Return the counters, in a file that all processes of the workload map."""
    fd = os.open(_BOARD, os.O_RDWR | os.O_CREAT, 0o600)
    os.ftruncate(fd, mmap.PAGESIZE)
    memory = mmap.mmap(fd, mmap.PAGESIZE)
    os.close(fd)
    return CounterBoard(SLOTS, memory)


def _count(board: CounterBoard) -> None:
    while True:
        board.add("counter")
        time.sleep(0.002)


def _append(board: CounterBoard) -> None:
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


def _talk(board: CounterBoard, near: socket.socket) -> None:
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


def _echo(board: CounterBoard, far: socket.socket) -> None:
    while True:
        data = far.recv(8, socket.MSG_WAITALL)
        if len(data) != 8:
            board.add("wrong")
            return
        far.sendall(struct.pack("<Q", struct.unpack("<Q", data)[0] + 1))


def _tick(board: CounterBoard) -> None:
    signal.signal(signal.SIGALRM, lambda *_: board.add("ticks"))
    signal.setitimer(signal.ITIMER_REAL, _INTERVAL, _INTERVAL)
    while True:
        signal.pause()


def _in_background(function: Callable[P, None], *arguments: P.args, **named: P.kwargs) -> None:
    detach()
    function(*arguments, **named)


def start() -> None:
    """Start all processes."""
    board = _board()
    near, far = _connection()
    pids = [
        spawn(_in_background, _count, board),
        spawn(_in_background, _append, board),
        spawn(_in_background, _talk, board, near),
        spawn(_in_background, _echo, board, far),
        spawn(_in_background, _tick, board),
    ]
    with open(_PIDS, "w") as file:  # noqa: PTH123
        json.dump([(pid, start_time(pid)) for pid in pids], file)


def verify() -> WorkloadAccount:
    """Read the counters twice; return whether all processes go on and nothing was lost."""
    board = _board()
    before = board.values()
    time.sleep(_PAUSE)
    after = board.values()
    lines = numbered_lines(_LOG)
    with open(_PIDS) as file:  # noqa: PTH123
        pids = json.load(file)
    checks = {
        "counter": after["counter"] > before["counter"] > 0,
        "file": lines is not None and lines >= after["lines"] > before["lines"],
        "tcp": after["received"] > before["received"] > 0 and after["wrong"] == 0,
        "timer": after["ticks"] > before["ticks"] > 0,
        "processes": all(start_time(pid) == started for pid, started in pids),
    }
    return WorkloadAccount(checks, after)


def main() -> None:
    """Run as a command."""
    if sys.argv[1:] == ["start"]:
        start()
        return
    answer = verify()
    print(json.dumps(answer.to_json()))
    sys.exit(0 if answer.ok else 1)


if __name__ == "__main__":
    main()
