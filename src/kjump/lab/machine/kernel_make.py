"""Builds a kernel: unpacks its source, configures and compiles it, and moves the results to a folder.

The kernel and the folder are chosen by `kernel_source`.
"""

from __future__ import annotations

import fcntl
import logging
import os
import re
import shlex
import shutil
import signal
import subprocess
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from kjump.errors import LabError
from kjump.lab.machine import tools
from kjump.lab.machine.kernel import LabKernel, describe
from kjump.lab.machine.kernel_config import Option, known_options, lost_options

Progress = Callable[[float, str], None]
"""Called with the fraction of the work done, and the file that is being built."""

logger = logging.getLogger(__name__)

# The same input must make the same kernel; by default these are the time, user and host of the build.
BUILD_IDENTITY = {
    "KBUILD_BUILD_TIMESTAMP": "Mon Jan  1 00:00:00 UTC 2024",
    "KBUILD_BUILD_USER": "kjump",
    "KBUILD_BUILD_HOST": "lab",
    "KBUILD_BUILD_VERSION": "1",
}

# The programs that the build calls, with their Debian packages.
TOOLS = {
    "make": "make",
    "gcc": "gcc",
    "ld": "binutils",
    "flex": "flex",
    "bison": "bison",
    "bc": "bc",
    "tar": "tar",
    "xz": "xz-utils",
    "lz4": "lz4",
}

# Large parts of the source that the lab's configurations do not compile, two thirds of it in all. In most of them only
# the C files are left out, because every build reads the Kconfig files of all folders.
LEFT_OUT = (
    "Documentation/*/*.rst",
    "Documentation/*/*.yaml",
    "arch/[!x]*/*.[chS]",
    "arch/[!x]*/*.dts*",
    "drivers/gpu/*.[ch]",
    "drivers/infiniband/*.[ch]",
    "drivers/media/*.[ch]",
    "drivers/net/ethernet/*.[ch]",
    "drivers/net/wireless/*.[ch]",
    "drivers/scsi/*.[ch]",
    "drivers/staging/*.[ch]",
    "sound/*.[ch]",
    "tools/perf/*",
    "tools/testing/*",
)

# The number of lines that `make` prints for one kernel; used for the progress bar only.
MAKE_STEPS = 1880
UNPACK_SHARE = 0.06


@dataclass(frozen=True)
class KernelBuild:
    """A kernel to build: its version and architecture, the archive with its source, its options.

    With `keep_vmlinux` the ELF file is kept too, which has debugging information if the options say so.
    """

    version: str
    arch: str
    tarball: Path
    options: tuple[Option, ...]
    keep_vmlinux: bool


def need_tools(*names: str) -> None:
    """Raise LabError, with the names of packages, when one of these programs (keys of TOOLS) is not installed."""
    if missing := tools.missing_packages((name, TOOLS[name]) for name in names):
        raise LabError(f"building a kernel needs more tools: `apt install {' '.join(missing)}`")


def _environment() -> dict[str, str]:
    """Return the environment of a build, without variables of the caller that could change the result."""
    kept = {name: os.environ[name] for name in ("PATH", "HOME", "TMPDIR") if name in os.environ}
    return {**kept, "LC_ALL": "C", **BUILD_IDENTITY}


def _pasteable(command: Sequence[str], cwd: Path) -> str:
    """Return a command as one line that can be pasted into a shell."""
    settings = [f"{name}={value}" for name, value in BUILD_IDENTITY.items()]
    return f"cd {shlex.quote(str(cwd))} && {shlex.join(['env', *settings, *command])}"


def _run(command: Sequence[str], cwd: Path, log: Path, on_line: Callable[[str], None] = lambda _: None) -> None:
    """Run one command of a build, its output appended to `log` and given to `on_line` (LabError if it fails).

    All programs of a build are run by this function.
    """
    last: deque[str] = deque(maxlen=12)
    with (
        log.open("a", buffering=1, encoding="utf-8") as record,
        subprocess.Popen(
            command,
            cwd=cwd,
            env=_environment(),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
        ) as process,
    ):
        try:
            for line in process.stdout or ():
                record.write(line)
                last.append(line.rstrip())
                on_line(line)
        except BaseException:
            process.terminate()
            raise
    if process.returncode:
        logger.error("failed with status %d: %s", process.returncode, _pasteable(command, cwd))
        raise LabError(f"{command[0]} failed while building a kernel; see {log}, which ends:\n" + "\n".join(last))


