"""Reading of files and hub data sets as splits. Every failure becomes an InputError that contains the path."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.json
import pyarrow.parquet
from numpy.typing import NDArray

from flt.core.errors import InputError
from flt.core.files import expand_user

if TYPE_CHECKING:
    from flt.data.config import DataConfig

Splits = dict[str, datasets.Dataset]

# Split -> names that the split may have in a source. The first of these names that the source contains is used.
SPLIT_NAMES = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "val", "dev", "validation_matched", "train_dev"),
    "test": ("test",),
}
TEXT = (".csv", ".tsv", ".jsonl", ".json")
"""Suffixes of text files. An error from reading such a file may quote its rows."""
# KIND matches the beginning of a pyarrow error, PLACE matches its end. The text between them may quote the file.
KIND = re.compile(
    r"(?:(?:CSV|JSON) parse error|Empty (?:CSV|JSON) file|Row #\d+|Expected \d+ columns, got \d+|Invalid value|[: ])*"
)
PLACE = re.compile(r"(?:changed from \w+ to \w+ |was specified twice )?in row \d+$")
CLASS_NAMES = ("class_names", "fine_names", "label_names")
"""Usual keys of the array that contains the class names in an .npz file."""


def read(cfg: DataConfig) -> Splits:
    """Reads the file ``cfg.local`` in $FLT_DATA if that file exists, else the file or hub data set ``cfg.path``.

    Args:
        cfg: Settings of the data set. Only path, subset and local are used.

    Returns:
        The split train, and the splits validation and test if the source has them.

    Raises:
        InputError: The data set can't be read, is empty, or has no train split.
    """
    folder = os.environ.get("FLT_DATA")
    if folder and cfg.local and os.path.isfile(mirror := Path(folder) / cfg.local):
        return read_file(mirror)
    if not cfg.path:
        raise InputError.of("data.path", cfg.path, f"a hub id such as org/name, or a file ({', '.join(SUFFIXES)})")
    path = expand_user(cfg.path)
    return read_file(path) if path.suffix in SUFFIXES else read_hub(cfg.path, cfg.subset)


def read_file(path: Path) -> Splits:
    """Reads a table or an .npz file.

    The column `split` of a table says which split each row belongs to. Without this column, all rows belong to train.

    Raises:
        InputError: The file is missing, damaged or empty, or has no train split.
    """
    if not os.path.isfile(path):  # Path.is_file raises for an invalid name
        raise InputError.of("data.path", path, "an existing file")
    try:
        splits = SUFFIXES[path.suffix](path)
    except InputError:
        raise
    except Exception as error:  # each reader raises different exceptions for a damaged file
        allowed = f"a readable {path.suffix} file"
        if path.suffix not in TEXT:
            raise InputError.of("data.path", path, allowed, _first_line(error)) from error
        # "from None", because a log of the original error would show rows of the file
        raise InputError.of("data.path", path, allowed, _without_rows(error)) from None
    return _standard(splits, str(path))


def read_hub(path: str, subset: str | None) -> Splits:
    """Loads a data set from the Hugging Face hub or from the hub's cache on disk.

    Raises:
        InputError: Loading fails for any reason, or there is no train split.
    """
    try:
        splits = datasets.load_dataset(path, subset)
    except Exception as error:  # the hub, the network and the readers raise dozens of unrelated exceptions
        allowed = "a data set on the hub that can be reached, with the right data.subset"
        raise InputError.of("data.path", path, allowed, _first_line(error)) from error
    return _standard(splits, path)


def _standard(splits: Mapping[str, datasets.Dataset], path: str) -> Splits:
    """Selects the non-empty splits that serve as train, validation and test, and gives them these names."""
    filled = {name: split for name, split in splits.items() if len(split)}
    if not filled:
        raise InputError.of("data.path", path, "a data set with examples", "it is empty")
    found = {name: next((filled[n] for n in usual if n in filled), None) for name, usual in SPLIT_NAMES.items()}
    if found["train"] is None:
        raise InputError.of("data.path", path, "a data set with a train split", f"its splits are {', '.join(filled)}")
    return {name: split for name, split in found.items() if split is not None}


def _table(read_table: Callable[[Path], pa.Table]) -> Callable[[Path], Splits]:
    """Turns a reader of one table into a reader of splits."""

    def read_splits(path: Path) -> Splits:
        table = read_table(path)
        if twice := [n for n, name in enumerate(table.column_names, 1) if name in table.column_names[: n - 1]]:
            raise InputError.of(
                "data.path", path, "a name of its own for each column", f"column {twice[0]} has another's"
            )
        if "split" not in table.column_names:
            return {"train": datasets.Dataset(table)}
        names = pc.unique(table["split"]).to_pylist()
        return {str(name): datasets.Dataset(table.filter(pc.equal(table["split"], name))) for name in names}

    return read_splits


def _csv(path: Path, delimiter: str = ",") -> pa.Table:
    # If pyarrow used threads, its errors would contain no row number.
    return pyarrow.csv.read_csv(
        path,
        read_options=pyarrow.csv.ReadOptions(block_size=_whole(path), use_threads=False),
        parse_options=pyarrow.csv.ParseOptions(delimiter=delimiter, newlines_in_values=True),
    )


def _json(path: Path) -> pa.Table:
    return pyarrow.json.read_json(path, read_options=pyarrow.json.ReadOptions(block_size=_whole(path)))


def _whole(path: Path) -> int:
    """Returns a block size that covers the whole file, because column types are inferred only from the first block."""
    return min(path.stat().st_size + 1, 2**31 - 1)


def _npz(path: Path) -> Splits:
    """Reads the arrays x_train, y_train, ... of an .npz file.

    Images have shape (n, H, W) or (n, H, W, C). Images in uint8 stay uint8.
    """
    with np.load(path, allow_pickle=False) as arrays:
        splits: dict[str, dict[str, NDArray]] = {}
        for key in arrays.files:
            column, _, split = key.rpartition("_")
            if column and any(split in usual for usual in SPLIT_NAMES.values()):
                splits.setdefault(split, {})[{"x": "image", "y": "label"}.get(column, column)] = arrays[key]
        if not splits:
            had = ", ".join(arrays.files) or "nothing"
            raise InputError.of("data.path", path, "arrays called x_train, y_train, x_test, y_test", f"it holds {had}")
        names = {key: arrays[key].tolist() for key in arrays.files if key.endswith("_names")}
    return {split: _from_arrays(columns, names) for split, columns in splits.items()}


def _from_arrays(columns: dict[str, NDArray], names: dict[str, list[str]]) -> datasets.Dataset:
    features = {name: _feature(name, array, names) for name, array in columns.items()}
    return datasets.Dataset.from_dict(columns, features=datasets.Features(features))


def _feature(name: str, array: NDArray, names: dict[str, list[str]]) -> Any:
    """Returns the ``datasets`` type of the column that an array becomes.

    The type is an image, a class with names, or a plain value.
    """
    if array.ndim in (3, 4):
        return {3: datasets.Array2D, 4: datasets.Array3D}[array.ndim](array.shape[1:], str(array.dtype))
    known = next((names[key] for key in (f"{name}_names", *CLASS_NAMES * (name == "label")) if key in names), None)
    return datasets.ClassLabel(names=known) if known else datasets.Value(str(array.dtype))


def _without_rows(error: Exception) -> str:
    """Returns the kind of a reader's error and the row number, but no text that the error quotes from the file."""
    said = str(error).strip()
    kind, place = KIND.match(said), PLACE.search(said)
    parts = [kind[0].strip(": ") if kind else "", place[0] if place else ""]
    return ": ".join(part for part in (type(error).__name__, ", ".join(filter(None, parts))) if part)


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error).strip() else 'no details'}"


SUFFIXES: dict[str, Callable[[Path], Splits]] = {
    ".parquet": _table(pyarrow.parquet.read_table),
    ".csv": _table(_csv),
    ".tsv": _table(lambda path: _csv(path, delimiter="\t")),
    ".jsonl": _table(_json),
    ".json": _table(_json),
    ".npz": _npz,
}
