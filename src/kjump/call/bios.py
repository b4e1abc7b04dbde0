"""BIOS services: software interrupts in real mode, made by a program (gates/program/bios.c) behind the gate.

Sources: ACPI specification chapter 15 (E820), VESA BIOS Extensions 3.0 (VBE), BIOS Enhanced Disk Drive
Specification 3.0 (EDD).
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, fields
from pathlib import Path

import kjump.gates
from kjump.call.machine import Loaded, Machine
from kjump.call.program import Program, from_elf
from kjump.errors import JumpError
from kjump.formats.e820 import E820Entry, unpack
from kjump.gates.layouts import BIOS_NUMBERS, BIOS_REGISTERS

BUFFER_ADDRESS = BIOS_NUMBERS["BUFFER"]
"""The physical address of the buffer while the BIOS runs; D00h:0 as a real-mode pointer, for ES:DI."""
BUFFER_SIZE = BIOS_NUMBERS["BUFFER_SIZE"]
BUFFER_SEGMENT = BUFFER_ADDRESS >> 4

_COMMAND_INT = BIOS_NUMBERS["COMMAND_INT"]
_COMMAND_E820 = BIOS_NUMBERS["COMMAND_E820"]
_CARRY = 1
_REGISTERS = BIOS_REGISTERS.struct()
_VBE = struct.Struct("<4sH4s4s4sH")
_VBE_DONE = 0x4F
_EDD_PRESENT = 0xAA55
_DRIVE = struct.Struct("<HHIIIQH")


@dataclass(frozen=True)
class Registers:
    """32-bit registers and real-mode segments of a BIOS call; `flags` is EFLAGS after the call."""

    eax: int = 0
    ebx: int = 0
    ecx: int = 0
    edx: int = 0
    esi: int = 0
    edi: int = 0
    ebp: int = 0
    ds: int = 0
    es: int = 0
    flags: int = 0

    @property
    def carry(self) -> bool:
        """Whether the carry flag is set, by which most services report failure."""
        return bool(self.flags & _CARRY)


BIOS_REGISTERS.check(Registers)


def program() -> Program:
    """Return the program that makes BIOS calls; it has a fixed physical address below 64 KiB."""
    path = Path(kjump.gates.__file__).parent / "bios.elf"
    return from_elf(path.read_bytes(), "the BIOS program")


@dataclass(frozen=True)
class VbeInfo:
    """The graphics card as its BIOS describes it (VBE function 00h); `memory` in bytes, `modes` are mode numbers."""

    signature: str
    version: str
    oem: str
    memory: int
    modes: list[int]


@dataclass(frozen=True)
class Drive:
    """A disk as the BIOS describes it (INT 13h, functions 41h and 48h); sizes in bytes and sectors."""

    number: int
    edd_version: int
    extensions: int
    cylinders: int
    heads: int
    sectors_per_track: int
    sectors: int
    sector_size: int


class Bios:
    """The BIOS of a machine; a context manager, which keeps a program loaded meanwhile."""

    def __init__(self, machine: Machine) -> None:
        """Load the program on `machine`."""
        self._loaded: Loaded = machine.load(program())

    def __enter__(self) -> Bios:
        """Return itself."""
        return self

    def __exit__(self, *exc: object) -> None:
        """Drop the program."""
        self._loaded.close()

    def interrupt(self, number: int, registers: Registers, buffer: bytes = b"") -> tuple[Registers, bytes]:
        """Call interrupt `number`; return registers and buffer (BUFFER_SIZE bytes) as the BIOS left them."""
        values = [getattr(registers, f.name) for f in fields(Registers) if f.name != "flags"]
        result = self._loaded.call(_COMMAND_INT, number, *values, buffer)
        found = _REGISTERS.unpack_from(result.output)
        return Registers(*found), result.output[_REGISTERS.size :]

    def memory_map(self) -> list[E820Entry]:
        """Return the memory map (INT 15h, E820h) in the BIOS's order; JumpError when the BIOS has no such service."""
        result = self._loaded.call(_COMMAND_E820)
        if result.value & _CARRY:
            raise JumpError("this BIOS has no memory map (INT 15h, E820h)")
        return unpack(result.output)

    def vbe_info(self) -> VbeInfo:
        """Return the graphics BIOS's description of the card; JumpError when there is no VBE BIOS."""
        asked = Registers(eax=0x4F00, es=BUFFER_SEGMENT)
        registers, buffer = self.interrupt(0x10, asked, b"VBE2")
        if registers.eax & 0xFFFF != _VBE_DONE:
            raise JumpError("this machine has no VESA graphics BIOS (INT 10h, 4F00h)")
        signature, version, oem, _, modes, blocks = _VBE.unpack_from(buffer)
        listed = []
        at = _offset(modes)
        while 0 <= at <= BUFFER_SIZE - 2 and (mode := struct.unpack_from("<H", buffer, at)[0]) != 0xFFFF:
            listed.append(mode)
            at += 2
        name = _text(buffer, _offset(oem))
        return VbeInfo(signature.decode("latin-1"), f"{version >> 8}.{version & 255}", name, blocks << 16, listed)

    def drive(self, number: int) -> Drive:
        """Return the BIOS's description of drive `number` (80h: the first disk); JumpError when there is none."""
        present, _ = self.interrupt(0x13, Registers(eax=0x4100, ebx=0x55AA, edx=number))
        if present.carry or present.ebx & 0xFFFF != _EDD_PRESENT:
            raise JumpError(f"the BIOS has no enhanced disk services for drive {number:#x} (INT 13h, 41h)")
        asked = Registers(eax=0x4800, edx=number, ds=BUFFER_SEGMENT)
        registers, buffer = self.interrupt(0x13, asked, struct.pack("<H", 0x1A))
        if registers.carry:
            raise JumpError(f"the BIOS does not describe drive {number:#x} (INT 13h, 48h)")
        _, _, cylinders, heads, per_track, sectors, size = _DRIVE.unpack_from(buffer)
        version = present.eax >> 8 & 0xFF
        extensions = present.ecx & 0xFFFF
        return Drive(number, version, extensions, cylinders, heads, per_track, sectors, size)


def _offset(pointer: bytes) -> int:
    """Return a real-mode far pointer as an offset in the buffer; negative or too large when it points elsewhere."""
    offset, segment = struct.unpack("<HH", pointer)
    return int((segment << 4) + offset - BUFFER_ADDRESS)


def _text(buffer: bytes, at: int) -> str:
    if not 0 <= at < len(buffer):
        return ""
    return buffer[at:].split(b"\0", 1)[0].decode("latin-1")
