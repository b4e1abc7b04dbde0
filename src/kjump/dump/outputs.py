"""Where a dump is written: a file (renamed when complete), a device, a pipe, or a flattened stream."""

from __future__ import annotations

import contextlib
import errno
import os
from pathlib import Path
from typing import Protocol

from kjump.errors import TargetError
from kjump.formats import flattened


class Output(Protocol):
    """Takes bytes at offsets of a file; `written` counts the bytes that were written."""

    written: int

    def write(self, offset: int, data: bytes | bytearray | memoryview) -> None:
        """Put `data` at `offset`; OSError as the system says."""
        ...

    def finish(self) -> None:
        """Make what was written durable and visible."""
        ...

    def abandon(self) -> None:
        """Discard what was written, after an error."""
        ...


class FileOutput:
    """A file under a temporary name beside its final one, which it gets when it is finished."""

    def __init__(self, path: Path, *, force: bool = False) -> None:
        """Begin the file; TargetError when `path` exists and `force` is not set, is no file, or it cannot be made."""
        if path.is_dir() or path.is_block_device():
            kind = "a folder" if path.is_dir() else "a block device"
            raise TargetError(f"{path} is {kind}: name a file, or write to standard output (`-`) and send that on")
        if path.exists() and not force:
            raise TargetError(f"{path} exists already: remove it, or say --force")
        self.path = path
        self.written = 0
        self._partial = path.with_name(f".{path.name}.{os.getpid()}.part")
        try:
            self._fd = os.open(self._partial, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise TargetError(f"cannot write {path}: {error.strerror}") from None

    def write(self, offset: int, data: bytes | bytearray | memoryview) -> None:
        """Put `data` at `offset`; OSError as the system says."""
        self.written += len(data)  # before it is written: a failure says how much was needed
        _write_all(self._fd, offset, data)

    def finish(self) -> None:
        """Flush the file to the medium and give it its name."""
        os.fsync(self._fd)
        os.close(self._fd)
        self._partial.replace(self.path)

    def abandon(self) -> None:
        """Remove the file."""
        with contextlib.suppress(OSError):
            os.close(self._fd)
        self._partial.unlink(missing_ok=True)


def _write_all(fd: int, offset: int, data: bytes | bytearray | memoryview) -> None:
    """Write all of `data` at `offset`, with as many system calls as necessary."""
    view = memoryview(data)
    while view:
        done = os.pwrite(fd, view, offset)
        view, offset = view[done:], offset + done


class DeviceOutput:
    """A block device, written from its beginning."""

    def __init__(self, path: Path) -> None:
        """Open the device; TargetError when it cannot be, or is in use."""
        self.written = 0
        try:
            self._fd = os.open(path, os.O_WRONLY | os.O_EXCL | os.O_CLOEXEC)
        except OSError as error:
            raise TargetError(f"cannot write {path}: {error.strerror}") from None

    def write(self, offset: int, data: bytes | bytearray | memoryview) -> None:
        """Put `data` at `offset`; OSError as the system says."""
        self.written += len(data)  # before it is written: a failure says how much was needed
        _write_all(self._fd, offset, data)

    def finish(self) -> None:
        """Flush all to the medium."""
        os.fsync(self._fd)
        os.close(self._fd)

    def abandon(self) -> None:
        """Close the device; its former contents are lost."""
        os.close(self._fd)


class StreamOutput:
    """A pipe, socket or terminal, written in order."""

    def __init__(self, fd: int, *, close: bool = False) -> None:
        """Write to `fd`, which stays open afterwards unless `close` is set."""
        self._fd = fd
        self._close = close
        self.written = 0

    @classmethod
    def open(cls, path: Path) -> StreamOutput:
        """Write to a named pipe or a character device; TargetError when it cannot be opened."""
        try:
            return cls(os.open(path, os.O_WRONLY | os.O_CLOEXEC), close=True)
        except OSError as error:
            raise TargetError(f"cannot write {path}: {error.strerror}") from None

    def write(self, offset: int, data: bytes | bytearray | memoryview) -> None:
        """Write `data`, after zeros up to `offset`; OSError (ESPIPE) when `offset` has been passed already."""
        if offset < self.written:
            raise OSError(errno.ESPIPE, "this format does not come in order: use --format flattened")
        while offset > self.written:
            self._put(bytes(min(offset - self.written, 1 << 20)))
        self._put(data)

    def _put(self, data: bytes | bytearray | memoryview) -> None:
        view = memoryview(data)
        self.written += len(view)
        while view:
            view = view[os.write(self._fd, view) :]

    def finish(self) -> None:
        """Do nothing: the reader has all data."""
        self.abandon()

    def abandon(self) -> None:
        """Close the stream; its reader sees that it ends too early."""
        if self._close:
            self._close = False
            os.close(self._fd)


class FlattenedOutput:
    """The flattened format, over an output that is written in order."""

    def __init__(self, below: Output) -> None:
        """Write to `below`, from its beginning."""
        self._below = below
        self._at = 0
        self._put(flattened.header())

    @property
    def written(self) -> int:
        """The bytes written, the flattened format's headers included."""
        return self._at

    @written.setter
    def written(self, value: int) -> None:
        raise AttributeError("the bytes written count themselves")

    def _put(self, data: bytes | bytearray | memoryview) -> None:
        self._below.write(self._at, data)
        self._at += len(data)

    def write(self, offset: int, data: bytes | bytearray | memoryview) -> None:
        """Write `data` with a header that gives its `offset`."""
        if len(data):
            self._put(flattened.piece_header(offset, len(data)))
            self._put(data)

    def finish(self) -> None:
        """End the stream."""
        self._put(flattened.trailer())
        self._below.finish()

    def abandon(self) -> None:
        """Leave nothing behind."""
        self._below.abandon()
