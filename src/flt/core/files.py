"""Atomic writing of files. Helpers for paths and for errors of the file system."""

from __future__ import annotations

import contextlib
import errno
import os
from pathlib import Path
from typing import Any

from flt.core.errors import InputError

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
"""Error numbers of a full disk, an exhausted quota and a file that is too large."""


def write_atomically(path: Path, data: bytes) -> None:
    """Writes a file completely or not at all, even if the machine crashes.

    Raises:
        InputError: The disk is full, or there is a folder in the file's place. If the file existed before, it is
            unchanged.
    """
    if path.is_dir() and not path.is_symlink():
        raise InputError.of(path.name, "a folder", "a file that flt wrote, or nothing")
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        with temporary.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        if is_full(error):
            raise no_room(path.name) from error
        raise
    temporary.replace(path)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def is_path(value: Any) -> bool:
    """Returns whether a value is a path on this machine. A hub id such as org/name is not a path."""
    # os.path.exists is used because Path.exists raises an error for an invalid name.
    return isinstance(value, str) and (value.startswith(("/", "~", ".")) or ("/" in value and os.path.exists(value)))


def last_name(value: Any) -> Any:
    """Returns the last part of a path. A value that isn't a path is returned unchanged.

    Published files contain only the last part, so that they don't reveal the folders of this machine.
    """
    return Path(os.path.abspath(expand_user(value))).name if is_path(value) else value


def expand_user(value: str | Path) -> Path:
    """Expands ~ in a path. Unlike Path.expanduser, this function doesn't raise an error for an unknown user."""
    return Path(os.path.expanduser(value))


def system_message(error: OSError) -> str:
    """Returns the operating system's message for an error, without the path."""
    return error.strerror or type(error).__name__


def is_full(error: BaseException) -> bool:
    """Returns whether an error means a full disk. safetensors puts the error number only into the text."""
    if isinstance(error, OSError):
        return error.errno in FULL
    return any(f"(os error {number})" in str(error) for number in FULL)


def no_room(what: str) -> InputError:
    """Builds the error for a full disk.

    Args:
        what: Name of the thing that couldn't be written.
    """
    allowed = "a disk with room; resume=last then goes on after the last checkpoint"
    return InputError.of(what, "?", allowed, "no space is left for it")
