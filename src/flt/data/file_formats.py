"""Reading of the columns of a file that are used. A file that needs more memory than there is isn't read."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
import zipfile
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.parquet
import torch
from numpy.typing import NDArray

from flt.core.errors import InputError
from flt.core.memory import available_memory
from flt.data.json_columns import column_names, read_json
from flt.data.used_columns import SPLIT

Splits = dict[str, datasets.Dataset]
Choose = Callable[[Sequence[str]], list[str]]
"""Function that returns the columns to read, out of the names of all columns."""
# Split -> names that the split may have in a source. The first of these names that the source contains is used.
SPLIT_NAMES = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "val", "dev", "validation_matched", "train_dev"),
    "test": ("test",),
}
CLASS_NAMES = ("class_names", "fine_names", "label_names")
"""Usual keys of the array that contains the class names in an .npz file."""
LONGEST_HEADER = 1 << 26
"""Largest number of characters of a CSV file's line of names."""
ROWS = 8192
"""Number of rows of a Parquet file that are read at once, if they surely fit into the memory."""
SIZES = """
import json, sys
import pyarrow.parquet
about, chosen = pyarrow.parquet.read_metadata(sys.argv[1]), [int(i) for i in sys.argv[2:]]
groups = map(about.row_group, range(about.num_row_groups))
print(json.dumps([group.column(i).total_uncompressed_size for group in groups for i in chosen]))
"""
"""Program that prints the sizes of the parts of some columns of a Parquet file."""


def _check_size(path: Path, size: int, room: int | None = None) -> None:
    """Checks that an amount of data fits into an amount of memory, by default into what is free now.

    Raises:
        InputError: It doesn't fit.
    """
    room = available_memory(torch.device("cpu")) if room is None else room
    if size > room:
        why = f"it needs {size / 1e9:.1f} GB of memory"
        raise InputError.of("data.path", path, f"data that fit into the {room / 1e9:.1f} GB that are free", why)


def _by_split(table: pa.Table) -> Splits:
    """Divides the rows of a table by its column `split`. Without this column, all rows belong to train."""
    table.validate(full=True)  # a damaged Parquet file may contain text that is no UTF-8
    if SPLIT not in table.column_names:
        return {"train": _dataset(table)}
    names = pc.unique(table[SPLIT]).to_pylist()
    return {str(name): _dataset(table.filter(pc.equal(table[SPLIT], name))) for name in names}


def _dataset(table: pa.Table) -> datasets.Dataset:
    # Without a fingerprint, the library datasets would pickle the table to hash it, which takes several times its size.
    return datasets.Dataset(table, fingerprint=datasets.fingerprint.generate_random_fingerprint())


