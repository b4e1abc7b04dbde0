"""The pure parts of building lab kernels: the fragment, what got lost, the cache's names and its messages."""

from __future__ import annotations

import fcntl
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from kjump.errors import LabError
from kjump.lab.machine import cache, kernel, kernel_config, kernel_make, kernel_source, tools
from kjump.lab.machine.kernel import LabKernel
from kjump.lab.machine.kernel_config import Option
from kjump.lab.machine.kernel_make import KernelBuild
from kjump.lab.machine.kernel_source import Recipe

RECIPE = Recipe("6.12", "x86_64", False, "linux-source-6.12 1", "gcc 12", "CONFIG_SMP=y\n")


def test_fragment_lines_become_options() -> None:
    text = '# why\n\nCONFIG_A=y\n# CONFIG_B is not set\nCONFIG_C="x"  # if known\nCONFIG_D=-1\n'
    text += 'CONFIG_E="a b \\" c"\n'
    assert kernel_config.parse_fragment(text) == (
        Option("CONFIG_A", "y"),
        Option("CONFIG_B", "n"),
        Option("CONFIG_C", '"x"', frozenset({"if known"})),
        Option("CONFIG_D", "-1"),
        Option("CONFIG_E", '"a b \\" c"'),
    )


def test_options_are_written_as_kconfig_reads_them() -> None:
    text = "CONFIG_A=y  # i386 only, if known\n# CONFIG_B is not set"
    assert [str(option) for option in kernel_config.parse_fragment(text)] == ["CONFIG_A=y", "# CONFIG_B is not set"]


@pytest.mark.parametrize("text", ["CONFIG_A=y  # sometimes", "CONFIG_A", "A=y", "CONFIG_A=y # i386 only"])
def test_a_line_that_is_no_option_is_refused_by_number(text: str) -> None:
    with pytest.raises(LabError, match="line 2 "):
        kernel_config.parse_fragment("# first\n" + text)


def test_remarks_choose_by_architecture_and_debug_info() -> None:
    text = "CONFIG_A=y\nCONFIG_B=y  # i386 only\nCONFIG_C=y  # with debug info\nCONFIG_D=y  # without debug info\n"

    def names(arch: str, debug_info: bool) -> str:
        recipe = replace(RECIPE, arch=arch, debug_info=debug_info, fragment=text)
        return "".join(option.name.removeprefix("CONFIG_") for option in recipe.options)

    assert [names("x86_64", False), names("x86_64", True)] == ["AD", "AC"]
    assert [names("i386", False), names("i386", True)] == ["ABD", "ABC"]


def test_lost_options_are_found_in_both_directions() -> None:
    wanted = kernel_config.parse_fragment(
        "CONFIG_A=y\nCONFIG_B=y\n# CONFIG_C is not set\n# CONFIG_D is not set\nCONFIG_E=1\n"
    )
    config = "CONFIG_A=y\n# CONFIG_B is not set\nCONFIG_C=y\nCONFIG_E=2\n# a remark\n"
    lost = kernel_config.lost_options(wanted, config, frozenset())
    assert [option.name for option in lost] == ["CONFIG_B", "CONFIG_C", "CONFIG_E"]


def test_an_option_marked_if_known_is_lost_only_where_it_exists() -> None:
    wanted = kernel_config.parse_fragment("CONFIG_A=y  # if known\nCONFIG_B=y  # if known\n")
    lost = kernel_config.lost_options(wanted, "", frozenset({"CONFIG_B"}))
    assert [option.name for option in lost] == ["CONFIG_B"]


def test_known_options_come_from_every_kconfig_file(tmp_path: Path) -> None:
    (tmp_path / "mm").mkdir()
    (tmp_path / "mm/Kconfig.debug").write_text("config PAGE_POISONING\n\tbool\nmenuconfig MM\n# config NO no\n")
    (tmp_path / "Kconfig").write_text('\tconfig INDENTED\nsource "mm/Kconfig"\n')
    known = kernel_config.known_options(tmp_path)
    assert known == {"CONFIG_PAGE_POISONING", "CONFIG_MM", "CONFIG_INDENTED"}


def test_the_fragment_we_ship_reads_and_has_no_option_twice() -> None:
    text = kernel_config.our_fragment()
    for arch in kernel_config.ARCHITECTURES:
        for debug_info in (False, True):
            options = replace(RECIPE, arch=arch, debug_info=debug_info, fragment=text).options
            names = [option.name for option in options]
            assert sorted(set(names)) == sorted(names)
            assert "CONFIG_KEXEC_JUMP" in names


