"""Reading of files and hub data sets as splits. Every failure becomes an InputError that contains the path."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import datasets

from flt.core.errors import InputError
from flt.core.files import expand_user
from flt.core.typed import first_line
from flt.data.file_formats import READERS, SPLIT_NAMES, Splits
from flt.data.folders import data_files, read_folder
from flt.data.image_folders import is_image_folder, read_image_folder
from flt.data.images import undecoded
from flt.data.read_settings import ReadSettings
from flt.data.suffixes import COMPRESSED, SUFFIXES, TEXTS, suffix_of
from flt.data.used_columns import SPLIT, used_columns

if TYPE_CHECKING:
    from flt.data.config import DataConfig

# KIND matches the beginning of a pyarrow error, PLACE matches its end. The text between them may quote the file.
KIND = re.compile(
    r"(?:(?:CSV|JSON) parse error|Empty (?:CSV|JSON) file|Row #\d+|Expected \d+ columns, got \d+|Invalid value|[: ])*"
)
PLACE = re.compile(r"(?:changed from \w+ to \w+ |was specified twice )?in row \d+$")


def read(cfg: DataConfig, only: str | None = None) -> tuple[Splits, str, ReadSettings]:
    """Reads the file ``cfg.local`` in $FLT_DATA if that file exists, else what ``cfg.path`` names.

    ``cfg.path`` is a folder if there is one, else a file if it ends like one, and else a data set on the hub. A folder
    without files that flt reads, such as one of images, and a folder with ``cfg.subset`` are left to ``datasets``.

    Args:
        cfg: Settings of the data set.
        only: Name of the single split that is returned, as train. Empty: test, or else the only split that there is.
            None: all splits are returned.

    Returns:
        The split train, and the splits validation and test if the source has them; the name of the file or folder,
        empty if another library has read it; and the notes about it.

    Raises:
        InputError: The data set can't be read, is empty, or has no train split.
    """

    def choose(names: Sequence[str]) -> list[str]:
        return used_columns(cfg, names)

    how = ReadSettings(choose, cfg.label, cfg.encoding, cfg.delimiter, cfg.quote, only=only)
    folder = os.environ.get("FLT_DATA")
    if folder and cfg.local and os.path.isfile(mirror := Path(folder) / cfg.local):
        return read_file(mirror, how), mirror.name, how
    if not cfg.path:
        raise InputError.of("data.path", cfg.path, f"a hub id such as org/name, or a file ({', '.join(SUFFIXES)})")
    path = expand_user(cfg.path)
    splits, name = _found(cfg, path, how)
    return _standard(splits, str(path) if os.path.exists(path) else cfg.path, how if name else None, only), name, how


def _found(cfg: DataConfig, path: Path, how: ReadSettings) -> tuple[Mapping[str, datasets.Dataset], str]:
    """Returns all splits of a file, a folder or a hub data set, under their own names, and the name of the source.

    The name is empty if the library datasets has read the source.
    """
    if not cfg.subset and is_image_folder(path):
        images = read_image_folder(
            path, cfg, lambda file, choose: read_file(file, dataclasses.replace(how, choose=choose)), how.note
        )
        how.columns = len(next(iter(images.values())).column_names)
        return images, path.resolve().name
    if os.path.isdir(path):
        files, further = ([], 0) if cfg.subset else data_files(path)
        if not files:
            return _load(str(path), cfg.subset), ""
        splits = read_folder(path, files, lambda file: _read_file(file, how))
        how.note(f"{len(files)} file{'s' * (len(files) != 1)}")
        if further:
            how.note(f"{further} in subfolders not read")
        return splits, path.resolve().name
    if suffix_of(path.name):
        return _read_file(path, how), path.name
    if os.path.isfile(path):
        allowed = f"a file whose name ends in {', '.join(SUFFIXES)}; text files also with {', '.join(COMPRESSED)}"
        raise InputError.of("data.path", path, allowed)
    return _load(str(cfg.path), cfg.subset), ""


def read_test(cfg: DataConfig, columns: Sequence[str], source: str) -> datasets.Dataset:
    """Reads the test split from the file or folder ``cfg.test_path``.

    If the source has a split test, these are its rows. If it has only one split, of whatever name, these are all rows.

    Args:
        cfg: Settings of the data set.
        columns: Columns that the test split must have.
        source: Name of the data of train, for messages.

    Raises:
        InputError: The file or folder can't be read, is empty, lacks a column, has several splits but no test split, or
            has the examples of train.
    """
    path = expand_user(str(cfg.test_path))
    if not cfg.test_path or not os.path.exists(path):
        raise InputError.of("data.test_path", cfg.test_path, f"an existing folder or file ({', '.join(SUFFIXES)})")

    def choose(names: Sequence[str]) -> list[str]:
        check(names)
        return [name for name in names if name in {*columns, SPLIT}]

    def check(names: Sequence[str]) -> None:
        if lacking := [name for name in columns if name not in names]:
            allowed = f"data with the columns of {source}: {', '.join(columns)}"
            raise InputError.of("data.test_path", cfg.test_path, allowed, f"the column {lacking[0]} is missing")

    how = ReadSettings(choose, cfg.label, cfg.encoding, cfg.delimiter, cfg.quote)
    try:
        splits, _ = _found(dataclasses.replace(cfg, path=str(cfg.test_path), subset=None), path, how)
    except InputError as error:
        raise InputError(str(error).replace("data.path=", "data.test_path=", 1)) from None
    filled = {name: split for name, split in splits.items() if len(split)}
    name = next((name for name in SPLIT_NAMES["test"] if name in filled), None)
    if name is None and len(filled) != 1:
        why = f"its splits are {', '.join(filled)}" if filled else "it is empty"
        raise InputError.of("data.test_path", cfg.test_path, "data with a test split, or with one split", why)
    train = expand_user(cfg.path or "")
    if name is None and os.path.exists(train) and os.path.samefile(path, train):
        why = "the model would be tested on the examples of its training"
        raise InputError.of("data.test_path", cfg.test_path, f"other data than data={cfg.path}", why)
    found = filled[name or next(iter(filled))]
    check(found.column_names)
    return found


def read_file(path: Path, how: ReadSettings | None = None) -> Splits:
    """Reads the columns of a table or an .npz file that are used.

    The column `split` of a table says which split each row belongs to. Without this column, all rows belong to train.

    Args:
        path: The file.
        how: Settings of the file. None: all columns are read.

    Raises:
        InputError: The file is missing, damaged, empty or larger than the memory, has no train split, lacks a column,
            or refers to other files.
    """
    how = how or ReadSettings()
    return _standard(_read_file(path, how), str(path), how)


def _read_file(path: Path, how: ReadSettings) -> Splits:
    check_file(path)
    with readable(path):
        return {name: undecoded(split, path) for name, split in READERS[suffix_of(path.name)](path, how).items()}


def check_file(path: Path) -> None:
    """Checks that there is a file, and that it has a first byte.

    Raises:
        InputError: There is no such file, or it is empty.
    """
    if not os.path.isfile(path):  # Path.is_file raises for an invalid name
        raise InputError.of("data.path", path, "an existing file")
    if not path.stat().st_size:
        raise nothing_in(path)


def nothing_in(path: str | Path) -> InputError:
    """Returns the error for a file or data set without examples."""
    return InputError.of("data.path", path, "a data set with examples", "it is empty")


@contextlib.contextmanager
def readable(path: Path) -> Iterator[None]:
    """Turns every error of a reader into one line that names the file. It quotes none of a text file's rows."""
    try:
        yield
    except (InputError, GeneratorExit):
        raise
    except Exception as error:  # each reader raises different exceptions for a damaged file
        suffix = suffix_of(path.name)
        allowed = f"a readable {suffix} file"
        if suffix not in TEXTS:
            raise InputError.of("data.path", path, allowed, _said(error)) from error
        # "from None", because a log of the original error would show rows of the file
        raise InputError.of("data.path", path, allowed, without_rows(error)) from None


