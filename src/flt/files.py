"""Writing files so that a crash leaves a whole one or none."""

from __future__ import annotations

import contextlib
import errno
import os
from pathlib import Path

from flt.errors import InputError

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
        if error.errno in FULL:
            raise no_room(error, path.name) from error
        raise
    temporary.replace(path)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def no_room(error: OSError, what: str) -> InputError:
    """The line of a full disk.

    Args:
        error: What the system said.
        what: What had no room.
    """
    allowed = "a disk with room; resume=last then goes on after the last checkpoint"
    return InputError.of("root", os.strerror(error.errno or errno.ENOSPC), allowed, f"{what} wasn't written")
