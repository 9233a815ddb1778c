"""Atomic writing of files. Helpers for folders that belong to flt, for paths, and for errors of the file system."""

from __future__ import annotations

import contextlib
import errno
import functools
import os
import re
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from flt.core.errors import InputError

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
"""Error numbers of a full disk, an exhausted quota and a file that is too large."""
PRIVATE_FILE, PRIVATE_FOLDER = 0o600, 0o700
"""Modes with which only the owner can read."""
_TEMPORARY = re.compile(r"\.(?P<name>.+)\.[0-9a-f]{16}\.tmp")


def write_atomically(path: Path, data: bytes, mode: int = 0o666) -> None:
    """Writes a file completely or not at all, even if the machine crashes.

    The data are first written to a new file with a random name in the same folder. Links aren't followed: a link in the
    place of the file is replaced.

    Args:
        path: Path of the file. Its folder must exist.
        data: Content of the file.
        mode: Mode of the file, from which the process's umask is subtracted.

    Raises:
        InputError: The disk is full, or there is a folder in the file's place. If the file existed before, it is
            unchanged.
        OSError: The file can't be written for another reason. If the file existed before, it is unchanged.
    """
    if path.is_dir() and not path.is_symlink():
        raise InputError.of(path.name, "a folder", "a file that flt wrote, or nothing")
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}.tmp")
    # "x" creates a new file, or fails. It never opens an existing file or the target of a link.
    created = open(temporary, "xb", opener=functools.partial(os.open, mode=mode))  # noqa: SIM115  # the with block below closes it
    try:
        with created as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException as error:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        if is_full(error):
            raise no_room(path.name) from error
        raise
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


@contextlib.contextmanager
def writing_atomically(path: Path) -> Iterator[Path]:
    """Yields the path of a temporary file in the same folder, which replaces a file at the end of the with block.

    If an error is raised in the block, or Ctrl-C ends it, the temporary file is removed, and the file is unchanged.

    Args:
        path: Path of the file. Its folder must exist.

    Raises:
        InputError: The disk is full, or the file can't be written.
    """
    if path.is_dir():
        raise InputError.of(path.name, "a folder", "a file, or nothing")
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}.tmp")
    try:
        with reported("out", path, "a file that can be written"):
            yield temporary
            temporary.replace(path)
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


def remove_leftovers(folder: Path, names: re.Pattern[str]) -> None:
    """Removes the temporary files that a killed :func:`write_atomically` has left in a folder.

    Args:
        folder: The folder. No other process may be writing to it. If it is missing, nothing happens.
        names: Pattern of the names of the files that flt writes to this folder. Temporary files of others stay.
    """
    for path in folder.glob(".*.tmp"):
        found = _TEMPORARY.fullmatch(path.name)
        if found and names.fullmatch(found["name"]):
            remove_file(path)


def remove_file(path: Path) -> None:
    """Removes a regular file. Does nothing to a link or a folder, and nothing if there is no such file."""
    with contextlib.suppress(FileNotFoundError):
        if is_regular(path):
            path.unlink()


def is_regular(path: Path) -> bool:
    """Returns whether a path is a file and no link."""
    return path.is_file() and not path.is_symlink()


def check_no_link(path: Path, name: str = "") -> None:
    """Checks that a path isn't a link. flt writes and removes files in its own folders, which no link may replace.

    Args:
        path: The path.
        name: Name of the path in the error. If empty, the last part of the path.

    Raises:
        InputError: The path is a link.
    """
    if path.is_symlink():
        raise InputError.of(
            name or path.absolute().name, "<link>", "the run's own folder or file", "no link is followed here"
        )


def make_private(folder: Path) -> None:
    """Creates a folder that only its owner can read. A folder that exists is closed to all other users.

    What the owner may do in an existing folder stays as it is, so that a read-only folder remains read-only.

    Args:
        folder: The folder. Its parent must exist.

    Raises:
        InputError: The folder is a link.
        OSError: The folder can't be created.
    """
    check_no_link(folder)
    folder.mkdir(mode=PRIVATE_FOLDER, exist_ok=True)
    with contextlib.suppress(OSError):  # raised if another user owns the folder
        folder.chmod(folder.stat().st_mode & PRIVATE_FOLDER)


def make_tree_private(folder: Path) -> None:
    """Closes a folder and everything in it to all users but the owner. Links in it aren't followed."""
    folder.chmod(PRIVATE_FOLDER)
    for path in folder.rglob("*"):
        if not path.is_symlink():
            path.chmod(PRIVATE_FOLDER if path.is_dir() else PRIVATE_FILE)


@contextlib.contextmanager
def reported(key: str, value: object, allowed: str) -> Iterator[None]:
    """Turns an error of the file system into an InputError, whose line begins with ``key=value``.

    Raises:
        InputError: An OSError was raised in the with block.
    """
    try:
        yield
    except OSError as error:
        raise no_room(key) if is_full(error) else InputError.of(key, value, allowed, system_message(error)) from error


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