class _MakeProgress:
    """Computes progress from the output of `make`: each line about a file is a step."""

    _STEP = re.compile(r"\s+[A-Z][A-Z0-9_]*\s+(?:\[M\] )?(\S+)")

    def __init__(self, report: Progress) -> None:
        self._report = report
        self._steps = 0

    def __call__(self, line: str) -> None:
        """Count a line of output and report it."""
        if match := self._STEP.match(line):
            self._steps += 1
            done = min(self._steps / MAKE_STEPS, 0.99)
            self._report(UNPACK_SHARE + (1 - UNPACK_SHARE) * done, match[1])


def _unpack(tarball: Path, work: Path, log: Path) -> Path:
    """Unpack a source into `work` and return its tree."""
    name = tarball.name.removesuffix(".tar.xz")
    left_out = [f"--exclude={name}/{pattern}" for pattern in LEFT_OUT]
    _run(["tar", "-I", "xz -d -T0", "--anchored", *left_out, "-xf", str(tarball)], work, log)
    return work / name


def _make(tree: Path, arch: str, log: Path, *arguments: str, on_line: Callable[[str], None] = lambda _: None) -> None:
    """Call `make` in a kernel tree."""
    _run(["make", f"ARCH={arch}", *arguments], tree, log, on_line)


def _configure(tree: Path, build: KernelBuild, log: Path) -> None:
    """Write the tree's .config from the fragment; LabError when an option of the fragment is not in it."""
    answers = tree / "kjump.config"
    answers.write_text("".join(f"{option}\n" for option in build.options), "utf-8")
    _make(tree, build.arch, log, "KCONFIG_ALLCONFIG=kjump.config", "allnoconfig")
    lost = lost_options(build.options, (tree / ".config").read_text("utf-8"), known_options(tree))
    if lost:
        raise LabError(
            f"Linux {build.version} for {build.arch} does not take these options of kernel.config: "
            + ", ".join(str(option) for option in lost)
        )


def _compile(tree: Path, build: KernelBuild, log: Path, report: Progress) -> None:
    """Compile the kernel, and report progress."""
    jobs = f"-j{len(os.sched_getaffinity(0))}"
    _make(tree, build.arch, log, jobs, "bzImage", on_line=_MakeProgress(report))


def _collect(tree: Path, build: KernelBuild, result: Path) -> None:
    """Move the files to keep from a built tree to the folder `result`."""
    result.mkdir()
    (tree / "arch/x86/boot/bzImage").rename(result / "bzImage")
    (tree / ".config").rename(result / "config")
    if build.keep_vmlinux:
        (tree / "vmlinux").rename(result / "vmlinux")
    release = (tree / "include/config/kernel.release").read_text("utf-8").strip()
    kernel = LabKernel(build.version, release, build.arch, result / "bzImage", result / "config", None)
    describe(result, kernel)


def make_kernel(build: KernelBuild, folder: Path, report: Progress) -> None:
    """Build a kernel into `folder`, which must not exist; the caller holds its lock.

    The tree of a build that failed is kept, so that the failing command can be repeated by hand; the next build removes
    it, and the tree of a build that was killed. A build that is interrupted, also by a signal, removes its tree.
    """
    need_tools(*TOOLS)
    work = folder.with_name(f"{folder.name}.work")
    shutil.rmtree(work, ignore_errors=True)
    _sweep(folder.parent)
    try:
        with _signals_raise():
            _build_in(work, build, folder, report)
    except LabError:
        raise
    except BaseException:
        shutil.rmtree(work, ignore_errors=True)
        raise
    shutil.rmtree(work)
    report(1.0, folder.name)


def _sweep(kernels: Path) -> None:
    """Remove the trees of builds that failed or were killed: those whose lock is not held."""
    for tree in kernels.glob("*.work"):
        with tree.with_suffix(".lock").open("w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                continue
            shutil.rmtree(tree, ignore_errors=True)


@contextmanager
def _signals_raise() -> Iterator[None]:
    """Let signals that would end this process raise SystemExit, so that it can clean up.

    Signals that are ignored (nohup), or have another handler, are not changed.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def leave(number: int, _: object) -> None:
        raise SystemExit(128 + number)

    deadly = [n for n in (signal.SIGTERM, signal.SIGHUP) if signal.getsignal(n) is signal.SIG_DFL]
    for number in deadly:
        signal.signal(number, leave)
    try:
        yield
    finally:
        for number in deadly:
            signal.signal(number, signal.SIG_DFL)


def _build_in(work: Path, build: KernelBuild, folder: Path, report: Progress) -> None:
    """Build a kernel in the new folder `work` and rename the result to `folder`."""
    work.mkdir()
    log = work / "build.log"
    report(0.0, "unpacking the source")
    tree = _unpack(build.tarball, work, log)
    report(UNPACK_SHARE * 0.9, "configuring")
    _configure(tree, build, log)
    _compile(tree, build, log, report)
    _collect(tree, build, work / "result")
    log.rename(work / "result" / "build.log")
    (work / "result").rename(folder)
