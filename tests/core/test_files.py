"""Files are there in full or not at all."""

from __future__ import annotations

import errno
import os
import re
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest
import safetensors

from flt.core import files
from flt.core.errors import InputError
from flt.core.files import is_full, last_name, make_private, remove_leftovers, write_atomically


def test_an_interrupted_write_leaves_the_old_file_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_atomically(tmp_path / "file", b"old")

    def full(_: int) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr(files.os, "fsync", full)
    with pytest.raises(OSError, match="no space"):
        write_atomically(tmp_path / "file", b"new")
    assert (tmp_path / "file").read_bytes() == b"old"


def test_a_full_disk_is_one_line_and_leaves_no_half_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_atomically(tmp_path / "file", b"old")

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(files.os, "fsync", full)
    with pytest.raises(InputError, match=r"file=\?: no space is left for it; allowed is a disk with room"):
        write_atomically(tmp_path / "file", b"new")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
    assert (tmp_path / "file").read_bytes() == b"old"


def test_a_link_at_a_guessed_temporary_name_is_not_followed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mine = tmp_path / "mine"
    mine.write_bytes(b"mine")
    for guessed in (".file.tmp", f".file.{'0' * 16}.tmp"):
        (tmp_path / guessed).symlink_to(mine)
    write_atomically(tmp_path / "file", b"new")
    assert (tmp_path / "file").read_bytes() == b"new"
    monkeypatch.setattr(files.secrets, "token_hex", lambda n: "0" * 2 * n)  # even a guess that comes true
    with pytest.raises(FileExistsError):
        write_atomically(tmp_path / "file", b"newer")
    assert mine.read_bytes() == b"mine"
    assert (tmp_path / "file").read_bytes() == b"new"
    assert (tmp_path / f".file.{'0' * 16}.tmp").is_symlink()


def test_a_link_in_the_place_of_a_file_is_replaced_and_its_target_stays(tmp_path: Path) -> None:
    (tmp_path / "mine").write_bytes(b"mine")
    (tmp_path / "file").symlink_to(tmp_path / "mine")
    write_atomically(tmp_path / "file", b"new")
    assert (tmp_path / "mine").read_bytes() == b"mine"
    assert not (tmp_path / "file").is_symlink()
    assert (tmp_path / "file").read_bytes() == b"new"


@pytest.mark.parametrize("error", [OSError(errno.EACCES, "Permission denied"), KeyboardInterrupt(), MemoryError()])
def test_nothing_is_left_where_the_last_rename_fails(
    error: BaseException, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_atomically(tmp_path / "file", b"old")

    def failing(path: Path, target: Path) -> Path:
        raise error

    monkeypatch.setattr(Path, "replace", failing)
    with pytest.raises(type(error)):
        write_atomically(tmp_path / "file", b"new")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
    assert (tmp_path / "file").read_bytes() == b"old"


def test_nothing_is_left_where_a_folder_has_the_name_of_the_file(tmp_path: Path) -> None:
    (tmp_path / "file").mkdir()
    with pytest.raises(InputError, match=r"^file=a folder: "):
        write_atomically(tmp_path / "file", b"new")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


@pytest.fixture
def loose_umask() -> Iterator[None]:
    before = os.umask(0)
    yield
    os.umask(before)


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


@pytest.mark.usefixtures("loose_umask")
def test_private_files_and_folders_are_their_owners_alone_under_any_umask(tmp_path: Path) -> None:
    make_private(tmp_path / "new")
    (tmp_path / "open").mkdir()
    (tmp_path / "read-only").mkdir(mode=0o555)
    make_private(tmp_path / "open")
    make_private(tmp_path / "read-only")
    write_atomically(tmp_path / "new" / "file", b"", files.PRIVATE_FILE)
    write_atomically(tmp_path / "public", b"")
    found = [mode(tmp_path / name) for name in ("new", "open", "read-only", "new/file", "public")]
    assert found == [0o700, 0o700, 0o500, 0o600, 0o666]


def test_a_link_is_no_private_folder(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir(mode=0o755)
    (tmp_path / "link").symlink_to(tmp_path / "mine")
    with pytest.raises(InputError, match=r"^link=<link>: no link is followed here; allowed is"):
        make_private(tmp_path / "link")
    assert mode(tmp_path / "mine") == 0o755


def test_leftovers_of_a_killed_write_go_and_those_of_others_stay(tmp_path: Path) -> None:
    random = "0123456789abcdef"
    mine = [".a.tmp", f".b.{random}.tmp", f".a.{random}", f"a.{random}.tmp", f".a.{random[1:]}.tmp"]
    for name in (*mine, f".a.{random}.tmp"):
        (tmp_path / name).write_bytes(b"")
    (tmp_path / f".a.{random[::-1]}.tmp").symlink_to(tmp_path / ".a.tmp")
    (tmp_path / f".a.{random[1:]}0.tmp").mkdir()
    remove_leftovers(tmp_path, re.compile("a"))
    left = {path.name for path in tmp_path.iterdir()}
    assert left == {*mine, f".a.{random[::-1]}.tmp", f".a.{random[1:]}0.tmp"}
    remove_leftovers(tmp_path / "nowhere", re.compile("a"))


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        ("~nosuchuser/private/x.csv", "x.csv"),
        ("~/x.csv", "x.csv"),
        ("/private/x.csv", "x.csv"),
        ("org/name", "org/name"),
        ("org/" + "x" * 300, "org/" + "x" * 300),
        (3, 3),
    ],
)
def test_the_last_name_of_a_value_needs_no_such_path(value: object, shown: object) -> None:
    assert last_name(value) == shown


@pytest.mark.parametrize(
    ("error", "full"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), True),
        (OSError(errno.EACCES, "Permission denied"), False),
        (
            safetensors.SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)"),
            True,
        ),
        (safetensors.SafetensorError("Error while serializing: I/O error: Permission denied (os error 13)"), False),
    ],
)
def test_a_full_disk_is_told_from_other_errors(error: Exception, full: bool) -> None:
    assert is_full(error) is full
