"""Kernels for the lab, built from Debian's `linux-source-*` packages and kept in a cache.

A kernel is `make allnoconfig` answered by the fragment `kernel.config` beside this file, then `make bzImage`.
What goes in (source, fragment, architecture, compiler, fixed build user and time) is hashed into the name of
its folder in the cache, so a changed fragment makes a new kernel and an unchanged one costs nothing:

    <cache root>/kernels/6.12-x86_64-1a2b3c4d5e6f/       bzImage, config, build.log, kernel.json [, vmlinux]
                         6.12-x86_64-1a2b3c4d5e6f.lock   held while somebody builds it
                         6.12-x86_64-1a2b3c4d5e6f.work/  source and build tree, gone afterwards

The folder appears by one rename when all in it is complete: whoever sees it may use it.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import logging
import os
import re
import shlex
import shutil
import signal
import subprocess
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

from kjump.errors import LabError

Progress = Callable[[float, str], None]

logger = logging.getLogger(__name__)

SOURCES = Path("/usr/src")
ARCHITECTURES = ("x86_64", "i386")

# Same input, same kernel: these would otherwise be the time, the user and the host of whoever builds.
BUILD_IDENTITY = {
    "KBUILD_BUILD_TIMESTAMP": "Mon Jan  1 00:00:00 UTC 2024",
    "KBUILD_BUILD_USER": "kjump",
    "KBUILD_BUILD_HOST": "lab",
    "KBUILD_BUILD_VERSION": "1",
}

# What the build calls, and the Debian package it is in.
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

# Big parts of the source that no configuration of ours compiles, two thirds of it in all. Mostly only C files
# go, because every build reads the Kconfig files of all folders.
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

# Lines that `make` prints for one kernel; only the progress bar depends on it.
MAKE_STEPS = 1880
UNPACK_SHARE = 0.06


@dataclass(frozen=True)
class LabKernel:
    """A kernel in the cache, ready to boot."""

    version: str
    release: str
    arch: str
    image: Path
    config: Path
    vmlinux: Path | None
    build_seconds: float


class MissingSource(LabError):
    """The source of a kernel is not installed here; this release of Debian may not have it."""


# --- the fragment -------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Option:
    """One line of the fragment: `value` is "n" for `is not set`."""

    name: str
    value: str
    remarks: frozenset[str] = frozenset()

    def applies(self, arch: str, debug_info: bool) -> bool:
        """Tell whether the remarks admit this architecture and kind of build."""
        archs = {remark.removesuffix(" only") for remark in self.remarks if remark.endswith(" only")}
        unwanted = "without debug info" if debug_info else "with debug info"
        return (not archs or arch in archs) and unwanted not in self.remarks

    def __str__(self) -> str:
        """Return the line as Kconfig reads and writes it."""
        return f"# {self.name} is not set" if self.value == "n" else f"{self.name}={self.value}"


REMARKS = frozenset({"with debug info", "without debug info", "if known", *(f"{a} only" for a in ARCHITECTURES)})

_OPTION = re.compile(
    r"""(?:# (?P<off>CONFIG_\w+) is not set|(?P<on>CONFIG_\w+)=(?P<value>"(?:[^"\\]|\\.)*"|\S+))"""
    r"(?:  # (?P<remarks>.+))?"
)


def parse_fragment(text: str) -> tuple[Option, ...]:
    """Read a fragment (or a whole .config); comments and blank lines are skipped."""
    return tuple(_options(text))


def _options(text: str) -> Iterator[Option]:
    """Go through the options; a line that is neither option nor comment is an error (LabError)."""
    for number, line in enumerate(text.splitlines(), 1):
        if match := _OPTION.fullmatch(line.rstrip()):
            remarks = frozenset(filter(None, (match["remarks"] or "").split(", ")))
            if unknown := remarks - REMARKS:
                raise LabError(f"line {number} of the kernel config has an unknown remark: {sorted(unknown)[0]}")
            yield Option(match["on"] or match["off"], match["value"] or "n", remarks)
        elif line.strip() and not line.startswith("#"):
            raise LabError(f"line {number} of the kernel config is no option: {line.strip()}")


