"""Reading of the columns of a file that are used. A file that needs more memory than there is isn't read."""

from __future__ import annotations

import json
import re
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
import pyarrow.ipc
import pyarrow.parquet
from numpy.typing import NDArray

from flt.core.errors import InputError
from flt.data import json_columns
from flt.data.csv_files import read_csv
from flt.data.read_settings import ReadSettings, check_rows, check_size, room
from flt.data.text_files import beginning, read_text
from flt.data.used_columns import CHATS, SPLIT

Splits = dict[str, datasets.Dataset]
# Split -> names that the split may have in a source. The first of these names that the source contains is used.
SPLIT_NAMES = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "val", "dev", "validation_matched", "train_dev"),
    "test": ("test", "testing", "eval"),
}
CLASS_NAMES = ("class_names", "fine_names", "label_names")
"""Usual keys of the array that contains the class names in an .npz file."""
ARROW_FILE, ARROW_END = b"ARROW1", b"\xff\xff\xff\xff\0\0\0\0"
"""Beginning of an Arrow file, which a stream doesn't have, and the end of a stream."""
VIEWS = {pa.string_view(): pa.large_string(), pa.binary_view(): pa.large_binary()}
"""Types that other libraries write, such as polars -> types that the library datasets knows."""
ROWS = 8192
"""Number of rows of a Parquet file that are read at once, if they surely fit into the memory."""
INSIDE = re.compile(rb'"([^"]*)"\s*:\s*\[\s*\{')
"""Key whose value is a list of objects."""
SIZES = """
import json, sys
import pyarrow.parquet
about, chosen = pyarrow.parquet.read_metadata(sys.argv[1]), [int(i) for i in sys.argv[2:]]
groups = map(about.row_group, range(about.num_row_groups))
print(json.dumps([group.column(i).total_uncompressed_size for group in groups for i in chosen]))
"""
"""Program that prints the sizes of the parts of some columns of a Parquet file."""


def _by_split(path: Path, table: pa.Table) -> Splits:
    """Divides the rows of a table by its column `split`. Without this column, all rows belong to train.

    Upper case, and blanks around the name of a split, don't matter.

    Raises:
        InputError: A row has no value in the column.
    """
    table.validate(full=True)  # a damaged Parquet file may contain text that is no UTF-8
    plain = [field.with_type(VIEWS.get(field.type, field.type)) for field in table.schema]
    table = table.cast(pa.schema(plain, table.schema.metadata))
    if SPLIT not in table.column_names:
        return {"train": _dataset(table)}
    column = table[SPLIT].cast(pa.string())
    column = pc.utf8_lower(pc.utf8_trim_whitespace(column))
    names = pc.unique(column).to_pylist()
    if None in names or "" in names:
        raise InputError.of("data.path", path, "a split for every row, or no such column", f"{SPLIT} lacks in some")
    return {name: _dataset(table.filter(pc.equal(column, name))) for name in names}


def _dataset(table: pa.Table) -> datasets.Dataset:
    # Without a fingerprint, the library datasets would pickle the table to hash it, which takes several times its size.
    return datasets.Dataset(table, fingerprint=datasets.fingerprint.generate_random_fingerprint())


