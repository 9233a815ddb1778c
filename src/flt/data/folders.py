"""Folders of data files. The name of a file, or that of its folder, says which split its rows belong to."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path

import datasets

from flt.core.errors import InputError
from flt.data.file_formats import SPLIT_NAMES, Splits
from flt.data.image_folders import METADATA
from flt.data.suffixes import suffix_of
from flt.data.used_columns import SPLIT

ABOUT = ("dataset_info.json", "dataset_infos.json", "dataset_dict.json", "state.json")
"""Files that the library datasets writes beside the data."""


def data_files(folder: Path) -> tuple[list[Path], int]:
    """Returns the data files of a folder, in alphabetical order, or those below it if it has none itself.

    The second value is the number of files below a folder that has files itself. They aren't read.

    Hidden files and folders, and those whose names begin with ``_``, aren't data. A folder with a description of images
    (``metadata.csv``) or with a card that lists its files isn't for this reader, and has none.
    """
    card = folder / "README.md"
    if card.is_file() and re.search(r"^configs:", card.read_text(errors="replace"), re.MULTILINE):
        return [], 0
    below = [path for path in sorted(folder.rglob("*")) if _is_data(path, folder)]
    if any(path.name in METADATA for path in below):
        return [], 0
    own = [path for path in below if path.parent == folder]
    return (own, len(below) - len(own)) if own else (below, 0)


def _is_data(path: Path, folder: Path) -> bool:
    hidden = any(part.startswith((".", "_")) for part in path.relative_to(folder).parts)
    # a text beside the data may be a licence or a list of requirements
    named = path.name not in ABOUT and (not path.name.lower().endswith(".txt") or _named(path, folder))
    return not hidden and bool(named) and bool(suffix_of(path.name)) and path.is_file()


def read_folder(folder: Path, files: list[Path], read: Callable[[Path], Splits]) -> Splits:
    """Reads the files of a folder. If no name says train, validation or test, all rows belong to train.

    Args:
        folder: The folder.
        files: Its data files, see :func:`data_files`.
        read: Function that reads one file as splits.

    Raises:
        InputError: Some names say a split and others don't, a split has files of several formats, a file has a column
            `split` that says another, or files have different columns.
    """
    split_of = {path: _named(path, folder) for path in files}
    if any(split_of.values()) and (left := [path for path in files if not split_of[path]]):
        names = ", ".join(str(path.relative_to(folder)) for path in left)
        allowed = "files whose names say train, validation or test"
        raise InputError.of("data.path", folder, allowed, f"no split in the name of {names}")
    formats: dict[str, dict[str, str]] = {}
    for path, split in split_of.items():
        formats.setdefault(split or "train", {})[_ending(path)] = path.name
    for split, ends in formats.items():
        if len(ends) > 1:
            why = f"{split} has {', '.join(ends.values())}, which may be the same rows twice"
            raise InputError.of("data.path", folder, "files of one format for each split, or one of them", why)
    parts: dict[str, list[datasets.Dataset]] = {}
    for path, split in split_of.items():
        try:
            read_splits = read(path)
        except InputError as error:
            raise InputError(f"{path.relative_to(folder)}: {error}") from None
        for name, rows in read_splits.items():
            if split and SPLIT in rows.column_names and _canonical(name) != split:
                why = f"{path.name} has rows of the split {name}"
                raise InputError.of("data.path", folder, "names of files that fit their column split", why)
            parts.setdefault(split or name, []).append(rows)
    return {name: _joined(folder, found) for name, found in parts.items()}


def _ending(path: Path) -> str:
    return path.name.lower()[path.name.lower().rindex(suffix_of(path.name)) :]


def _joined(folder: Path, parts: list[datasets.Dataset]) -> datasets.Dataset:
    if len(parts) == 1:
        return parts[0]
    columns = [sorted(part.column_names) for part in parts]
    if different := next((names for names in columns if names != columns[0]), None):
        why = f"some have {', '.join(columns[0])}, others {', '.join(different)}"
        raise InputError.of("data.path", folder, "files with the same columns", why)
    try:
        return datasets.concatenate_datasets(parts)
    except ValueError:  # its text lists all types of all columns
        different = [name for name in parts[0].features if len({str(part.features[name]) for part in parts}) > 1]
        why = f"{', '.join(different)} has a different type in some"
        raise InputError.of("data.path", folder, "files whose columns have the same types", why) from None


def _named(path: Path, folder: Path) -> str:
    """Returns the split that the name of a file says, or else the name of its nearest folder that says one.

    Example:
        >>> _named(Path("a/train/de-00000-of-00002.csv"), Path("a")), _named(Path("a/contest.csv"), Path("a"))
        ('train', '')
    """
    for part in reversed(path.relative_to(folder).parts):
        whole = _canonical(part.partition(".")[0])
        found = {whole} if whole else {_canonical(word) for word in re.split(r"[^a-z]+", part.lower())} - {""}
        if len(found) > 1:
            raise InputError.of("data.path", path, "a name that says one split", f"it says {', '.join(sorted(found))}")
        if found:
            return found.pop()
    return ""


def _canonical(name: str) -> str:
    """Returns train, validation or test for a usual name of the split, or an empty text."""
    names: Mapping[str, tuple[str, ...]] = SPLIT_NAMES
    return next((split for split, usual in names.items() if name.lower() in usual), "")
