"""The binary interface of calls (layouts.py): the shim, its block, and the mailbox of a call.

All numbers are little-endian u64, on i386 too; all addresses are physical.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from kjump.errors import FormatError
from kjump.gates.layouts import BLOCK, BLOCK_NUMBERS, CALL_MAILBOX, CALL_NUMBERS, MAILBOX, OUTCOMES
from kjump.memory import PAGE_SIZE

SHIM_SIZE = CALL_NUMBERS["SHIM_SIZE"]
BLOCK_SIZE = BLOCK_NUMBERS["SIZE"]
BLOCK_MAGIC = b"KJCALL1\0"
BLOCK_FLAG_FPU = BLOCK_NUMBERS["FLAG_FPU"]
ARGS_MAX = CALL_NUMBERS["ARGS_MAX"]
PAGES_MAX = CALL_NUMBERS["PAGES_MAX"]

OUTCOME_NONE = OUTCOMES["NONE"]
OUTCOME_RETURNED = OUTCOMES["RETURNED"]
OUTCOME_FAULTED = OUTCOMES["FAULTED"]

_BLOCK = BLOCK.struct(last="out_size")
_OUTCOME = MAILBOX.struct("cookie", "outcome")
_REQUEST = CALL_MAILBOX.struct("value", "in_length")
_REPLY = CALL_MAILBOX.struct("value", "tsc_end")
_REPLY_AT = CALL_MAILBOX.offset("value")
_PAGES_COUNT_AT = CALL_MAILBOX.offset("pages_count")
_ARGS_AT = CALL_MAILBOX.offset("args")
_PAGES_AT = CALL_MAILBOX.offset("pages")
_WORD = (1 << 64) - 1


def shim_binary(bits: int) -> bytes:
    """Return the shim for 64 or 32 bits as the build made it, padded to SHIM_SIZE."""
    binary = (Path(__file__).parent / f"call{bits}.bin").read_bytes()
    if len(binary) > SHIM_SIZE:
        raise FormatError(f"the call shim has {len(binary)} bytes; {SHIM_SIZE} are set aside for it")
    return binary.ljust(SHIM_SIZE, b"\0")


@dataclass(frozen=True)
class CallBlock:
    """The fields of the block that A fills in, in the order of `layouts.BLOCK`.

    `entry` is the function, `gate` the gate, `stack` the upper end of the function's stack; `mailbox` (0: none) and
    `cookie` are those of the page for requests and replies; `in_*` and `out_*` are the buffers for bytes.
    """

    flags: int
    entry: int
    gate: int
    stack: int
    mailbox: int
    cookie: bytes
    in_address: int
    in_size: int
    out_address: int
    out_size: int

    def pack(self) -> bytes:
        """Return the block, BLOCK_SIZE bytes."""
        head = (BLOCK_MAGIC, self.flags, self.entry, self.gate, self.stack, self.mailbox, self.cookie)
        buffers = (self.in_address, self.in_size, self.out_address, self.out_size)
        return _BLOCK.pack(*head, *buffers).ljust(BLOCK_SIZE, b"\0")


BLOCK.check(CallBlock, "flags", "out_size")


def encode_request(cookie: bytes, args: Sequence[int], pointers: int, in_length: int, pages: Sequence[int]) -> bytes:
    """Return the mailbox page of a request.

    `args` are taken modulo 2**64; bit i of `pointers` says that argument i is an offset into the `in_length` bytes
    in `pages` (physical addresses); the output is written to the same pages.
    """
    page = bytearray(PAGE_SIZE)
    _OUTCOME.pack_into(page, 0, cookie, OUTCOME_NONE)
    _REQUEST.pack_into(page, _REPLY_AT, 0, len(args), pointers, in_length)
    struct.pack_into("<Q", page, _PAGES_COUNT_AT, len(pages))
    struct.pack_into(f"<{len(args)}Q", page, _ARGS_AT, *(a & _WORD for a in args))
    struct.pack_into(f"<{len(pages)}Q", page, _PAGES_AT, *pages)
    return bytes(page)


@dataclass(frozen=True)
class Fault:
    """The exception that ended a function: its vector, error code, instruction address, and CR2."""

    vector: int
    code: int
    address: int
    memory: int


@dataclass(frozen=True)
class Reply:
    """The shim's reply in the mailbox.

    `outcome` is OUTCOME_*; `value` what the function returned; `out_length` the number of bytes it wrote; `calls` the
    number of calls since the load; `tsc_*` are time stamp counter values: gate entered, function begun, function ended.
    """

    outcome: int
    value: int
    out_length: int
    calls: int
    fault: Fault | None
    tsc_in: int
    tsc_begin: int
    tsc_end: int


def decode_reply(page: bytes, cookie: bytes) -> Reply:
    """Read the mailbox page of a reply; FormatError when it does not begin with `cookie` any more."""
    found, outcome = _OUTCOME.unpack_from(page)
    if found != cookie:
        raise FormatError("the mailbox was overwritten during the jump")
    value, _, _, _, out_length, calls, vector, *rest = _REPLY.unpack_from(page, _REPLY_AT)
    fault = Fault(vector - 1, *rest[:3]) if vector else None
    return Reply(outcome, value, out_length, calls, fault, *rest[3:6])
