"""Run folders: ``<root>/<name>/version_N``."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

from filelock import FileLock, Timeout

from flt.core.errors import InputError
from flt.core.files import (
    PRIVATE_FILE,
    check_no_link,
    remove_leftovers,
    reported,
    system_message,
    write_atomically,
)
from flt.export.folder import EXPORTS, remove_unfinished
from flt.run.compose import to_yaml
from flt.run.schema import TrainConfig

LOCK = ".lock"
"""Name of the file in a run's folder whose lock is held by the process that trains the run."""
PLACES = ("config.yaml", "checkpoints", "checkpoints/clients", "fits", "hparams.yaml", *EXPORTS)
"""Names in a run's folder to which flt and its loggers write. No link is allowed in their place."""
CONFIG = re.compile(r"config\.yaml")


def folder_of(cfg: TrainConfig) -> Path:
    """Returns the run's folder. For a new run, first creates this folder and writes the configuration into it."""
    if cfg.resume is not None:
        return Path(cfg.resume)
    parent = Path(cfg.root) / cfg.name
    try:
        parent.mkdir(parents=True, exist_ok=True)
        folder = _make_next(parent)
    except OSError as error:
        raise InputError.of("root", cfg.root, "a folder that can be written", system_message(error)) from error
    record(folder, cfg)
    return folder


def lock(folder: Path) -> FileLock:
    """Takes the lock of a run, and returns it. The caller has to release it.

    Raises:
        InputError: Another process trains the run, the folder can't be written, or a link is in the place of the
            folder or of something that flt writes or removes in it.
    """
    name = folder.absolute().name
    for path in (folder, *(folder / place for place in PLACES)):
        check_no_link(path)
    held = FileLock(folder / LOCK, mode=PRIVATE_FILE)
    with reported("resume", name, "a folder that can be written"):
        try:
            held.acquire(blocking=False)
        except Timeout:
            allowed = "a run that no other process is training"
            raise InputError.of("resume", name, allowed, "another process is training it") from None
    return held


def tidy(folder: Path) -> None:
    """Removes what killed processes of flt have left in a run's folder. The caller must have the lock of the run.

    Raises:
        InputError: The folder can't be written.
    """
    with reported("resume", folder.absolute().name, "a folder that can be written"):
        remove_leftovers(folder, CONFIG)
        remove_unfinished(folder)


def record(folder: Path, cfg: TrainConfig) -> None:
    """Writes the configuration to config.yaml in the run's folder. A resume reads this file.

    Raises:
        InputError: The folder can't be written.
    """
    try:
        write_atomically(folder / "config.yaml", to_yaml(dataclasses.replace(cfg, resume=None)).encode())
    except OSError as error:
        key, value = ("root", cfg.root) if cfg.resume is None else ("resume", folder.absolute().name)
        raise InputError.of(key, value, "a folder that can be written", system_message(error)) from error


def versions(parent: Path) -> list[Path]:
    """Returns the subfolders ``version_N`` of ``parent``, sorted by N."""
    folders = [path for path in parent.glob("version_*") if re.fullmatch(r"version_\d+", path.name)]
    return sorted(folders, key=lambda path: int(path.name.removeprefix("version_")))


def _make_next(parent: Path) -> Path:
    """Creates and returns the next folder ``version_N``. Skips a number that another process has just taken."""
    taken = versions(parent)
    number = int(taken[-1].name.removeprefix("version_")) + 1 if taken else 0
    while True:
        folder = parent / f"version_{number}"
        try:
            folder.mkdir()
        except FileExistsError:
            number += 1
        else:
            return folder
