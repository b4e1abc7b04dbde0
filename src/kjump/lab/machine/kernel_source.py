"""Kernels built from Debian's `linux-source-*` packages, and kept in the cache.

A kernel is built by `make allnoconfig` with the fragment `kernel.config` in this folder, then `make bzImage`. All
inputs (source, fragment, architecture, compiler, fixed build user and time) are hashed into the name of the kernel's
folder in the cache, so a changed fragment makes a new kernel, and an unchanged one is not built again:

    <cache root>/kernels/6.12-x86_64-1a2b3c4d5e6f/       the kernel (see `kernel`), and build.log
                         6.12-x86_64-1a2b3c4d5e6f.lock   held during the build
                         6.12-x86_64-1a2b3c4d5e6f.work/  source and build tree, removed afterwards
"""

from __future__ import annotations

import hashlib
import json
import re
import subprocess
from dataclasses import dataclass
from pathlib import Path

from kjump.errors import LabError
from kjump.lab.machine.cache import locked
from kjump.lab.machine.kernel import LabKernel, kernels_folder, load
from kjump.lab.machine.kernel_config import ARCHITECTURES, Option, our_fragment, parse_fragment
from kjump.lab.machine.kernel_make import BUILD_IDENTITY, KernelBuild, Progress, make_kernel, need_tools

SOURCES = Path("/usr/src")


class MissingSource(LabError):
    """The source of a kernel is not installed here; this release of Debian may not have it."""


@dataclass(frozen=True)
class Recipe:
    """All inputs of a kernel's build; equal recipes make equal kernels."""

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
    """Return the path of a version's source; MissingSource, which says how to get it, when it is not installed."""
    tarball = sources / f"linux-source-{version}.tar.xz"
    if tarball.is_file():
        return tarball
    have = " and ".join(available(sources)) or "none"
    raise MissingSource(
        f"the source of Linux {version} is not in {sources} (there: {have}): "
        f"install it with `apt install linux-source-{version}`, if this release of Debian has it"
    )


def _source_identity(tarball: Path) -> str:
    """Return the identity of a source: its package's version, or a digest if it belongs to no package."""
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
    """Return the recipe of a kernel; LabError when it cannot be built here."""
    if arch not in ARCHITECTURES:
        raise LabError(f"no lab kernel for {arch}: the architectures are {' and '.join(ARCHITECTURES)}")
    tarball = _tarball(version)
    need_tools("gcc")
    compiler = subprocess.run(["gcc", "--version"], capture_output=True, text=True, check=True).stdout
    fragment = our_fragment()
    return Recipe(version, arch, debug_info, _source_identity(tarball), compiler.splitlines()[0], fragment)


def _build_of(recipe: Recipe) -> KernelBuild:
    """Return the parameters of the build of `recipe`."""
    tarball = _tarball(recipe.version)
    return KernelBuild(recipe.version, recipe.arch, tarball, recipe.options, keep_vmlinux=recipe.debug_info)


def cached(
    version: str = "6.12", *, arch: str = "x86_64", debug_info: bool = False, cache: Path | None = None
) -> LabKernel | None:
    """Return the kernel from the cache; None when it would have to be built, or cannot be.

    A kernel with debug info is returned also when none is asked for: its code is the same.
    """
    try:
        wanted = dict.fromkeys((debug_info, True))
        found = (load(kernels_folder(cache) / _recipe(version, arch, choice).name) for choice in wanted)
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

    `progress` is called with the fraction of the work done and the file that is being built.
    """
    if ready := cached(version, arch=arch, debug_info=debug_info, cache=cache):
        return ready
    report = progress or (lambda _fraction, _what: None)
    recipe = _recipe(version, arch, debug_info)
    folder = kernels_folder(cache) / recipe.name
    folder.parent.mkdir(parents=True, exist_ok=True)
    with locked(folder.with_name(f"{folder.name}.lock"), lambda: report(0.0, "waiting for another build of it")):
        if not load(folder):
            make_kernel(_build_of(recipe), folder, report)
    kernel = load(folder)
    if not kernel:
        raise LabError(f"the kernel in {folder} is damaged: remove that folder and build it again")
    return kernel