def lost_options(wanted: Iterable[Option], config: str, known: frozenset[str]) -> tuple[Option, ...]:
    """Return the wanted options that are not so in `config`, the text of a .config.

    `known` has the names of all options this kernel has: a .config leaves out those that are invisible, so it
    alone cannot tell an option that fell victim to a dependency from one that does not exist.
    """
    actual = {option.name: option.value for option in parse_fragment(config)}
    return tuple(
        option
        for option in wanted
        if actual.get(option.name, "n") != option.value
        and not ("if known" in option.remarks and option.name not in known)
    )


def _known_options(tree: Path) -> frozenset[str]:
    """Return the names of all options that the Kconfig files of a source tree define."""
    found = re.compile(r"^\s*(?:menu)?config\s+(\w+)\s*$", re.MULTILINE)
    return frozenset(
        f"CONFIG_{name}"
        for kconfig in tree.rglob("Kconfig*")
        for name in found.findall(kconfig.read_text("utf-8", "replace"))
    )


# --- the cache ----------------------------------------------------------------------------------------------


def cache_root() -> Path:
    """Return where kjump keeps what can be made again: $KJUMP_CACHE, or `kjump` in the user's cache."""
    if own := os.environ.get("KJUMP_CACHE"):
        return Path(own)
    users = os.environ.get("XDG_CACHE_HOME")
    return (Path(users) if users else Path.home() / ".cache") / "kjump"


@dataclass(frozen=True)
class Recipe:
    """All that decides what a kernel will be; equal recipes make equal kernels."""

    version: str
    arch: str
    debug_info: bool
    source: str
    compiler: str
    fragment: str

    @property
    def name(self) -> str:
        """The name of the kernel's folder in the cache."""
        everything = json.dumps([*vars(self).values(), BUILD_IDENTITY], sort_keys=True)
        return f"{self.version}-{self.arch}-{hashlib.sha256(everything.encode()).hexdigest()[:12]}"

    @property
    def options(self) -> tuple[Option, ...]:
        """The options of the fragment that apply."""
        return tuple(o for o in parse_fragment(self.fragment) if o.applies(self.arch, self.debug_info))


def available(sources: Path = SOURCES) -> tuple[str, ...]:
    """Return the versions whose source is installed, oldest first."""
    names = (path.name for path in sources.glob("linux-source-*.tar.xz"))
    versions = (name.removeprefix("linux-source-").removesuffix(".tar.xz") for name in names)
    return tuple(sorted(versions, key=lambda version: [int(part) for part in re.findall(r"\d+", version)]))


def preferred(version: str, sources: Path = SOURCES) -> str:
    """Return `version` if its source is installed or none is, else the newest whose source is."""
    found = available(sources)
    return found[-1] if found and version not in found else version


def _tarball(version: str, sources: Path = SOURCES) -> Path:
    """Return where the source of a version lies, or say how to get it (MissingSource)."""
    tarball = sources / f"linux-source-{version}.tar.xz"
    if tarball.is_file():
        return tarball
    have = " and ".join(available(sources)) or "none"
    raise MissingSource(
        f"the source of Linux {version} is not in {sources} (there: {have}): "
        f"install it with `apt install linux-source-{version}`, if this release of Debian has it"
    )


def _source_identity(tarball: Path) -> str:
    """Return what tells one source from another: its package's version, or a digest where it has none."""
    package = tarball.name.removesuffix(".tar.xz")
    try:
        asked = subprocess.run(
            ["dpkg-query", "-W", "-f", "${Version}", package], capture_output=True, text=True, check=True
        )
    except (OSError, subprocess.CalledProcessError):
        with tarball.open("rb") as stream:
            return f"{package} sha256:{hashlib.file_digest(stream, 'sha256').hexdigest()}"
    return f"{package} {asked.stdout} {tarball.stat().st_size}"


