"""The cache on disk: what is computed once, kept by what it was computed from, and removed when room is needed."""

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
from flt.core.files import expanded

ABOUT = "entry.json"
EMBEDDED = "embedded"
KINDS = ("tokens", "prefix", EMBEDDED)
KEY = re.compile(r"[0-9a-f]{20}")
BYTES_PER_GB = 1e9
HOUR = 3600
_used: set[Path] = set()
_log = logging.getLogger(__name__)


@dataclasses.dataclass
class CacheConfig:
    """What is kept on disk to be computed once."""

    max_gb: float

    def __post_init__(self) -> None:
        if not 0 < self.max_gb < math.inf:
            raise InputError.of("cache.max_gb", self.max_gb, "a number > 0")

    @property
    def limit(self) -> int:
        """Bytes."""
        return int(self.max_gb * BYTES_PER_GB)


@dataclasses.dataclass(frozen=True)
class Entry:
    """Something that was computed once.

    Attributes:
        kind: What sort of thing, which is also the name of its folder.
        key: Digest of about.
        path: Its folder.
        about: What it was computed from.
        size: Bytes on disk.
        used: When it was last used, seconds since the epoch.
    """

    kind: str
    key: str
    path: Path
    about: dict[str, Any]
    size: int
    used: float


def folder() -> Path:
    """Where the cache is: `$FLT_CACHE`, else `$XDG_CACHE_HOME/flt`, else `~/.cache/flt`."""
    if given := os.environ.get("FLT_CACHE"):
        return expanded(given).absolute()
    return expanded(os.environ.get("XDG_CACHE_HOME") or "~/.cache").absolute() / "flt"


def move_into_place(built: Path, folder: Path) -> None:
    """Moves a finished folder to its place, whole; of two processes at once, the first one's stays."""
    try:
        os.rename(built, folder)
    except OSError:
        if not folder.is_dir():
            raise


def entry(kind: str, about: Mapping[str, Any], build: Callable[[Path], None], size: int, limit: int) -> Path:
    """The folder of an entry; where it isn't there, `build` fills an empty folder, which takes its place when whole.

    Of several processes that want the same entry one builds it, and the others wait. What is in the folder stays as it
    was built. Entries that this process has used are not removed to make room, until `release`.

    Args:
        kind: What sort of thing.
        about: Strings and numbers that tell all that it depends on.
        build: Writes files into the folder that it is given.
        size: Bytes that it will need, at most.
        limit: Bytes that all entries together may take; the least recently used ones make room.

    Raises:
        InputError: If there is no room, or the cache can't be written.
    """
    path = folder() / kind / _key(about)
    _used.add(path)
    if _read(path) is None:
        with _locked(path):
            if _read(path) is None:  # not built by another process while this one waited
                _make_room(path, size, limit)
                with _writing():
                    _build(path, about, build)
    with contextlib.suppress(OSError):  # a cache that can only be read is of use too
        os.utime(path / ABOUT)
    return path


def entries() -> list[Entry]:
    """What the cache holds, the embedded backbones included, the last used first."""
    return sorted([*_entries(), *_backbones()], key=lambda found: (-found.used, found.key))


def clear(kind: str | None = None) -> int:
    """Removes entries, also used ones, and what killed builds left behind; other files in the folder stay.

    Args:
        kind: One of KINDS; None is all.

    Returns:
        Bytes freed.
    """
    freed = 0
    if kind in (None, EMBEDDED):
        freed += sum(_remove(found.path) for found in _backbones())
        left = (*folder().glob(".writing-*"), *folder().glob(".embedded-*.building"))
        freed += sum(_remove(path) for path in left if path.stat().st_mtime < time.time() - HOUR)
    for parent in folder().glob(kind or "*"):
        freed += sum(_remove(path) for path in parent.glob("*") if KEY.fullmatch(path.name))
        freed += _remove_unfinished(parent)
    return freed


def release() -> None:
    """Says that what this process has used so far may be removed to make room, such as between two runs."""
    _used.clear()


def _key(about: Mapping[str, Any]) -> str:
    text = json.dumps(about, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()[:20]


def _read(path: Path) -> dict[str, Any] | None:
    """What a whole entry is about, and its size; None where it isn't there, or not as it was built."""
    try:
        written = json.loads((path / ABOUT).read_bytes())
        # A machine that went down may have kept the names of files, and not all of their bytes.
        return written if isinstance(written["about"], dict) and written["size"] == _size(path) else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _size(path: Path) -> int:
    return sum(file.stat().st_size for file in path.rglob("*") if file.is_file() and file.name != ABOUT)


def _entries() -> list[Entry]:
    found = []
    for path in folder().glob("*/*"):
        if KEY.fullmatch(path.name) and (written := _read(path)):
            with contextlib.suppress(OSError):  # removed by another process just now
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
    """Holds the lock of an entry, which goes with a process that dies."""
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
    """Makes one line of a disk that is full, or that nobody may write."""
    try:
        yield
    except OSError as error:
        raise InputError.of("FLT_CACHE", folder(), "a folder that can be written", str(error)) from error


def _lock(path: Path) -> FileLock:
    return FileLock(path.with_name(f".{path.name}.lock"))


def _unlock(lock: FileLock) -> None:
    """Removes the lock's file too: FileLock sees that a file it waited for is gone, and makes a new one."""
    with contextlib.suppress(OSError):  # Windows removes no open file
        Path(lock.lock_file).unlink()
    lock.release()


def _build(path: Path, about: Mapping[str, Any], build: Callable[[Path], None]) -> None:
    scratch = path.with_name(f".{path.name}.building")
    shutil.rmtree(scratch, ignore_errors=True)  # of a build that was killed
    try:
        scratch.mkdir()
        build(scratch)
        (scratch / ABOUT).write_text(json.dumps({"about": dict(about), "size": _size(scratch)}, indent=1))
        _remove(path)  # damaged, where it is there
        scratch.rename(path)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _make_room(path: Path, size: int, limit: int) -> None:
    """Removes the least recently used entries until there is room for one more."""
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
    """Gigabytes, rounded up."""
    return f"{math.ceil(size / BYTES_PER_GB * 1000) / 1000:g}"


def _remove(path: Path) -> int:
    """Removes a folder, by its name at once, so that no half of it counts; returns its bytes."""
    trash = path.with_name(f".{path.name}.{os.getpid()}.building")
    try:
        size = _size(path)
        path.rename(trash)
    except OSError:  # not there, or removed by another process just now
        return 0
    shutil.rmtree(trash, ignore_errors=True)
    return size


def _remove_unfinished(parent: Path, but: Path | None = None) -> int:
    """Removes what killed builds of one kind left, and the locks that nobody holds."""
    freed = 0
    for left in (*parent.glob(".*.building"), *parent.glob(".*.lock")):
        path = parent / left.name.split(".")[1]
        if path == but or not KEY.fullmatch(path.name):
            continue
        lock = _lock(path)
        with contextlib.suppress(Timeout, OSError):
            lock.acquire(blocking=False)
            freed += _size(left) if left.is_dir() else 0
            shutil.rmtree(left, ignore_errors=True)
            _unlock(lock)
    return freed
