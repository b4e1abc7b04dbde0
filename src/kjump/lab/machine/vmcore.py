"""Vmcores of machines in the lab: a kernel boots in QEMU, fills its memory, and is dumped from outside.

The guest consists of busybox alone. Its memory is filled from a disk with ordinary files of this host, so that pages
compress as on real systems: a fifth is anonymous memory of a process, a fifth tmpfs, the rest page cache, part of it
with buffers ("private"). On a kernel with hugetlbfs there are a few huge pages too.
"""

from __future__ import annotations

import os
import struct
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from kjump.errors import LabError
from kjump.formats import cpio, elf
from kjump.lab.machine import tools
from kjump.lab.machine.disks import make_file_system
from kjump.lab.machine.guest_channel import PORT_NAME
from kjump.lab.machine.kernel import LabKernel
from kjump.lab.machine.qemu import VirtualMachine, accelerator
from kjump.lab.machine.qemu_config import CPU, VirtualMachineConfig

_SOURCES = ("/usr/lib", "/usr/bin", "/usr/share", "/usr/include")
_SMALLEST_FILL = 4 << 20
_FILE_SIZE, _FILE_SYSTEM_SIZE = 8 << 20, 32 << 20
"""Sizes of a file, and of its file system, whose blocks are smaller than a page: its cached pages have buffers."""

_INIT = f"""#!/bin/sh
mount -t proc none /proc; mount -t sysfs none /sys; mount -t devtmpfs none /dev
mkdir -p /tmp /huge /mnt; mount -t tmpfs -o size=90% none /tmp
read anon tmpfs cache < /fill
mkfifo /tmp/fifo
dd if=/dev/vda of=/tmp/fifo bs=$((anon + 1))M count=1 iflag=fullblock 2>/dev/null &
(exec 3</tmp/fifo; dd bs=4096 count=1 <&3 >/dev/null 2>&1; sleep 1000000) &
[ $tmpfs -gt 0 ] && dd if=/dev/vda of=/tmp/fill bs=1M count=$tmpfs skip=$anon 2>/dev/null
[ $cache -gt 0 ] && dd if=/dev/vda of=/dev/null bs=1M count=$cache skip=$((anon + tmpfs)) 2>/dev/null
if mount -t ext4 /dev/vdb /mnt 2>/dev/null; then
  cat /mnt/* > /dev/null; dd if=/dev/vda of=/mnt/written bs=1M count=4 2>/dev/null; sync; fi
for word in $(cat /proc/cmdline); do case $word in
  kjump.huge=*) echo ${{word#*=}} > /proc/sys/vm/nr_hugepages 2>/dev/null;; esac; done
echo "kjump lab vmcore: memory is filled" > /dev/kmsg
cat /crash 2>/dev/null && crash=1
for port in /sys/class/virtio-ports/*; do
  [ "$(cat $port/name)" = {PORT_NAME} ] && echo '{{"event": "filled"}}' > /dev/$(basename $port); done
[ "$crash" ] && sleep 1 && echo c > /proc/sysrq-trigger
while :; do sleep 1000; done
"""


def make(
    kernel: LabKernel | Path,
    out: Path,
    *,
    memory: int,
    fill: int,
    cpu: str = CPU,
    options: str = "",
    crash: bool = False,
    huge_pages: int = 3,
) -> None:
    """Write the ELF vmcore of a machine with `memory` bytes of RAM, `fill` of them in use, to `out`.

    `options` are added to the kernel's command line; with `crash` the kernel panics first. `huge_pages` of 2 MiB are
    kept for hugetlbfs. LabError when QEMU is
    missing or the machine does not get that far.
    """
    image = kernel if isinstance(kernel, Path) else kernel.image
    partial = out.with_name(out.name + ".part")
    with tempfile.TemporaryDirectory(prefix="kjump-vmcore-") as folder:
        options = f"{options} kjump.huge={huge_pages}"
        config = _config(Path(folder), image, memory=memory, fill=fill, cpu=cpu, options=options, crash=crash)
        try:
            with VirtualMachine(config) as machine:
                machine.guest.event("filled", timeout=120 + (fill >> 24))
                if crash:
                    _wait_for_panic(machine)
                machine.execute("stop")
                machine.execute("dump-guest-memory", paging=False, protocol=f"file:{partial.absolute()}")
            straighten(partial)
            partial.replace(out)
        finally:
            partial.unlink(missing_ok=True)


