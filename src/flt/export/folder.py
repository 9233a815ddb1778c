"""Replacement of an export in a run's folder. The new export appears at once, and files of others stay."""

from __future__ import annotations

import contextlib
import os
import re
import secrets
from collections.abc import Iterator
from pathlib import Path

from flt.core.files import check_no_link, remove_file

EXPORTS = ("adapter", "model")
"""Names of the folders in a run's folder to which models are exported."""
_UNFINISHED = re.compile(r"\.export(-[0-9a-f]{16})?")
_OWN = re.compile(
    r"(adapter_config|config|generation_config|flt_adapter|flt_base|label_names|model\.safetensors\.index)\.json"
    r"|(adapter_model|flt_adapter|label_names|model(-\d+-of-\d+)?)\.safetensors"
)
"""Pattern of the names of the files that flt, peft and transformers write to an export."""


@contextlib.contextmanager
def unfinished(run: Path) -> Iterator[Path]:
    """Creates a folder with a random name in a run's folder, to which an export is first written.

    If an error is raised in the with block, the folder is removed.

    Raises:
        OSError: The folder can't be created.
    """
    folder = run / f".export-{secrets.token_hex(8)}"
    folder.mkdir()
    try:
        yield folder
    except BaseException:
        remove_export(folder)
        raise


def finish(built: Path, target: Path) -> Path:
    """Replaces the export in ``target`` by the one in ``built``. Files of others in ``target`` are kept.

    Returns:
        The folder ``target``.

    Raises:
        InputError: ``target`` is a link.
    """
    remove_export(target)
    for parent, name in _files(target):  # files of others
        place = built / parent.relative_to(target)
        place.mkdir(parents=True, exist_ok=True)
        (parent / name).rename(place / name)
    _remove_empty(target)
    return built.rename(target)  # atomic: the folder is complete or absent


def remove_export(folder: Path) -> None:
    """Removes the files of an export, and then the folders that are empty. Files of others and links stay.

    Raises:
        InputError: The folder is a link.
    """
    check_no_link(folder)
    for parent, name in _files(folder):
        if _OWN.fullmatch(name):
            remove_file(parent / name)
    _remove_empty(folder)


def remove_unfinished(run: Path) -> None:
    """Removes the unfinished exports that killed processes have left in a run's folder."""
    for path in run.glob(".export*"):
        if _UNFINISHED.fullmatch(path.name) and path.is_dir() and not path.is_symlink():
            remove_export(path)


def is_export(folder: Path) -> bool:
    """Returns whether a folder holds an export, and not only files of others."""
    return any(_OWN.fullmatch(name) for _, name in _files(folder))


def _files(folder: Path) -> Iterator[tuple[Path, str]]:
    """Yields (folder, name) of all files and links below a folder. Links aren't followed."""
    for parent, folders, names in list(os.walk(folder)):
        linked = [name for name in folders if os.path.islink(os.path.join(parent, name))]
        yield from ((Path(parent), name) for name in [*names, *linked])


def _remove_empty(folder: Path) -> None:
    for parent, _, _ in os.walk(folder, topdown=False):
        with contextlib.suppress(OSError):  # raised if it holds files of others
            os.rmdir(parent)
