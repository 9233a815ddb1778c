"""Cache on disk for results that are expensive to compute. Only its owner can read it.

An entry is a folder of computed files. The folder's name is a digest of the inputs of the computation. If space is
needed, the least recently used entries are removed. An entry that a process uses isn't removed.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import logging
import math
import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from filelock import Timeout

from flt.core.cache_folders import (
    ABOUT,
    BACKBONE,
    EMBEDDED,
    KEY,
    UNFINISHED_BACKBONE,
    folder,
    kind_folders,
    lock,
    own_folders,
    remove,
    remove_unfinished,
    remove_unused,
    size_of,
    unusable,
)
from flt.core.errors import InputError
from flt.core.files import PRIVATE_FOLDER, make_private, make_tree_private
from flt.core.locks import acquire, hold, let_go, unlock, unused

BYTES_PER_GB = 1e9
HOUR = 3600
WAIT = 1.0
"""Seconds for which the removal of an entry at the end of a run waits for another process that is removing it.

Of several processes that end at once, only the last one finds the entry unused. It mustn't skip the entry because
another process is just looking whether the entry is unused."""
_used: set[Path] = set()
"""Folders of the entries that this process has used since the last call of `release`."""
_log = logging.getLogger(__name__)


@dataclasses.dataclass
class CacheConfig:
    """Settings of the cache on disk.

    Attributes:
        max_gb: Largest size of the cache in GB.
        keep: Whether entries that a run has used stay after its end.
    """

    max_gb: float
    keep: bool

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
    several processes need the same entry, one process builds it and the others wait. A built entry never changes. It
    isn't removed while a process uses it: until the process ends or calls `release`.

    Args:
        kind: Kind of the entry.
        about: Strings and numbers that describe everything the entry depends on.
        build: Function that writes the entry's files into the given folder.
        size: Upper bound of the entry's size in bytes.
        limit: Largest total size of all entries in bytes, without embedded backbones. The least recently used
            entries are removed until the new entry fits.

    Raises:
        InputError: There isn't enough space, or the cache can't be read or written.
    """
    path = folder() / kind / _key(about)
    _used.add(path)
    with _reported():
        if not _found(path):
            with _locked(path):
                if not _found(path):  # another process may have built the entry while this one waited
                    _make_room(path, size, limit)
                    _build(path, about, build)
                    hold(path)
    with contextlib.suppress(OSError, InputError):  # a read-only cache is still useful, and so is a link to a folder
        os.utime(path / ABOUT)
        make_private(path.parent)
    return path


def entries() -> list[Entry]:
    """Returns all entries of the cache, including embedded backbones. The most recently used entry comes first."""
    return sorted([*_entries(), *_backbones()], key=lambda found: (-found.used, found.key))


def clear(kind: str | None = None) -> int:
    """Removes entries that no other process uses. Also removes unfinished folders that killed builds have left behind.

    Other files and folders in the cache folder stay, and links aren't followed. An unfinished folder of an embedded
    backbone is removed only if it is older than an hour, because another process may still be writing it.

    Args:
        kind: Kind of the entries to remove, one of KINDS. If None, entries of all kinds are removed.

    Returns:
        Number of bytes freed.
    """
    release()
    freed = 0
    if kind in (None, EMBEDDED):
        freed += sum(remove_unused(found.path) for found in _backbones())
        leftovers = own_folders(folder(), UNFINISHED_BACKBONE)
        freed += sum(remove(path) for path in leftovers if path.stat().st_mtime < time.time() - HOUR)
    for parent in kind_folders(folder()):
        if kind in (None, parent.name):
            freed += sum(remove_unused(path) for path in own_folders(parent, KEY))
            freed += remove_unfinished(parent)
    return freed


def release(keep: bool = True) -> None:
    """Ends the use of all entries that this process has used so far. Each process of a run calls it at its end.

    Args:
        keep: False: these entries are removed, except for embedded backbones and for entries that other processes use.
    """
    used = sorted(_used)
    _used.clear()
    let_go()
    for path in () if keep else used:
        remove_unused(path, WAIT)