def test_every_group_of_the_fragment_says_why() -> None:
    text = kernel_config.our_fragment()
    for group in text.strip().split("\n\n"):
        assert group.startswith("# ") and not group.startswith("# CONFIG_"), group


@pytest.mark.parametrize(
    "change",
    [
        {"version": "6.1"},
        {"arch": "i386"},
        {"debug_info": True},
        {"source": "linux-source-6.12 2"},
        {"compiler": "gcc 13"},
        {"fragment": "CONFIG_SMP=y\n\n"},
    ],
)
def test_whatever_goes_in_changes_the_name(change: dict[str, object]) -> None:
    changed = replace(RECIPE, **change)  # type: ignore[arg-type]
    assert changed.name != RECIPE.name
    assert changed.name.startswith(f"{changed.version}-{changed.arch}-")


def test_the_cache_is_where_the_environment_says(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", "/home/someone")
    monkeypatch.delenv("KJUMP_CACHE", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    assert cache.cache_root() == Path("/home/someone/.cache/kjump")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache.cache_root() == tmp_path / "kjump"
    monkeypatch.setenv("KJUMP_CACHE", str(tmp_path / "own"))
    assert cache.cache_root() == tmp_path / "own"


def test_versions_are_listed_in_order_and_a_missing_one_names_its_package(tmp_path: Path) -> None:
    for version in ("6.12", "6.1"):
        (tmp_path / f"linux-source-{version}.tar.xz").touch()
    assert kernel_source.available(tmp_path) == ("6.1", "6.12")
    with pytest.raises(LabError, match=r"there: 6\.1 and 6\.12.*apt install linux-source-6\.11"):
        kernel_source._tarball("6.11", tmp_path)
    assert kernel_source.preferred("6.1", tmp_path) == "6.1" and kernel_source.preferred("6.11", tmp_path) == "6.12"
    assert kernel_source.preferred("6.11", tmp_path / "nowhere") == "6.11"
    with pytest.raises(LabError, match="there: none"):
        kernel_source._tarball("6.11", tmp_path / "nowhere")


def test_a_source_without_a_package_is_known_by_its_digest(tmp_path: Path) -> None:
    tarball = tmp_path / "linux-source-0.01.tar.xz"
    tarball.write_bytes(b"old")
    before = kernel_source._source_identity(tarball)
    tarball.write_bytes(b"new")
    assert before.startswith("linux-source-0.01 sha256:") and kernel_source._source_identity(tarball) != before


def test_an_unknown_architecture_is_refused() -> None:
    with pytest.raises(LabError, match="x86_64 and i386"):
        kernel_source.build("6.12", arch="arm64")


def test_what_is_described_is_loaded_again(tmp_path: Path) -> None:
    assert kernel.load(tmp_path) is None
    stored = LabKernel("6.12", "6.12.117", "x86_64", tmp_path / "bzImage", tmp_path / "config", None)
    kernel.describe(tmp_path, stored)
    assert kernel.load(tmp_path) == stored
    (tmp_path / "vmlinux").touch()
    assert kernel.load(tmp_path) == replace(stored, vmlinux=tmp_path / "vmlinux")


@pytest.mark.parametrize("text", ["", "[]", '{"version": "6.12", "release": "6.12.1"}', '{"version": 6}'])
def test_a_damaged_description_names_the_folder_and_what_to_do(tmp_path: Path, text: str) -> None:
    (tmp_path / "kernel.json").write_text(text)
    with pytest.raises(LabError, match=f"{tmp_path}/kernel.json: .*remove that folder and build the kernel again"):
        kernel.load(tmp_path)


def test_a_kernel_of_before_is_still_one(tmp_path: Path) -> None:
    text = '{"version": "6.12", "release": "6.12.1", "arch": "x86_64", "build_seconds": 212.5}'
    (tmp_path / "kernel.json").write_text(text)
    found = kernel.load(tmp_path)
    assert found is not None and found.release == "6.12.1"


def test_a_build_in_the_cache_is_not_built_again(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(kernel_source, "_recipe", lambda *_: RECIPE)
    monkeypatch.setattr(kernel_source, "_tarball", lambda version: Path(version))
    built: list[Path] = []

    def fake(build: KernelBuild, folder: Path, report: kernel_make.Progress) -> None:
        assert (build.version, build.tarball, build.keep_vmlinux) == ("6.12", Path("6.12"), False)
        built.append(folder)
        folder.mkdir()
        kernel.describe(folder, LabKernel("6.12", "6.12.1", "x86_64", folder, folder, None))

    monkeypatch.setattr(kernel_source, "make_kernel", fake)
    assert kernel_source.cached(cache=tmp_path) is None
    first = kernel_source.build(cache=tmp_path)
    assert kernel_source.build(cache=tmp_path) == first == kernel_source.cached(cache=tmp_path)
    assert built == [tmp_path / "kernels" / RECIPE.name]


def test_a_failing_command_is_told_with_its_log_and_last_lines(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    log = tmp_path / "build.log"
    seen: list[str] = []
    with pytest.raises(LabError) as caught:
        kernel_make._run(["sh", "-c", "seq 20; echo wrong >&2; exit 3"], tmp_path, log, seen.append)
    assert str(log) in str(caught.value) and str(caught.value).endswith("\n20\nwrong")
    assert "1\n2\n" in log.read_text() and len(seen) == 21
    assert f"cd {tmp_path} && env " in caplog.text and "sh -c 'seq 20; echo wrong" in caplog.text


def test_progress_counts_the_lines_about_files() -> None:
    told: list[tuple[float, str]] = []
    progress = kernel_make._MakeProgress(lambda fraction, what: told.append((fraction, what)))
    for line in ("  CC      kernel/fork.o\n", "warning: odd\n", "  HOSTCC  scripts/kconfig/conf.o\n"):
        progress(line)
    assert [what for _, what in told] == ["kernel/fork.o", "scripts/kconfig/conf.o"]
    for _ in range(2 * kernel_make.MAKE_STEPS):
        progress("  LD      vmlinux.o\n")
    fractions = [fraction for fraction, _ in told]
    assert fractions == sorted(fractions) and fractions[-1] < 1


def test_a_second_builder_waits_and_says_so(tmp_path: Path) -> None:
    waits: list[bool] = []
    path = tmp_path / "lock"
    with (
        cache.locked(path, lambda: waits.append(True)),
        path.open() as other,
        pytest.raises(BlockingIOError),
    ):
        fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
    holder = path.open()
    fcntl.flock(holder, fcntl.LOCK_EX)

    def waiting() -> None:
        waits.append(True)
        holder.close()

    with cache.locked(path, waiting):
        assert waits == [True]


def test_a_missing_tool_is_told_by_its_package(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(tools, "_ADMINISTRATORS", str(tmp_path))
    with pytest.raises(LabError, match="apt install binutils xz-utils`"):
        kernel_make.need_tools("ld", "xz")


_INTERRUPTED = """
import os, signal, sys
from pathlib import Path
from kjump.lab.machine import kernel_make
from kjump.lab.machine.kernel_make import KernelBuild

def build_in(work, *_):
    work.mkdir()
    (work / "source").touch()
    os.kill(os.getpid(), getattr(signal, sys.argv[2]))
    work.rename(sys.argv[1] + "/done")

# Not as who started the tests has them: a shell lets what it starts in the background ignore SIGINT.
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGTERM, signal.SIG_DFL)
signal.signal(signal.SIGHUP, signal.SIG_IGN if sys.argv[3:] else signal.SIG_DFL)
kernel_make._build_in = build_in
kernel_make.need_tools = lambda *_: None
build = KernelBuild("6.12", "x86_64", Path("linux-source-6.12.tar.xz"), (), keep_vmlinux=False)
kernel_make.make_kernel(build, Path(sys.argv[1], "6.12"), lambda *_: None)
"""


@pytest.mark.parametrize(("name", "status"), [("SIGTERM", 143), ("SIGHUP", 129), ("SIGINT", -signal.SIGINT)])
def test_an_interrupted_build_leaves_nothing(tmp_path: Path, name: str, status: int) -> None:
    done = subprocess.run([sys.executable, "-c", _INTERRUPTED, str(tmp_path), name], capture_output=True, check=False)
    assert done.returncode == status, done.stderr
    assert list(tmp_path.iterdir()) == []


def test_a_build_under_nohup_goes_on_when_the_terminal_goes(tmp_path: Path) -> None:
    command = [sys.executable, "-c", _INTERRUPTED, str(tmp_path), "SIGHUP", "ignored"]
    subprocess.run(command, capture_output=True, check=False)
    assert [path.name for path in tmp_path.iterdir()] == ["done"]


def test_trees_that_killed_builds_left_are_swept_and_those_at_work_are_not(tmp_path: Path) -> None:
    for name in ("left", "held"):
        (tmp_path / f"{name}.work").mkdir()
        (tmp_path / f"{name}.work" / "vmlinux.o").touch()
        (tmp_path / f"{name}.lock").touch()
    with (tmp_path / "held.lock").open() as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        kernel_make._sweep(tmp_path)
    assert sorted(path.name for path in tmp_path.glob("*.work")) == ["held.work"]
