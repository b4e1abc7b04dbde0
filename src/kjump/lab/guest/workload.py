"""Work that a hibernation must not disturb, and the check that it did not.

`start` starts in the background: a process that counts, 200 MiB of tmpfs and an anonymous buffer with known digests,
a process that appends numbered lines to a file on ext4, two processes with a pipe between them, and memory filled
with random bytes or with those of a disk. `verify` prints a `WorkloadAccount` as JSON. Run in the guest:
`python3 -m kjump.lab.guest.workload start|verify`.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import mmap
import os
import random
import socket
import struct
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

from kjump.formats.record import Record
from kjump.lab.guest.activity import CounterBoard, WorkloadAccount, detach, numbered_lines, spawn, start_time

MIB = 1 << 20
TMPFS_SIZE = 200 * MIB
BUFFER_SIZE = 32 * MIB
PATTERN = b"kjump: this page has a known place in physical memory. "
_SOCKET = "/run/workload.sock"
_TMPFS = Path("/mnt/ram")
_LOG = Path("/var/workload.log")
_SLOTS = ("counter", "appender", "producer", "consumer", "pipe_errors")
_PAGE = 4096
_PIECE = 16 * MIB
_VALUES = b"values"
_EVERYTHING = b"everything"
_WORKERS = ("counter", "appender", "consumer")


def content(size: int, seed: int) -> Iterator[bytes]:
    """Yield `size` reproducible bytes in pieces of 1 MiB: half of them incompressible, half like text."""
    generator = random.Random(seed)
    text = (b"%016x status=ok host=kjump component=workload\n" % seed) * (MIB // 48)
    for index in range(-(-size // MIB)):
        if index % 8 == 0:
            noise = generator.randbytes(MIB // 2 - 8)
        block = struct.pack("<Q", index) + noise + text[: MIB // 2]
        yield block[: size - index * MIB]


def _count(board: CounterBoard) -> None:
    while True:
        board.add("counter")
        time.sleep(0.01)


def _append(board: CounterBoard) -> None:
    with _LOG.open("w") as log:
        number = 0
        while True:
            log.write(f"line {number}\n")
            log.flush()
            if number % 50 == 0:
                os.fsync(log.fileno())
            board.add("appender")
            number += 1
            time.sleep(0.02)


def _produce(board: CounterBoard, pipe: int) -> None:
    number = 0
    while True:
        os.write(pipe, struct.pack("<Q", number))
        board.add("producer")
        number += 1
        time.sleep(0.005)


def _consume(board: CounterBoard, pipe: int) -> None:
    expected = 0
    while True:
        data = os.read(pipe, 8)
        if len(data) != 8 or struct.unpack("<Q", data)[0] != expected:
            board.add("pipe_errors")
        expected += 1
        board.add("consumer")


@dataclass(frozen=True)
class Filling:
    """Additional memory to fill: `size` bytes, random or from `source` (a disk or file), locked if `locked` is set.

    `digest` is the expected result of the function `digest`; it is computed if empty.
    """

    size: int = 0
    source: str = ""
    digest: str = ""
    locked: bool = False

    def make(self) -> mmap.mmap:
        """Return the filled memory; pages of `source` are dropped from the page cache."""
        memory = mmap.mmap(-1, max(self.size, _PAGE))
        if self.source:
            fd = os.open(self.source, os.O_RDONLY | os.O_DIRECT)
            with memoryview(memory) as view:
                for at in range(0, self.size, MIB):
                    os.preadv(fd, [view[at : min(at + MIB, self.size)]], at)
            os.close(fd)
        else:
            for at in range(0, self.size, MIB):
                piece = os.urandom(min(MIB, self.size - at))
                memory[at : at + len(piece)] = piece
        if self.locked:
            _lock(memory)
        return memory


def _lock(memory: mmap.mmap) -> None:
    import ctypes

    from kjump.host.libc import libc

    address = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    if libc().mlock(ctypes.c_void_p(address), ctypes.c_size_t(len(memory))):
        raise OSError(ctypes.get_errno(), "mlock")


def digest(memory: mmap.mmap) -> str:
    """Return a digest of `memory`, computed on all CPUs: SHA-256 of the SHA-256 digests of its pieces of 16 MiB."""
    with memoryview(memory) as view, ThreadPoolExecutor(os.cpu_count()) as pool:
        pieces = [view[at : at + _PIECE] for at in range(0, len(view), _PIECE)]
        digests = list(pool.map(lambda piece: hashlib.sha256(piece).digest(), pieces))
        for piece in pieces:
            piece.release()
    return hashlib.sha256(b"".join(digests)).hexdigest()


def start(filling: Filling, seed: int, tmpfs: int = TMPFS_SIZE, buffer: int = BUFFER_SIZE) -> None:
    """Start the workload in the background; `tmpfs` and `buffer` are sizes in bytes. Returns when all is running."""
    ready_in, ready_out = os.pipe()
    if os.fork() == 0:
        detach()
        _serve(filling, seed, tmpfs, buffer, ready_out)
        os._exit(1)
    os.close(ready_out)
    if os.read(ready_in, 1) != b"+":
        raise SystemExit("the workload did not start")


def _serve(filling: Filling, seed: int, tmpfs: int, buffer_size: int, ready: int) -> None:
    tmpfs_digest = _write_tmpfs(tmpfs, seed)
    buffer = mmap.mmap(-1, buffer_size)
    for index in range(buffer_size // _PAGE):
        buffer[index * _PAGE : (index + 1) * _PAGE] = _pattern_page(index)
    known_digest = _digest_of(_pattern_page(index) for index in range(buffer_size // _PAGE))
    board = CounterBoard(_SLOTS, mmap.mmap(-1, _PAGE))
    pipe_out, pipe_in = os.pipe()
    pids = [
        spawn(_count, board),
        spawn(_append, board),
        spawn(_produce, board, pipe_in),
        spawn(_consume, board, pipe_out),
    ]
    started = [start_time(pid) for pid in pids]
    filled = filling.make()  # after the forks, which would copy the page tables of gigabytes
    fill_digest = filling.digest or digest(filled)
    server = socket.socket(socket.AF_UNIX)
    server.bind(_SOCKET)
    server.listen()
    os.write(ready, b"+")
    while True:
        connection, _ = server.accept()
        checks: dict[str, bool] = {}
        pages: tuple[int, ...] = ()
        if connection.recv(16) == _EVERYTHING:
            pages = _pattern_frames(buffer)
            checks = {
                "tmpfs": _hash_file(_TMPFS / "content") == tmpfs_digest,
                "buffer": _digest_of([buffer]) == known_digest,
                "fill": digest(filled) == fill_digest,
                "processes": [start_time(pid) for pid in pids] == started,
            }
        connection.sendall(json.dumps(WorkloadAccount(checks, board.values(), pages).to_json()).encode())
        connection.close()


def _pattern_page(index: int) -> bytes:
    return (PATTERN + b"%08d " % index).ljust(_PAGE, b".")


def _pattern_frames(buffer: mmap.mmap) -> tuple[int, ...]:
    """Return the page frame numbers of the buffer's pages (0: not in memory)."""
    import ctypes

    linear = ctypes.addressof(ctypes.c_char.from_buffer(buffer))
    with open("/proc/self/pagemap", "rb") as pagemap:  # noqa: PTH123
        pagemap.seek(linear // _PAGE * 8)
        entries = struct.unpack(f"<{len(buffer) // _PAGE}Q", pagemap.read(len(buffer) // _PAGE * 8))
    return tuple(entry & ((1 << 55) - 1) if entry >> 63 else 0 for entry in entries)


def _write_tmpfs(size: int, seed: int) -> str:
    from kjump.init.system import mount

    _TMPFS.mkdir(exist_ok=True)
    mount("tmpfs", str(_TMPFS), "tmpfs", 0, f"size={size + MIB}")
    hasher = hashlib.sha256()
    with (_TMPFS / "content").open("wb") as file:
        for block in content(size, seed):
            file.write(block)
            hasher.update(block)
    return hasher.hexdigest()


def _hash_file(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _digest_of(pieces: Iterable[bytes | mmap.mmap]) -> str:
    hasher = hashlib.sha256()
    for piece in pieces:
        hasher.update(piece)
    return hasher.hexdigest()


def _ask(what: bytes) -> WorkloadAccount:
    connection = socket.socket(socket.AF_UNIX)
    connection.connect(_SOCKET)
    connection.sendall(what)
    with connection.makefile("rb") as stream:
        return WorkloadAccount.from_json(Record.parse(stream.read(), "the workload's account"))


def _values_when(there: Callable[[Mapping[str, int]], bool], limit: float = 10.0) -> Mapping[str, int]:
    """Return the counters as soon as `there` accepts them, or after `limit` seconds (a disk may be slow)."""
    deadline = time.monotonic() + limit
    while True:
        values = _ask(_VALUES).counters
        if there(values) or time.monotonic() > deadline:
            return values
        time.sleep(0.05)


def verify(pause: float = 0.3) -> WorkloadAccount:
    """Return the current state of the workload: its checks, its counters, the page frames of the pattern."""
    before = _values_when(lambda values: all(values[name] > 0 for name in _WORKERS))
    time.sleep(pause)
    _values_when(lambda values: all(values[name] > before[name] for name in _WORKERS))
    answer = _ask(_EVERYTHING)
    after = answer.counters
    lines = numbered_lines(str(_LOG))
    checks = {
        **answer.checks,
        "counting": after["counter"] > before["counter"] > 0,
        "appending": after["appender"] > before["appender"] > 0,
        "file": lines is not None and lines >= before["appender"] - 1,
        "pipe": after["consumer"] > before["consumer"] > 0 and after["pipe_errors"] == 0,
    }
    return replace(answer, checks=checks)


def main() -> None:
    """Run as a command."""
    parser = argparse.ArgumentParser(prog="workload")
    parser.add_argument("what", choices=("start", "verify"))
    parser.add_argument("--fill", type=int, default=0, help="bytes of memory to fill")
    parser.add_argument("--fill-from", default="", help="a disk to fill it from, else it is random")
    parser.add_argument("--fill-digest", default="", help="the digest it shall have")
    parser.add_argument("--lock", action="store_true", help="lock it, so that it cannot be swapped out")
    parser.add_argument("--buffer", type=int, default=BUFFER_SIZE, help="bytes of the anonymous buffer")
    parser.add_argument("--tmpfs", type=int, default=TMPFS_SIZE, help="bytes of tmpfs")
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    if options.what == "start":
        filling = Filling(options.fill, options.fill_from, options.fill_digest, options.lock)
        start(filling, options.seed, options.tmpfs, options.buffer)
    else:
        answer = verify()
        print(json.dumps(answer.to_json()))
        sys.exit(0 if answer.ok else 1)


if __name__ == "__main__":
    main()