def _key(about: Mapping[str, Any]) -> str:
    text = json.dumps(about, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()[:20]


def _read(path: Path) -> dict[str, Any] | None:
    """Returns the content of an entry's description file, or None if the entry is missing or damaged."""
    try:
        written = json.loads((path / ABOUT).read_bytes())
        # After a crash of the machine, a file may be incomplete. The total size reveals this.
        return written if isinstance(written["about"], dict) and written["size"] == size_of(path) else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _found(path: Path) -> bool:
    """Returns whether an entry is there and whole. From then on, this process uses it."""
    if hold(path) and _read(path) is not None:
        return True
    let_go(path)
    return False


def _entries() -> list[Entry]:
    found = []
    for path in (path for parent in kind_folders(folder()) for path in own_folders(parent, KEY)):
        if written := _read(path):
            with contextlib.suppress(OSError):  # another process may remove the entry at this moment
                used = (path / ABOUT).stat().st_mtime
                found.append(Entry(path.parent.name, path.name, path, written["about"], written["size"], used))
    return found


def _backbones() -> list[Entry]:
    found = []
    for path in own_folders(folder(), BACKBONE):
        with contextlib.suppress(OSError):  # another process may remove the backbone at this moment
            used = (path / "model.safetensors").stat() and path.stat().st_mtime
            found.append(Entry(EMBEDDED, path.name, path, {"model": "embedded"}, size_of(path), used))
    return found


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Holds the lock of an entry inside the with block. If the process dies, the operating system releases the lock."""
    held = lock(path)
    folder().mkdir(mode=PRIVATE_FOLDER, parents=True, exist_ok=True)
    if not path.parent.is_symlink():
        make_private(path.parent)
    try:
        acquire(held)
    except Timeout:
        _log.info("waiting for another process, which is making %s", path.name)
        acquire(held, timeout=-1)
    try:
        yield
    finally:
        unlock(held)


@contextlib.contextmanager
def _reported() -> Iterator[None]:
    """Turns an error of the file system, such as a full or read-only disk, into an InputError."""
    try:
        yield
    except OSError as error:
        raise unusable(folder(), error) from error


def _build(path: Path, about: Mapping[str, Any], build: Callable[[Path], None]) -> None:
    scratch = path.with_name(f".{path.name}.building")
    shutil.rmtree(scratch, ignore_errors=True)  # left behind by a killed build
    try:
        scratch.mkdir(mode=PRIVATE_FOLDER)
        build(scratch)
        (scratch / ABOUT).write_text(json.dumps({"about": dict(about), "size": size_of(scratch)}, indent=1))
        make_tree_private(scratch)
        remove(path)  # if the folder exists, it is damaged
        scratch.rename(path)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _make_room(path: Path, size: int, limit: int) -> None:
    """Removes the least recently used entries until an entry of ``size`` bytes fits under the limit."""
    for parent in kind_folders(folder()):
        remove_unfinished(parent, but=path)
    others = sorted((found for found in _entries() if found.path != path), key=lambda found: found.used)
    excess = sum(found.size for found in others) + size - limit
    in_use = {found.path for found in others if _is_used(found.path)} if excess > 0 else set()
    held = sum(found.size for found in others if found.path in in_use)
    if held + size > limit:
        why = f"{_gb(size)} GB are needed" + (f" beside the {_gb(held)} GB in use" if held else "")
        raise InputError.of("cache.max_gb", f"{limit / BYTES_PER_GB:g}", f"at least {_gb(held + size)}", why)
    for found in others:
        if excess > 0 and found.path not in in_use:
            _log.debug("removing %s to make room", found.path)
            excess -= remove_unused(found.path)
    if (free := shutil.disk_usage(path.parent).free) < size:
        allowed = f"a folder with {_gb(size)} GB of free space; flt cache clear frees what the cache holds"
        raise InputError.of("FLT_CACHE", folder(), allowed, f"{free / BYTES_PER_GB:.3f} GB are free")


def _gb(size: int) -> str:
    """Formats bytes as gigabytes, rounded up."""
    return f"{math.ceil(size / BYTES_PER_GB * 1000) / 1000:g}"


def _is_used(path: Path) -> bool:
    with unused(path) as free:
        return path in _used or not free