def _parquet(path: Path, how: ReadSettings) -> Splits:
    with pyarrow.parquet.ParquetFile(path) as file:
        columns = how.chosen(file.schema_arrow.names)
        free = room()
        sizes = _chunk_sizes(path, file, columns, free)
        check_size(path, sum(sizes) + file.metadata.num_rows * len(columns), free)
        # A text may be written once and stand in every row, so that each row can be as large as the largest chunk.
        rows = max(1, min(ROWS, free // max((1, *sizes))))
        batches, few, size = list[pa.RecordBatch](), list[pa.RecordBatch](), 0
        for batch in file.iter_batches(rows, columns=columns):
            size += batch.nbytes
            check_size(path, size, free)  # the sizes in the file may be wrong
            few.append(batch)
            if sum(map(len, few)) >= ROWS:
                batches += few if len(few) == 1 else [pa.concat_batches(few)]
                few.clear()
        batches += few
        schema = batches[0].schema if batches else file.schema_arrow
        table = pa.Table.from_batches(batches, schema)
        if columns:  # a table without columns has no rows
            check_rows(path, file.metadata.num_rows, table.num_rows)
    return _by_split(path, table)


def _chunk_sizes(path: Path, file: pyarrow.parquet.ParquetFile, columns: Sequence[str], free: int) -> list[int]:
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
    if any(group.total_byte_size > free for group in groups):
        program = [sys.executable, "-c", SIZES, str(path.absolute()), *map(str, chosen)]
        asked = subprocess.run(program, capture_output=True, check=False)
        if asked.returncode != 0:
            raise ValueError("the sizes of its columns can't be read")
        sizes: list[int] = json.loads(asked.stdout)
        return sizes
    for number in range(len(groups)):
        next(file.iter_batches(1, [number], columns=columns), None)
    return [group.column(i).total_uncompressed_size for group in groups for i in chosen]


def _csv(path: Path, how: ReadSettings, usual: str = ",") -> Splits:
    return _by_split(path, read_csv(path, how, usual))


def _json(path: Path, how: ReadSettings) -> Splits:
    text = read_text(path, how.encoding)
    if text.encoding is None:
        raise text.doubt()
    if text.encoding != "utf-8":
        how.note(f"encoding {text.encoding}")
    check_size(path, text.data.size)
    text = json_columns.as_lines(text)
    if (table := json_columns.read_alike(text, how.chosen)) is not None:
        return _by_split(path, table)
    (written, rows), lacking = json_columns.column_names(text), None
    names = list(dict.fromkeys(written.values()))
    if not names:
        raise InputError.of("data.path", path, "a data set with examples", "it is empty")
    try:
        columns = how.chosen(names)
    except InputError as error:  # a fault of the file itself comes first
        columns, lacking = names[:1], error
    table = json_columns.read_json(text, columns, written)
    if lacking is not None:
        inside = INSIDE.search(beginning(text.data, json_columns.PIECE)) if rows == 1 else None
        if inside and (key := inside[1].decode(errors="replace")) not in CHATS:
            why = f"rows lie inside of the key {key}"
            raise InputError.of("data.path", path, "the list of rows alone, without an object around it", why)
        raise lacking
    if columns:
        check_rows(path, rows, table.num_rows)
    return _by_split(path, _rows_of_lists(path, table.select(columns)))


def _rows_of_lists(path: Path, table: pa.Table) -> pa.Table:
    """Returns the rows of ``{"text": [...], "label": [...]}``, which is one object with a list for each column."""
    if table.num_rows != 1 or not all(map(pa.types.is_list, table.schema.types)):
        return table
    lists = {name: pc.list_flatten(table[name]) for name in table.column_names}
    if len(set(map(len, lists.values()))) > 1:
        why = ", ".join(f"{name} has {len(values)}" for name, values in lists.items())
        raise InputError.of("data.path", path, "lists of the same length", why)
    return pa.table(lists)


def _arrow(path: Path, how: ReadSettings) -> Splits:
    """Reads an Arrow file or stream, such as a Feather file or a shard that `datasets` has written."""
    check_size(path, path.stat().st_size)
    with pa.memory_map(str(path)) as source:
        is_file = source.read(len(ARROW_FILE)) == ARROW_FILE
        source.seek(0)
        if is_file:
            opened: Any = pa.ipc.open_file(source)
            batches = [opened.get_batch(number) for number in range(opened.num_record_batches)]
        else:
            opened = pa.ipc.open_stream(source)
            batches = list(opened)
            # A stream says nowhere how many rows it has: if it is cut off, or another one follows, rows would be lost.
            source.seek(max(0, source.tell() - len(ARROW_END)))
            if source.read() != ARROW_END:
                why = f"its end doesn't come right after the {sum(map(len, batches))} rows that were read"
                raise InputError.of("data.path", path, "one whole stream", why)
        table = pa.Table.from_batches(batches, opened.schema)
        return _by_split(path, table.select(how.chosen(opened.schema.names)))


def _npz(path: Path, how: ReadSettings) -> Splits:
    """Reads the arrays x_train, y_train, ... of an .npz file.

    Images have shape (n, H, W) or (n, H, W, C). Images in uint8 stay uint8.
    """
    with np.load(path, allow_pickle=False) as arrays:
        places = {key: place for key in arrays.files if (place := _place(key))}
        if not places:
            had = ", ".join(arrays.files) or "nothing"
            raise InputError.of("data.path", path, "arrays called x_train, y_train, x_test, y_test", f"it holds {had}")
        used = set(how.chosen(list(dict.fromkeys(column for _, column in places.values()))))
        names = [key for key in arrays.files if key.endswith("_names")]
        if further := [key for key in arrays.files if key not in places and key not in names]:
            how.note(f"arrays {', '.join(further)} not used")
        wanted = [key for key, (_, column) in places.items() if column in used]
        sizes = {entry.filename.removesuffix(".npy"): entry.file_size for entry in _entries(arrays)}
        check_size(path, sum(sizes.get(key, 0) for key in [*wanted, *names]))
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
    if array.ndim == 2 and array.shape[1] == 1:  # as Keras and MedMNIST write labels
        return array[:, 0]
    if array.ndim not in (1, 3, 4):
        allowed = "images (n, H, W) or (n, H, W, C), and labels (n,)"
        raise InputError.of("data.path", path, allowed, f"{key} has shape {array.shape}")
    if array.dtype.kind not in "biufU":
        raise InputError.of("data.path", path, "arrays of numbers or texts", f"{key} holds {array.dtype}")
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
    kind = "string" if array.dtype.kind == "U" else str(array.dtype)
    return datasets.ClassLabel(names=known) if known else datasets.Value(kind)


READERS: dict[str, Callable[[Path, ReadSettings], Splits]] = {
    ".parquet": _parquet,
    ".csv": _csv,
    ".tsv": partial(_csv, usual="\t"),
    ".txt": partial(_csv, usual="\t"),
    ".jsonl": _json,
    ".ndjson": _json,
    ".json": _json,
    ".arrow": _arrow,
    ".feather": _arrow,
    ".npz": _npz,
}
"""Ending of a file's name -> its reader."""
