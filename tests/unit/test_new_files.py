"""Files in folders where others may write: no link is followed, nothing that others could have written is believed."""

import os
import stat
from pathlib import Path

import pytest

from kjump.errors import HostError
from kjump.host.new_files import read_own, write_whole

NOBODY = 65534
as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away; run as root")


def test_what_is_written_is_there_whole_and_nothing_else(tmp_path: Path) -> None:
    write_whole(tmp_path / "new", b"one")
    write_whole(tmp_path / "new", b"two", mode=0o600)
    assert (tmp_path / "new").read_bytes() == b"two"
    assert stat.S_IMODE((tmp_path / "new").stat().st_mode) == 0o600
    assert [p.name for p in tmp_path.iterdir()] == ["new"]


def test_a_link_that_somebody_left_is_replaced_and_not_followed(tmp_path: Path) -> None:
    (tmp_path / "precious").write_bytes(b"precious")
    (tmp_path / "new").symlink_to("precious")
    write_whole(tmp_path / "new", b"data")
    assert (tmp_path / "precious").read_bytes() == b"precious"
    assert not (tmp_path / "new").is_symlink() and (tmp_path / "new").read_bytes() == b"data"


def test_a_file_that_somebody_has_open_does_not_get_the_data(tmp_path: Path) -> None:
    path = tmp_path / "new"
    with path.open("w+b") as theirs:
        write_whole(path, b"data")
        assert theirs.read() == b""
    (tmp_path / "second").hardlink_to(path)
    write_whole(path, b"other")
    assert (tmp_path / "second").read_bytes() == b"data"


def test_what_cannot_be_written_is_one_sentence_and_leaves_what_was_there(tmp_path: Path) -> None:
    with pytest.raises(HostError, match=r"cannot write .*: No such file or directory"):
        write_whole(tmp_path / "no" / "new", b"")
    with pytest.raises(HostError, match=r"cannot write .*: Is a directory"):
        write_whole(tmp_path, b"")
    limit = os.pathconf(tmp_path, "PC_NAME_MAX")
    with pytest.raises(HostError, match="File name too long"):
        write_whole(tmp_path / ("n" * limit), b"")
    assert not [*tmp_path.iterdir()]


def test_streams_are_written_to(tmp_path: Path) -> None:
    read, write = os.pipe()
    write_whole(Path(f"/dev/fd/{write}"), b"data")
    assert os.read(read, 10) == b"data"
    os.close(read)
    os.close(write)


@as_root
def test_a_pipe_of_somebody_else_gets_nothing(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    os.chown(pipe, NOBODY, NOBODY)
    with pytest.raises(HostError, match="belongs to another user"):
        write_whole(pipe, b"data")


def test_only_what_nobody_else_can_have_written_is_read(tmp_path: Path) -> None:
    path = tmp_path / "file"
    assert read_own(path) is None
    write_whole(path, b"data", mode=0o600)
    assert read_own(path) == b"data"
    (tmp_path / "link").symlink_to(path)
    assert read_own(tmp_path / "link") is None
    assert read_own(tmp_path) is None
    path.chmod(0o620)
    assert read_own(path) is None


@as_root
def test_a_file_of_somebody_else_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "file"
    write_whole(path, b"data", mode=0o600)
    os.chown(path, NOBODY, NOBODY)
    assert read_own(path) is None