def _recipe(version: str, arch: str, debug_info: bool) -> Recipe:
    """Look up all that goes into a kernel; refuse what cannot be built here (LabError)."""
    if arch not in ARCHITECTURES:
        raise LabError(f"no lab kernel for {arch}: the architectures are {' and '.join(ARCHITECTURES)}")
    tarball = _tarball(version)
    _need_tools("gcc")
    compiler = subprocess.run(["gcc", "--version"], capture_output=True, text=True, check=True).stdout
    fragment = files("kjump.lab.machine").joinpath("kernel.config").read_text("utf-8")
    return Recipe(version, arch, debug_info, _source_identity(tarball), compiler.splitlines()[0], fragment)


def _need_tools(*tools: str) -> None:
    """Refuse when a program is not installed, naming its package (LabError)."""
    if missing := sorted({TOOLS[tool] for tool in tools if not shutil.which(tool)}):
        raise LabError(f"building a kernel needs more tools: `apt install {' '.join(missing)}`")


def _store(folder: Path, kernel: LabKernel) -> None:
    """Write the facts about a kernel that its files do not tell."""
    facts = {
        "version": kernel.version,
        "release": kernel.release,
        "arch": kernel.arch,
        "build_seconds": round(kernel.build_seconds, 1),
    }
    (folder / "kernel.json").write_text(json.dumps(facts, indent=2) + "\n", "utf-8")


def _load(folder: Path) -> LabKernel | None:
    """Return the kernel in a folder of the cache, or None when there is none."""
    try:
        facts = json.loads((folder / "kernel.json").read_text("utf-8"))
    except FileNotFoundError:
        return None
    vmlinux = folder / "vmlinux"
    return LabKernel(
        **facts,
        image=folder / "bzImage",
        config=folder / "config",
        vmlinux=vmlinux if vmlinux.exists() else None,
    )


@contextmanager
def _locked(path: Path, waiting: Callable[[], None]) -> Iterator[None]:
    """Hold the lock file at `path`; call `waiting` first if somebody else has it."""
    with path.open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            waiting()
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


# --- the build ----------------------------------------------------------------------------------------------


def _environment() -> dict[str, str]:
    """Return the environment of a build: nothing of the caller's that could change what is built."""
    kept = {name: os.environ[name] for name in ("PATH", "HOME", "TMPDIR") if name in os.environ}
    return {**kept, "LC_ALL": "C", **BUILD_IDENTITY}


def _pasteable(command: Sequence[str], cwd: Path) -> str:
    """Return a command as one line that a person can paste into a shell."""
    settings = [f"{name}={value}" for name, value in BUILD_IDENTITY.items()]
    return f"cd {shlex.quote(str(cwd))} && {shlex.join(['env', *settings, *command])}"


def _run(command: Sequence[str], cwd: Path, log: Path, on_line: Callable[[str], None] = lambda _: None) -> None:
    """Run one command of a build, its output appended to `log` and given to `on_line` (LabError if it fails).

    This is the only door to other programs while building.
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
    """Turns what `make` prints into a fraction: each line about a file is a step."""

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


def _configure(tree: Path, recipe: Recipe, log: Path) -> None:
    """Write the tree's .config from the fragment and check that each option of it was heard (LabError)."""
    answers = tree / "kjump.config"
    answers.write_text("".join(f"{option}\n" for option in recipe.options), "utf-8")
    _make(tree, recipe.arch, log, "KCONFIG_ALLCONFIG=kjump.config", "allnoconfig")
    lost = lost_options(recipe.options, (tree / ".config").read_text("utf-8"), _known_options(tree))
    if lost:
        raise LabError(
            f"Linux {recipe.version} for {recipe.arch} does not take these options of kernel.config: "
            + ", ".join(str(option) for option in lost)
        )


def _compile(tree: Path, recipe: Recipe, log: Path, report: Progress) -> None:
    """Compile the kernel, telling how far it is."""
    jobs = f"-j{len(os.sched_getaffinity(0))}"
    _make(tree, recipe.arch, log, jobs, "bzImage", on_line=_MakeProgress(report))


