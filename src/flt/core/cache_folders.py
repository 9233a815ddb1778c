"""Folders and files of the cache on disk: where they lie, which of them flt has written, and their removal.

::

    tokens/<key>/, prefix/<key>/                  entries
    tokens/.<key>.lock, .<key>.building           while an entry is built; left behind by a killed build
    embedded-vit-<digest>/                        embedded backbones

Everything else in the cache folder belongs to others. Links belong to others, too.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
from pathlib import Path

from filelock import FileLock, Timeout

from flt.core.errors import InputError
from flt.core.files import PRIVATE_FILE, expand_user
from flt.core.locks import NoLocksError, acquire, unlock, unused

ABOUT = "entry.json"
"""Name of the file that contains the description and the size of an entry."""
EMBEDDED = "embedded"
"""Kind of entries that contain an embedded backbone, a small model that flt has pre-trained itself."""
KINDS = ("tokens", "prefix", EMBEDDED)
KEY = re.compile(r"[0-9a-f]{20}")
"""Pattern of the folder names of entries."""
BACKBONE = re.compile(r"embedded-(vit|cifar)-[0-9a-f]+")
_UNFINISHED = re.compile(rf"\.(?P<key>{KEY.pattern})(\.\d+)?\.(building|lock)")
UNFINISHED_BACKBONE = re.compile(rf"\.writing-[a-z0-9_]{{8}}|\.{BACKBONE.pattern}\.\d+\.building")


def folder() -> Path:
    """Returns the cache folder: `$FLT_CACHE` if set, else `$XDG_CACHE_HOME/flt` if set, else `~/.cache/flt`.

    Raises:
        InputError: No variable is set, and the user has no home folder.
    """
    if given := os.environ.get("FLT_CACHE"):
        return expand_user(given).absolute()
    parent = expand_user(os.environ.get("XDG_CACHE_HOME") or "~/.cache")
    if str(parent) == "~/.cache":
        raise InputError.of("FLT_CACHE", "<not set>", "a folder for the cache", "this user has no home folder")
    return parent.absolute() / "flt"


def unusable(root: Path, error: OSError) -> InputError:
    """Builds the error for a cache folder that can't be read or written. It says so if another user owns the entries.

    Args:
        root: The cache folder.
        error: Error of the file system.
    """
    path = Path(error.filename) if isinstance(error.filename, str) else root
    for place in (path, *path.parents) if isinstance(error, PermissionError) else ():
        with contextlib.suppress(OSError):  # a folder in a folder that can't be read
            if place.is_relative_to(root) and place.stat().st_uid != os.geteuid():
                why = f"another user made {place}, and tokens/ and prefix/ are readable for their owner only"
                return InputError.of("FLT_CACHE", root, "a folder of your own", why)
    allowed = "a folder that can be read and written"
    if isinstance(error, NoLocksError):
        allowed += ", on a file system with locks"
    return InputError.of("FLT_CACHE", root, allowed, str(error))


def kind_folders(root: Path) -> list[Path]:
    """Returns the folders of entries in a cache folder. Links are left out."""
    return [path for kind in KINDS if (path := root / kind).is_dir() and not path.is_symlink()]


def own_folders(parent: Path, names: re.Pattern[str]) -> list[Path]:
    """Returns the subfolders whose names match a pattern. Links are left out."""
    return [p for p in parent.glob("*") if names.fullmatch(p.name) and p.is_dir() and not p.is_symlink()]


def size_of(path: Path) -> int:
    """Returns the size of an entry's files in bytes, without its description."""
    return sum(file.stat().st_size for file in path.rglob("*") if file.is_file() and file.name != ABOUT)


def lock(path: Path) -> FileLock:
    """Returns the lock of an entry, which a process holds while it builds or removes the entry."""
    return FileLock(path.with_name(f".{path.name}.lock"), mode=PRIVATE_FILE)


def remove_unused(path: Path, wait: float = 0) -> int:
    """Removes an entry unless a process uses it or is building it. Returns the number of bytes freed.

    Args:
        path: Folder of the entry.
        wait: Seconds to wait for another process that has the entry's lock.
    """
    held, freed = lock(path), 0
    with contextlib.suppress(Timeout, OSError):
        acquire(held, wait)
        with unused(path) as free:
            freed = remove(path) if free else 0
        unlock(held)
    return freed


def remove(path: Path) -> int:
    """Removes a folder and returns its size in bytes. Of a link, only the link is removed.

    The folder is renamed before its files are deleted, so a half-deleted folder never counts as an entry.
    """
    if path.is_symlink():
        path.unlink()
        return 0
    trash = path.with_name(f".{path.name}.{os.getpid()}.building")
    try:
        freed = size_of(path)
        path.rename(trash)
    except OSError:  # the folder doesn't exist, or another process has just removed it
        return 0
    shutil.rmtree(trash, ignore_errors=True)
    return freed


def remove_unfinished(parent: Path, but: Path | None = None) -> int:
    """Removes the files that killed builds have left in the folder of one kind. The files of the entry `but` stay."""
    freed = 0
    for leftover in parent.glob(".*"):
        found = _UNFINISHED.fullmatch(leftover.name)
        path = parent / found["key"] if found else None
        if path is None or path == but or leftover.is_symlink():
            continue
        held = lock(path)
        with contextlib.suppress(Timeout, OSError):
            acquire(held)
            freed += size_of(leftover) if leftover.is_dir() else 0
            shutil.rmtree(leftover, ignore_errors=True)
            unlock(held)
    return freed