def _parquet(path: Path, choose: Choose) -> Splits:
    with pyarrow.parquet.ParquetFile(path) as file:
        columns = choose(file.schema_arrow.names)
        room = available_memory(torch.device("cpu"))
        sizes = _chunk_sizes(path, file, columns, room)
        _check_size(path, sum(sizes) + file.metadata.num_rows * len(columns), room)
        # A text may be written once and stand in every row, so that each row can be as large as the largest chunk.
        rows = max(1, min(ROWS, room // max((1, *sizes))))
        batches, few, size = list[pa.RecordBatch](), list[pa.RecordBatch](), 0
        for batch in file.iter_batches(rows, columns=columns):
            size += batch.nbytes
            _check_size(path, size, room)  # the sizes in the file may be wrong
            few.append(batch)
            if sum(map(len, few)) >= ROWS:
                batches += few if len(few) == 1 else [pa.concat_batches(few)]
                few.clear()
        batches += few
        schema = batches[0].schema if batches else file.schema_arrow
    return _by_split(pa.Table.from_batches(batches, schema))


def _chunk_sizes(path: Path, file: pyarrow.parquet.ParquetFile, columns: Sequence[str], room: int) -> list[int]:
    """Returns the uncompressed size, as the file states it, of each part of the used columns.

    pyarrow ends the process if it is asked for the size of a part whose description is damaged. If one row of the part
    is read first, pyarrow raises an error instead. For parts that may be too large to be read, another process asks.

    Raises:
        ValueError: The description of a part is damaged, or there is no other process.
    """
    about = file.metadata
    used = tuple(f"{name}." for name in columns)
    paths = [about.schema.column(i).path for i in range(about.num_columns)]
    chosen = [i for i, written in enumerate(paths) if f"{written}.".startswith(used)]
    groups = [about.row_group(number) for number in range(about.num_row_groups)]
    if any(group.total_byte_size > room for group in groups):
        program = [sys.executable, "-c", SIZES, str(path.absolute()), *map(str, chosen)]
        asked = subprocess.run(program, capture_output=True, check=False)
        if asked.returncode != 0:
            raise ValueError("the sizes of its columns can't be read")
        sizes: list[int] = json.loads(asked.stdout)
        return sizes
    for number in range(len(groups)):
        next(file.iter_batches(1, [number], columns=columns), None)
    return [group.column(i).total_uncompressed_size for group in groups for i in chosen]


def _csv(path: Path, choose: Choose, delimiter: str = ",") -> Splits:
    _check_size(path, path.stat().st_size)
    names, lacking = _header(path, delimiter), None
    try:
        columns = choose(names) if names else []
    except InputError as error:  # raised once the whole file is known to be well-formed
        columns, lacking = names[:1], error
    # If pyarrow used threads, its errors would contain no row number.
    table = pyarrow.csv.read_csv(
        path,
        read_options=pyarrow.csv.ReadOptions(block_size=_whole(path), use_threads=False),
        parse_options=pyarrow.csv.ParseOptions(delimiter=delimiter, newlines_in_values=True),
        convert_options=pyarrow.csv.ConvertOptions(include_columns=columns),
    )
    if lacking is not None:
        raise lacking
    return _by_split(table)


def _header(path: Path, delimiter: str) -> list[str]:
    """Returns the names of the columns of a CSV file. Like pyarrow, skips empty lines before them."""
    # surrogateescape: the rows are read below, and only the columns that are used have to be UTF-8
    with path.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
        lines = iter(lambda: file.readline(LONGEST_HEADER), "")
        return next((row for row in csv.reader(lines, delimiter=delimiter) if row), [])


def _json(path: Path, choose: Choose) -> Splits:
    _check_size(path, path.stat().st_size)
    written, lacking = column_names(path), None
    names = list(dict.fromkeys(written.values()))
    try:
        columns = choose(names)
    except InputError as error:  # a fault of the file itself comes first
        columns, lacking = names[:1], error
    table = read_json(path, columns, written)
    if lacking is not None:
        raise lacking
    return _by_split(table.select(columns))


def _whole(path: Path) -> int:
    """Returns a block size that covers the whole file, because column types are inferred only from the first block."""
    return min(path.stat().st_size + 1, 2**31 - 1)


def _npz(path: Path, choose: Choose) -> Splits:
    """Reads the arrays x_train, y_train, ... of an .npz file.

    Images have shape (n, H, W) or (n, H, W, C). Images in uint8 stay uint8.
    """
    with np.load(path, allow_pickle=False) as arrays:
        places = {key: place for key in arrays.files if (place := _place(key))}
        if not places:
            had = ", ".join(arrays.files) or "nothing"
            raise InputError.of("data.path", path, "arrays called x_train, y_train, x_test, y_test", f"it holds {had}")
        used = set(choose(list(dict.fromkeys(column for _, column in places.values()))))
        names = [key for key in arrays.files if key.endswith("_names")]
        wanted = [key for key, (_, column) in places.items() if column in used]
        sizes = {entry.filename.removesuffix(".npy"): entry.file_size for entry in _entries(arrays)}
        _check_size(path, sum(sizes.get(key, 0) for key in [*wanted, *names]))
        splits: dict[str, dict[str, NDArray]] = {}
        for key in wanted:
            split, column = places[key]
            splits.setdefault(split, {})[column] = _filled(path, key, arrays[key])
        class_names = {key: list(map(str, arrays[key].tolist())) for key in names}
    return {split: _from_arrays(columns, class_names) for split, columns in splits.items()}


def _entries(arrays: Any) -> list[zipfile.ZipInfo]:
    return arrays.zip.infolist()


def _place(key: str) -> tuple[str, str] | None:
    """Returns the split and the column of an array such as x_train, or None if it belongs to no split."""
    column, _, split = key.rpartition("_")
    known = column and any(split in usual for usual in SPLIT_NAMES.values())
    return (split, {"x": "image", "y": "label"}.get(column, column)) if known else None


def _filled(path: Path, key: str, array: NDArray) -> NDArray:
    if array.ndim == 0 or 0 in array.shape[1:]:
        raise InputError.of("data.path", path, "arrays with a row for each example", f"{key} has shape {array.shape}")
    return array


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


SUFFIXES: dict[str, Callable[[Path, Choose], Splits]] = {
    ".parquet": _parquet,
    ".csv": _csv,
    ".tsv": partial(_csv, delimiter="\t"),
    ".jsonl": _json,
    ".json": _json,
    ".npz": _npz,
}
"""Ending of a file's name -> its reader."""