def _collect(tree: Path, recipe: Recipe, seconds: float, result: Path) -> None:
    """Move what is kept of a built tree into the folder `result`."""
    result.mkdir()
    (tree / "arch/x86/boot/bzImage").rename(result / "bzImage")
    (tree / ".config").rename(result / "config")
    if recipe.debug_info:
        (tree / "vmlinux").rename(result / "vmlinux")
    release = (tree / "include/config/kernel.release").read_text("utf-8").strip()
    kernel = LabKernel(recipe.version, release, recipe.arch, result / "bzImage", result / "config", None, seconds)
    _store(result, kernel)


def _build(recipe: Recipe, folder: Path, report: Progress) -> None:
    """Build a kernel into `folder`, which must not exist; the caller holds its lock.

    A tree whose build failed is left, so that the command that failed can be tried by hand; the next build
    removes it, as it removes what a killed one left. One that is interrupted, by a signal too, leaves nothing.
    """
    _need_tools(*TOOLS)
    work = folder.with_name(f"{folder.name}.work")
    shutil.rmtree(work, ignore_errors=True)
    _sweep(folder.parent)
    try:
        with _signals_raise():
            _build_in(work, recipe, folder, report)
    except LabError:
        raise
    except BaseException:
        shutil.rmtree(work, ignore_errors=True)
        raise
    shutil.rmtree(work)
    report(1.0, folder.name)


def _sweep(kernels: Path) -> None:
    """Remove the trees of builds that failed or were killed: those whose lock nobody holds."""
    for tree in kernels.glob("*.work"):
        with tree.with_suffix(".lock").open("w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                continue
            shutil.rmtree(tree, ignore_errors=True)


@contextmanager
def _signals_raise() -> Iterator[None]:
    """Make SystemExit of the signals that would end this process at once, so that it can clean up.

    Those that it ignores (nohup), or that somebody else handles, stay as they are.
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


def _build_in(work: Path, recipe: Recipe, folder: Path, report: Progress) -> None:
    """Build a kernel in the new folder `work` and rename the result to `folder`."""
    work.mkdir()
    log = work / "build.log"
    started = time.monotonic()
    report(0.0, "unpacking the source")
    tree = _unpack(_tarball(recipe.version), work, log)
    report(UNPACK_SHARE * 0.9, "configuring")
    _configure(tree, recipe, log)
    _compile(tree, recipe, log, report)
    _collect(tree, recipe, time.monotonic() - started, work / "result")
    log.rename(work / "result" / "build.log")
    (work / "result").rename(folder)


def _kernels(cache: Path | None) -> Path:
    """Return the folder of all kernels in a cache."""
    return (cache or cache_root()) / "kernels"


def cached(
    version: str = "6.12", *, arch: str = "x86_64", debug_info: bool = False, cache: Path | None = None
) -> LabKernel | None:
    """Return the kernel that `build` would return at once; None when it would have to build, or cannot.

    One with debug info serves where none is asked for: the code is the same.
    """
    try:
        wanted = dict.fromkeys((debug_info, True))
        found = (_load(_kernels(cache) / _recipe(version, arch, choice).name) for choice in wanted)
        return next((kernel for kernel in found if kernel), None)
    except LabError:
        return None


def build(
    version: str = "6.12",
    *,
    arch: str = "x86_64",
    debug_info: bool = False,
    cache: Path | None = None,
    progress: Progress | None = None,
) -> LabKernel:
    """Return a kernel, from the cache or built now (minutes).

    `progress` is given a fraction of the work done and the file that is at work.
    """
    if ready := cached(version, arch=arch, debug_info=debug_info, cache=cache):
        return ready
    report = progress or (lambda _fraction, _what: None)
    recipe = _recipe(version, arch, debug_info)
    folder = _kernels(cache) / recipe.name
    folder.parent.mkdir(parents=True, exist_ok=True)
    with _locked(folder.with_name(f"{folder.name}.lock"), lambda: report(0.0, "waiting for another build of it")):
        if not _load(folder):
            _build(recipe, folder, report)
    kernel = _load(folder)
    if not kernel:
        raise LabError(f"the kernel in {folder} is damaged: remove that folder and build it again")
    return kernel
