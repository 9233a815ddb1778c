"""Locks between processes. The operating system releases all locks of a process that ends or is killed."""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Iterator
from pathlib import Path

from filelock import FileLock

try:
    import fcntl
except ImportError:  # Windows, where a folder can't be renamed or removed while one of its files is in use
    fcntl = None  # type: ignore[assignment]  # a module where it exists

_UNSUPPORTED = (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOTSUP, errno.ENOSYS)
_held: dict[Path, int] = {}
"""Folder that this process uses -> descriptor with a shared lock."""


class NoLocksError(OSError):
    """Error for a file system that has no locks, such as some network file systems."""


def acquire(lock: FileLock, timeout: float = 0) -> None:
    """Takes a lock. Unlike the lock's own method, never takes a lock that stays if the process is killed.

    Args:
        lock: The lock.
        timeout: Seconds to wait for another process. If -1, waits until the other process releases the lock.

    Raises:
        Timeout: Another process has the lock.
        NoLocksError: The file system has no locks.
        OSError: The file of the lock can't be written.
    """
    if fcntl is not None:
        _check_support(Path(lock.lock_file), lock.mode)
    lock.acquire(timeout=timeout)


def _check_support(path: Path, mode: int) -> None:
    """Checks that files can be locked.

    Where they can't, some versions of filelock raise NotImplementedError. Others treat the mere existence of the file
    as the lock, and this file would stay if the process is killed.
    """
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, mode)
    try:
        # A shared lock: of several processes that start at once, one still gets the exclusive lock.
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in _UNSUPPORTED:
            path.unlink(missing_ok=True)
            raise NoLocksError(error.errno, os.strerror(error.errno), str(path)) from error
    finally:
        os.close(descriptor)


def unlock(lock: FileLock) -> None:
    """Releases a lock and removes its file. The FileLock of a waiting process makes a new file."""
    with contextlib.suppress(OSError):  # Windows can't remove an open file
        Path(lock.lock_file).unlink()
    lock.release()


def hold(folder: Path) -> bool:
    """Marks a folder as in use, until this process ends or calls :func:`let_go`.

    Any number of processes can use a folder at once. No file is written, so a read-only folder can be used too.

    Returns:
        False if there is no such folder.

    Raises:
        OSError: The folder can't be opened for another reason.
    """
    if fcntl is None:
        return folder.is_dir()
    try:
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    except (FileNotFoundError, NotADirectoryError):
        return False
    let_go(folder)
    there = False
    try:
        # Waits for a process that is just removing the folder. Afterwards the folder may be gone, or a new one.
        _lock(descriptor, fcntl.LOCK_SH)
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):
            there = os.path.samestat(os.fstat(descriptor), os.stat(folder))
    finally:
        if there:
            _held[folder] = descriptor
        else:
            os.close(descriptor)
    return there


def let_go(folder: Path | None = None) -> None:
    """Ends the use of a folder by this process. If None, ends the use of all folders."""
    for path in [*_held] if folder is None else [folder]:
        if path in _held:
            os.close(_held.pop(path))


@contextlib.contextmanager
def unused(folder: Path) -> Iterator[bool]:
    """Yields whether no process uses a folder, not even this one. In the with block, no process can begin to use it."""
    if fcntl is None:
        yield True
        return
    try:
        descriptor = os.open(folder, os.O_RDONLY)
    except OSError:
        yield False
        return
    try:
        yield _lock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    finally:
        os.close(descriptor)


def _lock(descriptor: int, operation: int) -> bool:
    """Locks a descriptor. Returns False if another process's lock prevents this.

    Returns True, too, if the file system has no such locks. Then nobody can tell which folders are in use.
    """
    try:
        fcntl.flock(descriptor, operation)
    except BlockingIOError:
        return False
    except OSError:
        return True
    return True


def is_locked(path: Path) -> bool:
    """Returns whether a process has the lock of a file. Nothing is written, and no lock stays.

    False if there is no such file, if it can't be read, or if the file system has no locks.
    """
    if fcntl is None:
        return path.is_file()  # unlock() removes the file
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW)
    except OSError:
        return False
    try:
        return not _lock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    finally:
        os.close(descriptor)
