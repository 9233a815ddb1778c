"""Run folders: ``<root>/<name>/version_N``."""

from __future__ import annotations

import dataclasses
import logging
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from filelock import FileLock, Timeout

from flt.callbacks.record_format import RECORD
from flt.core.errors import InputError
from flt.core.files import (
    PRIVATE_FILE,
    check_no_link,
    last_name,
    remove_leftovers,
    reported,
    system_message,
    write_atomically,
)
from flt.core.locks import NoLocksError, acquire
from flt.core.plain_yaml import DEEPEST, LARGEST, MOST, check
from flt.export.folder import remove_unfinished
from flt.export.metadata import classes_text
from flt.export.places import CLASSES, EXPORTS
from flt.run.compose import to_yaml
from flt.run.remote_loggers import IDS
from flt.run.schema import TrainConfig
from flt.run.stored import LOCK, REPORT, versions

WHOLE = ("config.yaml", CLASSES, RECORD, REPORT, IDS)
"""Names of files that are written as a whole, apart from the metrics and the files of the loggers."""
PLACES = (*WHOLE, "checkpoints", "checkpoints/clients", "fits", "hparams.yaml", "csv", "wandb", "mlruns", *EXPORTS)
"""Names in a run's folder to which flt and its loggers write. No link is allowed in their place."""
WRITTEN = re.compile("|".join(map(re.escape, WHOLE)))
"""Pattern of the names in WHOLE."""
WRITABLE = "a folder that can be written"
_log = logging.getLogger(__name__)


def folder_of(cfg: TrainConfig) -> Path:
    """Returns the run's folder. For a new run, first creates this folder and writes the configuration into it."""
    if cfg.resume is not None:
        return Path(cfg.resume)
    _text(cfg)  # checked before the folder is created
    parent = Path(cfg.root) / cfg.name
    try:
        parent.mkdir(parents=True, exist_ok=True)
        folder = _make_next(parent)
    except OSError as error:
        raise InputError.of("root", cfg.root, WRITABLE, system_message(error)) from error
    record(folder, cfg)
    return folder


def lock(folder: Path, root: str | None = None) -> FileLock | None:
    """Takes the lock of a run, and returns it. The caller has to release it.

    Args:
        folder: Folder of the run.
        root: Value of the key ``root`` if the run is new, None if it is resumed. An error's line begins with this key.

    Returns:
        The lock, or None if the file system has no locks. A warning says so.

    Raises:
        InputError: Another process trains the run, the folder can't be written, or a link is in the place of the
            folder or of something that flt writes or removes in it.
    """
    key, value = _key(folder, root)
    check_no_link(folder)
    for place in PLACES:
        check_no_link(folder / place, place)
    held = FileLock(folder / LOCK, mode=PRIVATE_FILE)
    with reported(key, value, WRITABLE):
        try:
            acquire(held)
        except Timeout:
            allowed = "a run that no other process is training"
            raise InputError.of(key, value, allowed, "another process is training it") from None
        except NoLocksError as error:
            why = system_message(error)
            _log.warning("%s=%s: no lock keeps other processes from training this run at once (%s)", key, value, why)
            return None
    return held


def tidy(folder: Path, root: str | None = None) -> None:
    """Removes what killed processes of flt have left in a run's folder. The caller must have the lock of the run.

    Args:
        folder: Folder of the run.
        root: As in :func:`lock`.

    Raises:
        InputError: The folder can't be written.
    """
    with reported(*_key(folder, root), WRITABLE):
        remove_leftovers(folder, WRITTEN)
        remove_unfinished(folder)


def record_classes(folder: Path, names: Mapping[str, Sequence[str]]) -> None:
    """Writes the names of the classes of each task to the run's folder. Nothing is written if there are no names.

    Args:
        folder: Folder of the run.
        names: Task -> names of its classes.
    """
    if names:
        with reported("root", last_name(folder), WRITABLE):
            write_atomically(folder / CLASSES, classes_text(names))


def record(folder: Path, cfg: TrainConfig) -> None:
    """Writes the configuration to config.yaml in the run's folder. A resume reads this file.

    Raises:
        InputError: The folder can't be written, or no resume would read so large a file.
    """
    data = _text(cfg).encode()
    try:
        write_atomically(folder / "config.yaml", data)
    except OSError as error:
        key, value = _key(folder, cfg.root if cfg.resume is None else None)
        raise InputError.of(key, value, WRITABLE, system_message(error)) from error


def _text(cfg: TrainConfig) -> str:
    """Returns the content of config.yaml.

    Raises:
        InputError: The content is beyond the limits within which a resume reads it.
    """
    text = to_yaml(dataclasses.replace(cfg, resume=None))
    try:
        check(text)
    except ValueError as error:
        allowed = f"at most {LARGEST} bytes, {MOST} values and {DEEPEST} levels"
        raise InputError.of("config.yaml", f"<{len(text)} characters>", allowed, str(error)) from error
    return text


def _key(folder: Path, root: str | None) -> tuple[str, str]:
    return ("resume", folder.absolute().name) if root is None else ("root", root)


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
