"""Cache on disk for results that are expensive to compute.

An entry is a folder of computed files. The folder's name is a digest of the inputs of the computation. If space is
needed, the least recently used entries are removed.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import logging
import math
import os
import re
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from flt.core.errors import InputError
from flt.core.files import expand_user

ABOUT = "entry.json"
"""Name of the file that contains the description and the size of an entry."""
EMBEDDED = "embedded"
"""Kind of entries that contain an embedded backbone, a small model that flt has pre-trained itself."""
KINDS = ("tokens", "prefix", EMBEDDED)
KEY = re.compile(r"[0-9a-f]{20}")
"""Pattern of the folder names of entries."""
BYTES_PER_GB = 1e9
HOUR = 3600
_used: set[Path] = set()
"""Folders of the entries that this process has used. These entries must not be removed to make room."""
_log = logging.getLogger(__name__)


@dataclasses.dataclass
class CacheConfig:
    """Settings of the cache on disk."""

    max_gb: float

    def __post_init__(self) -> None:
        if not 0 < self.max_gb < math.inf:
            raise InputError.of("cache.max_gb", self.max_gb, "a number > 0")

    @property
    def limit(self) -> int:
        """Largest size of the cache in bytes."""
        return int(self.max_gb * BYTES_PER_GB)


@dataclasses.dataclass(frozen=True)
class Entry:
    """One entry of the cache.

    Attributes:
        kind: Kind of the entry, one of KINDS. The parent folder of an entry has the name of the kind, except for
            embedded backbones.
        key: Digest of ``about``; for an embedded backbone, the name of its folder.
        path: Folder of the entry.
        about: Description of the inputs from which the entry was computed.
        size: Size of the files in bytes.
        used: Unix time of the last use, in seconds.
    """

    kind: str
    key: str
    path: Path
    about: dict[str, Any]
    size: int
    used: float


def folder() -> Path:
    """Returns the cache folder: `$FLT_CACHE` if set, else `$XDG_CACHE_HOME/flt` if set, else `~/.cache/flt`."""
    if given := os.environ.get("FLT_CACHE"):
        return expand_user(given).absolute()
    return expand_user(os.environ.get("XDG_CACHE_HOME") or "~/.cache").absolute() / "flt"


def move_into_place(built: Path, folder: Path) -> None:
    """Renames the finished folder `built` to `folder`. If another process was faster, that process's folder stays."""
    try:
        os.rename(built, folder)
    except OSError:
        if not folder.is_dir():
            raise


def get_or_build(kind: str, about: Mapping[str, Any], build: Callable[[Path], None], size: int, limit: int) -> Path:
    """Returns the folder of an entry. Builds the entry first if the cache doesn't contain it.

    `build` fills an empty temporary folder, which is renamed to the entry's path once `build` has returned. If
    several processes need the same entry, one process builds it and the others wait. A built entry never changes. To
    make room, a process doesn't remove entries that it has used itself since its last call of `release`.

    Args:
        kind: Kind of the entry.
        about: Strings and numbers that describe everything the entry depends on.
        build: Function that writes the entry's files into the given folder.
        size: Upper bound of the entry's size in bytes.
        limit: Largest total size of all entries in bytes, without embedded backbones. The least recently used
            entries are removed until the new entry fits.

    Raises:
        InputError: There isn't enough space, or the cache can't be written.
    """
    path = folder() / kind / _key(about)
    _used.add(path)
    if _read(path) is None:
        with _locked(path):
            if _read(path) is None:  # another process may have built the entry while this one waited
                _make_room(path, size, limit)
                with _writing():
                    _build(path, about, build)
    with contextlib.suppress(OSError):  # a read-only cache is still useful
        os.utime(path / ABOUT)
    return path


def entries() -> list[Entry]:
    """Returns all entries of the cache, including embedded backbones. The most recently used entry comes first."""
    return sorted([*_entries(), *_backbones()], key=lambda found: (-found.used, found.key))


def clear(kind: str | None = None) -> int:
    """Removes entries, even if they are in use. Also removes unfinished folders that killed builds have left behind.

    Other files in the cache folder stay. An unfinished folder of an embedded backbone is removed only if it is older
    than an hour, because another process may still be writing it.

    Args:
        kind: Kind of the entries to remove, one of KINDS. If None, entries of all kinds are removed.

    Returns:
        Number of bytes freed.
    """
    freed = 0
    if kind in (None, EMBEDDED):
        freed += sum(_remove(found.path) for found in _backbones())
        leftovers = (*folder().glob(".writing-*"), *folder().glob(".embedded-*.building"))
        freed += sum(_remove(path) for path in leftovers if path.stat().st_mtime < time.time() - HOUR)
    for parent in folder().glob(kind or "*"):
        freed += sum(_remove(path) for path in parent.glob("*") if KEY.fullmatch(path.name))
        freed += _remove_unfinished(parent)
    return freed


def release() -> None:
    """Allows the cache to remove the entries that this process has used so far. Called between two runs of a sweep."""
    _used.clear()


