"""Locks between processes: a folder is in use or it isn't there, and everything else is an error."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from flt.core.locks import hold, let_go


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


@pytest.mark.parametrize("name", ["nothing", "file", "file/inner", "dangling"])
def test_what_is_no_folder_is_not_held(name: str, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "dangling").symlink_to("nowhere")
    before = descriptors()
    assert not hold(tmp_path / name)
    assert descriptors() == before


@pytest.mark.parametrize("number", [errno.EACCES, errno.EMFILE, errno.EIO])
@pytest.mark.parametrize("of", ["open", "stat"])
def test_a_folder_that_can_not_be_opened_is_an_error_and_not_missing(
    of: str, number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(*_: object, **__: object) -> None:
        raise OSError(number, os.strerror(number))

    before = descriptors()
    with monkeypatch.context() as patch:
        patch.setattr(os, of, refused)
        with pytest.raises(OSError, match=os.strerror(number)):
            hold(tmp_path)
    assert descriptors() == before
    assert hold(tmp_path)
    let_go(tmp_path)
    assert descriptors() == before
