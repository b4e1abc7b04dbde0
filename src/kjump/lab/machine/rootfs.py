"""The root file system of the lab's systems: busybox, this Python, kjump and its libraries, on ext4.

Built by `mke2fs -d` from a folder, without root privileges or loop devices.
"""

from __future__ import annotations

import importlib.metadata
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path

from kjump.errors import LabError
from kjump.initramfs.build import shared_libraries
from kjump.lab.machine import tools
from kjump.lab.machine.disks import make_file_system

_NOT_COPIED = (
    "test", "tests", "idlelib", "tkinter", "turtledemo", "ensurepip", "lib2to3", "pydoc_data", "site-packages",
    "dist-packages", "config-*", "*.a", "distutils", "turtle.py",
)  # fmt: skip
_PACKAGES = ("kjump", "click", "rich", "markdown-it-py", "mdurl", "Pygments")
_INIT = "#!/usr/bin/python3\nfrom kjump.lab.guest.agent import main\n\nmain()\n"
_COMMAND = "#!/usr/bin/python3\nfrom kjump.__main__ import main\n\nmain()\n"


SIZE = 640 << 20
"""The default size of the file system in bytes."""


def build(
    image: Path, *, kernel: Path, release: str, initramfs: bytes, files: Mapping[str, bytes], size: int = SIZE
) -> None:
    """Write an ext4 file system of `size` bytes to `image`, with `kernel` (of that `release`) and `initramfs` in /boot.

    `files` (path -> contents) are added. LabError when busybox or mke2fs is missing, or the contents do not fit.
    """
    with tempfile.TemporaryDirectory(prefix="kjump-root-") as folder:
        root = Path(folder)
        _skeleton(root)
        _python(root)
        _busybox(root)
        shutil.copy(kernel, root / "boot" / f"vmlinuz-{release}")
        (root / "boot/kjump-initramfs.img").write_bytes(initramfs)
        for path, data in files.items():
            (root / path.lstrip("/")).write_bytes(data)
        _script(root / "sbin/init", _INIT)
        _script(root / "usr/bin/kjump", _COMMAND)
        make_file_system(image, root, size)


def _skeleton(root: Path) -> None:
    for name in (
        "proc",
        "sys",
        "dev",
        "run",
        "tmp",
        "mnt",
        "root",
        "boot",
        "usr/bin",
        "usr/sbin",
        "etc",
        "var",
    ):
        (root / name).mkdir(parents=True)
    for name, target in (
        ("bin", "usr/bin"),
        ("sbin", "usr/sbin"),
        ("lib", "usr/lib"),
        ("lib64", "usr/lib64"),
    ):
        (root / target).mkdir(parents=True, exist_ok=True)
        (root / name).symlink_to(target)
    (root / "etc/passwd").write_text("root:x:0:0:root:/root:/bin/sh\n")


def _python(root: Path) -> None:
    """Copy the interpreter, its standard library, and the packages that `kjump` needs in the guest."""
    version = f"python{sys.version_info[0]}.{sys.version_info[1]}"
    library = root / "usr/lib" / version
    source = Path(sysconfig.get_path("stdlib", vars={"installed_base": sys.base_prefix, "base": sys.base_prefix}))
    shutil.copytree(source, library, ignore=shutil.ignore_patterns(*_NOT_COPIED), symlinks=False)
    python = Path(sys.executable).resolve()
    shutil.copy(python, root / "usr/bin/python3")
    for name in _PACKAGES:
        _copy_package(name, library)
    native = [python, *(p for p in library.rglob("*.so"))]
    for path in shared_libraries(native):
        target = root / str(path).lstrip("/") if path.name.startswith("ld-") else root / "usr/lib" / path.name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, target)
    subprocess.run([str(python), "-m", "compileall", "-q", "-j2", "-s", str(root), str(library)], check=False)


def _copy_package(name: str, library: Path) -> None:
    try:
        files = importlib.metadata.files(name) or []
    except importlib.metadata.PackageNotFoundError:
        raise LabError(f"package {name} is not installed beside kjump") from None
    for file in files:
        if file.parts[0] == ".." or "__pycache__" in file.parts or file.suffix == ".pyc":
            continue
        target = library / file
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(str(file.locate()), target)


def _busybox(root: Path) -> None:
    busybox = tools.path_of("busybox")
    shutil.copy(busybox, root / "usr/bin/busybox")
    for applet in _applets(busybox):
        target = root / "usr/bin" / applet
        if not target.exists():
            target.symlink_to("busybox")


def _applets(busybox: str) -> Iterator[str]:
    listing = subprocess.run([busybox, "--list"], capture_output=True, text=True, check=True)
    yield from (name for name in listing.stdout.split() if name not in ("init", "linuxrc", "busybox"))


def _script(path: Path, text: str) -> None:
    path.write_text(text)
    path.chmod(0o755)