def _load(path: str, subset: str | None) -> Mapping[str, datasets.Dataset]:
    """Loads a data set from the Hugging Face hub or from the hub's cache on disk, or a folder that it reads.

    Raises:
        InputError: Loading fails for any reason.
    """
    try:
        splits: Mapping[str, datasets.Dataset] = datasets.load_dataset(path, subset)
    except Exception as error:  # the hub, the network and the readers raise dozens of unrelated exceptions
        allowed = "a data set on the hub that can be reached, with the right data.subset"
        raise InputError.of("data.path", path, allowed, _said(error)) from error
    return splits


def _standard(
    splits: Mapping[str, datasets.Dataset], path: str, how: ReadSettings | None = None, only: str | None = None
) -> Splits:
    """Selects the non-empty splits that serve as train, validation and test, and gives them these names."""
    only = how.only if how is not None else only
    filled = {name: split for name, split in splits.items() if len(split)}
    if not filled:
        raise nothing_in(path)
    found = {name: next((n for n in usual if n in filled), None) for name, usual in SPLIT_NAMES.items()}
    if only is not None:
        return {"train": filled[_single(only, filled, found)]}
    if found["train"] is None:
        raise InputError.of("data.path", path, "a data set with a train split", f"its splits are {', '.join(filled)}")
    for name in filled if how is not None else ():
        if how is not None and name not in found.values():
            how.note(f"{len(filled[name])} rows of the split {name} not used")
    return {name: filled[source] for name, source in found.items() if source is not None}


def _single(only: str, filled: Mapping[str, datasets.Dataset], found: Mapping[str, str | None]) -> str:
    """Returns the name, in its source, of the single split to read."""
    if only in filled or found.get(only):
        return only if only in filled else str(found[only])
    if only or (found["test"] is None and len(filled) > 1):
        raise InputError.of("split", only, filled, "there is no such split" if only else "there are several splits")
    return found["test"] or next(iter(filled))


def without_rows(error: Exception) -> str:
    """Returns the kind of a reader's error and the row number, but no text that the error quotes from the file."""
    said = str(error).strip()
    kind, place = KIND.match(said), PLACE.search(said)
    parts = [kind[0].strip(": ") if kind else "", place[0] if place else ""]
    return ": ".join(part for part in (type(error).__name__, ", ".join(filter(None, parts))) if part)


def _said(error: Exception) -> str:
    return f"{type(error).__name__}: {first_line(error)}" if str(error).strip() else type(error).__name__
