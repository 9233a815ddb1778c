"""Files are there in full or not at all."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest
import safetensors

from flt.core import files
from flt.core.errors import InputError
from flt.core.files import is_full, last_name, write_atomically


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
