"""The cache of compiled programs: what others could have put there is not believed."""

import os
import stat
from pathlib import Path

import pytest
from emulated import EXAMPLES

from kjump.call import compiler
from kjump.call.program import Arch, Preserve

NOBODY = 65534
as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away; run as root")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path / "kjump" / "programs"


def compiled(source: Path = EXAMPLES / "add.c") -> bytes:
    return compiler.compiled(source, Arch.X86_64, "add", Preserve.NOTHING)


def test_a_program_is_compiled_once_and_kept_for_us_alone(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = compiled()
    (kept,) = folder.iterdir()
    assert kept.read_bytes() == made
    assert [stat.S_IMODE(p.stat().st_mode) for p in (folder, kept)] == [0o700, 0o600]
    monkeypatch.setattr(compiler, "_made", lambda *_: b"compiled again")
    assert compiled() == made


def test_a_cache_that_others_can_read_is_closed(folder: Path) -> None:
    folder.mkdir(parents=True, mode=0o755)
    compiled()
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700


@pytest.mark.parametrize("change", ["writable", "link", pytest.param("owner", marks=as_root)])
def test_a_file_that_others_could_have_written_is_made_anew(change: str, folder: Path) -> None:
    made = compiled()
    (kept,) = folder.iterdir()
    kept.write_bytes(b"\x7fELF of somebody else")
    if change == "writable":
        kept.chmod(0o666)
    elif change == "owner":
        os.chown(kept, NOBODY, NOBODY)
    else:
        kept.rename(folder.parent / "theirs")
        kept.symlink_to(folder.parent / "theirs")
    assert compiled() == made
    assert kept.read_bytes() == made and not kept.is_symlink()


@pytest.mark.parametrize("change", ["writable", "link", pytest.param("owner", marks=as_root)])
def test_a_folder_that_others_can_write_to_is_not_used(change: str, folder: Path) -> None:
    made = compiled()
    (kept,) = folder.iterdir()
    kept.write_bytes(b"\x7fELF of somebody else")
    if change == "writable":
        folder.chmod(0o777)
    elif change == "owner":
        os.chown(folder, NOBODY, NOBODY)
    else:
        folder.rename(folder.parent / "theirs")
        folder.symlink_to("theirs")
    assert compiled() == made
    assert kept.read_bytes() == b"\x7fELF of somebody else"


def test_what_is_compiled_is_what_the_name_stands_for(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file that changes while it is compiled: nothing else may be kept under the name of what it was."""
    source = tmp_path / "add.c"
    source.write_text("unsigned long add(const unsigned long *a, unsigned long n) { (void)a; (void)n; return 1; }\n")
    run = compiler._run

    def change_after(command: list[str], *rest: object) -> bytes:
        done = run(command, *rest)  # type: ignore[arg-type]
        source.write_text(source.read_text().replace("return 1", "return 2"))
        return done

    first = source.read_text()
    monkeypatch.setattr(compiler, "_run", change_after)
    compiled(source)
    monkeypatch.undo()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "empty"))
    source.write_text(first)
    true = compiled(source)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert compiled(source) == true