def _wait_for_panic(machine: VirtualMachine) -> None:
    deadline = time.monotonic() + 60
    while "end Kernel panic" not in machine.console():
        if time.monotonic() > deadline:
            raise LabError("the kernel was told to crash and did not")
        time.sleep(0.05)


def _config(
    folder: Path, image: Path, *, memory: int, fill: int, cpu: str, options: str, crash: bool
) -> VirtualMachineConfig:
    data, disk = folder / "data.img", folder / "disk.img"
    write_data(data, max(fill, _SMALLEST_FILL))
    tree = folder / "tree"
    tree.mkdir()
    write_data(tree / "file", _FILE_SIZE)
    make_file_system(disk, tree, _FILE_SYSTEM_SIZE, "-b", "1024")
    initrd = folder / "initrd"
    initrd.write_bytes(cpio.write(_initramfs(fill >> 20, crash)))
    return VirtualMachineConfig(
        kernel=image,
        initrd=initrd,
        command_line=f"console=ttyS0 panic={0 if crash else -1} loglevel=4 {options}".strip(),
        memory=memory,
        cpu=cpu,
        disks=(data, disk),
        extra=("-device", "vmcoreinfo"),
        accelerator=accelerator(image),
    )


def _initramfs(fill: int, crash: bool) -> Iterator[cpio.Entry]:
    """Yield the guest's files; `fill` in MiB."""
    anon = fill // 5
    yield cpio.regular("init", _INIT.encode(), 0o755)
    yield cpio.regular("fill", f"{anon} {anon} {fill - 2 * anon}\n".encode())
    yield cpio.regular("bin/busybox", Path(tools.path_of("busybox")).read_bytes(), 0o755)
    for name in ("sh", "mount", "mkdir", "mkfifo", "dd", "cat", "sleep", "sync", "basename"):
        yield cpio.symlink(f"bin/{name}", "busybox")
    for name in ("proc", "sys", "dev"):
        yield cpio.directory(name)
    yield cpio.char_device("dev/console", 5, 1)
    if crash:
        yield cpio.regular("crash", b"")


def write_data(path: Path, size: int) -> None:
    """Write `size` bytes of this host's files, end to end, to `path`; the same ones each time."""
    left = size
    with path.open("wb") as out:
        while left > 0:
            before = left
            for file in _files():
                piece = file.read_bytes()[:left]
                out.write(piece)
                left -= len(piece)
                if not left:
                    break
            if left == before:
                raise LabError(f"there are no files in {', '.join(_SOURCES)} to fill memory with")


def _files() -> Iterator[Path]:
    for source in _SOURCES:
        for folder, names, files in os.walk(source):
            names.sort()
            for name in sorted(files):
                path = Path(folder, name)
                if path.is_file() and not path.is_symlink() and os.access(path, os.R_OK):
                    yield path


def straighten(path: Path) -> None:
    """Move the program headers of an ELF64 file to offset 64, the only place where makedumpfile accepts them.

    QEMU 7.2 writes section headers there, and e_ehsize=8; some readers ignore e_phoff. The section headers are
    overwritten; they have as many bytes as are needed.
    """
    with path.open("r+b") as file:
        header = elf.parse_header(file.read(elf.HEADER_SIZE))
        table = header.table
        if header.elf_class != elf.CLASS_64 or table.start == elf.HEADER_SIZE:
            return
        file.seek(table.start)
        headers = file.read(table.size)
        first = min(p.offset for p in elf.parse_program_headers(header, headers) if p.filesz)
        if elf.HEADER_SIZE + table.size > first:
            raise LabError("there is no room to move the program headers of this vmcore")
        file.seek(elf.HEADER_SIZE)
        file.write(headers)
        file.seek(32)
        file.write(struct.pack("<QQ", elf.HEADER_SIZE, 0))  # e_phoff, e_shoff
        file.seek(52)
        file.write(struct.pack("<HHHHHH", 64, 56, header.phnum, 64, 0, 0))  # e_ehsize up to e_shstrndx