def _key(about: Mapping[str, Any]) -> str:
    text = json.dumps(about, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()[:20]


def _read(path: Path) -> dict[str, Any] | None:
    """Returns the content of an entry's description file, or None if the entry is missing or damaged."""
    try:
        written = json.loads((path / ABOUT).read_bytes())
        # After a crash of the machine, a file may be incomplete. The total size reveals this.
        return written if isinstance(written["about"], dict) and written["size"] == _size(path) else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _size(path: Path) -> int:
    return sum(file.stat().st_size for file in path.rglob("*") if file.is_file() and file.name != ABOUT)


def _entries() -> list[Entry]:
    found = []
    for path in folder().glob("*/*"):
        if KEY.fullmatch(path.name) and (written := _read(path)):
            with contextlib.suppress(OSError):  # another process may remove the entry at this moment
                used = (path / ABOUT).stat().st_mtime
                found.append(Entry(path.parent.name, path.name, path, written["about"], written["size"], used))
    return found


def _backbones() -> list[Entry]:
    return [
        Entry(EMBEDDED, path.name, path, {"model": "embedded"}, _size(path), path.stat().st_mtime)
        for path in folder().glob("embedded-*")
        if path.is_dir()
    ]


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Holds the lock of an entry inside the with block. If the process dies, the operating system releases the lock."""
    lock = _lock(path)
    with _writing():
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            lock.acquire(blocking=False)
        except Timeout:
            _log.info("waiting for another process, which is making %s", path.name)
            lock.acquire()
    try:
        yield
    finally:
        _unlock(lock)


@contextlib.contextmanager
def _writing() -> Iterator[None]:
    """Turns an error of the file system, such as a full or read-only disk, into an InputError."""
    try:
        yield
    except OSError as error:
        raise InputError.of("FLT_CACHE", folder(), "a folder that can be written", str(error)) from error


def _lock(path: Path) -> FileLock:
    return FileLock(path.with_name(f".{path.name}.lock"))


def _unlock(lock: FileLock) -> None:
    """Releases a lock and removes its file. The FileLock of a waiting process makes a new file."""
    with contextlib.suppress(OSError):  # Windows can't remove an open file
        Path(lock.lock_file).unlink()
    lock.release()


def _build(path: Path, about: Mapping[str, Any], build: Callable[[Path], None]) -> None:
    scratch = path.with_name(f".{path.name}.building")
    shutil.rmtree(scratch, ignore_errors=True)  # left behind by a killed build
    try:
        scratch.mkdir()
        build(scratch)
        (scratch / ABOUT).write_text(json.dumps({"about": dict(about), "size": _size(scratch)}, indent=1))
        _remove(path)  # if the folder exists, it is damaged
        scratch.rename(path)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _make_room(path: Path, size: int, limit: int) -> None:
    """Removes the least recently used entries until an entry of ``size`` bytes fits under the limit."""
    for parent in folder().iterdir():
        _remove_unfinished(parent, but=path)
    others = sorted((found for found in _entries() if found.path != path), key=lambda found: found.used)
    held = sum(found.size for found in others if found.path in _used)
    if held + size > limit:
        why = f"{_gb(size)} GB are needed" + (f" beside the {_gb(held)} GB in use" if held else "")
        raise InputError.of("cache.max_gb", f"{limit / BYTES_PER_GB:g}", f"at least {_gb(held + size)}", why)
    excess = sum(found.size for found in others) + size - limit
    for found in others:
        if excess > 0 and found.path not in _used:
            _log.debug("removing %s to make room", found.path)
            excess -= _remove(found.path)
    if (free := shutil.disk_usage(path.parent).free) < size:
        allowed = f"a folder with {_gb(size)} GB of free space; flt cache clear frees what the cache holds"
        raise InputError.of("FLT_CACHE", folder(), allowed, f"{free / BYTES_PER_GB:.3f} GB are free")


def _gb(size: int) -> str:
    """Formats bytes as gigabytes, rounded up."""
    return f"{math.ceil(size / BYTES_PER_GB * 1000) / 1000:g}"


def _remove(path: Path) -> int:
    """Removes a folder and returns its size in bytes.

    The folder is renamed before its files are deleted, so a half-deleted folder never counts as an entry.
    """
    trash = path.with_name(f".{path.name}.{os.getpid()}.building")
    try:
        size = _size(path)
        path.rename(trash)
    except OSError:  # the folder doesn't exist, or another process has just removed it
        return 0
    shutil.rmtree(trash, ignore_errors=True)
    return size


def _remove_unfinished(parent: Path, but: Path | None = None) -> int:
    """Removes the files that killed builds have left in the folder of one kind. The files of the entry `but` stay."""
    freed = 0
    for leftover in (*parent.glob(".*.building"), *parent.glob(".*.lock")):
        path = parent / leftover.name.split(".")[1]
        if path == but or not KEY.fullmatch(path.name):
            continue
        lock = _lock(path)
        with contextlib.suppress(Timeout, OSError):
            lock.acquire(blocking=False)
            freed += _size(leftover) if leftover.is_dir() else 0
            shutil.rmtree(leftover, ignore_errors=True)
            _unlock(lock)
    return freed
