"""Writing files so that a crash leaves a whole one or none."""

from __future__ import annotations

import contextlib
import errno
import os
from pathlib import Path
from typing import Any

from flt.core.errors import InputError

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
"""What a system says where a file finds no room."""


def write_atomically(path: Path, data: bytes) -> None:
    """Writes a file that is either there in full or not at all, also after a crash of the machine.

    Raises:
        InputError: There is no room for it; what was there before still is.
    """
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
    """Returns whether a value is a path on this machine. A hub id such as org/name only resembles one."""
    # Path.exists would raise for a name that is too long for the file system.
    return isinstance(value, str) and (value.startswith(("/", "~", ".")) or ("/" in value and os.path.exists(value)))


def last_name(value: Any) -> Any:
    """Returns the last name of a path, so that others don't see a user's folders, and any other value unchanged."""
    return Path(os.path.abspath(expanded(value))).name if is_path(value) else value


def expanded(value: str | Path) -> Path:
    """A path with ~ as the folder that it stands for; Path.expanduser would raise where there is no such user."""
    return Path(os.path.expanduser(value))


def why_of(error: OSError) -> str:
    """What a system says is wrong, without the path."""
    return error.strerror or type(error).__name__


def is_full(error: BaseException) -> bool:
    """Whether an error says that a file finds no room, also one of safetensors, which has the number in its text."""
    if isinstance(error, OSError):
        return error.errno in FULL
    return any(f"(os error {number})" in str(error) for number in FULL)


def no_room(what: str) -> InputError:
    """The line of a full disk.

    Args:
        what: What had no room.
    """
    allowed = "a disk with room; resume=last then goes on after the last checkpoint"
    return InputError.of(what, "?", allowed, "no space is left for it")
