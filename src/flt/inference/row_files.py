"""Readers of files, table by table, so that a file may be larger than the memory. All columns are read."""

from __future__ import annotations

import itertools
import json
import logging
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from io import TextIOWrapper
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet

from flt.core.errors import InputError
from flt.core.formatting import printable
from flt.data.csv_files import stream_csv
from flt.data.file_formats import ARROW_FILE
from flt.data.read_settings import ReadSettings
from flt.data.reading import read_file
from flt.data.text_files import read_text

_log = logging.getLogger(__name__)
Opened = tuple[Sequence[str], int | None, Iterator[pa.Table]]
"""Names of the columns, number of rows if it is known, and the rows."""


def _csv(path: Path, how: ReadSettings, size: int, usual: str = ",") -> Opened:
    names, rows, found = stream_csv(path, how, usual)
    return names, rows, (pa.Table.from_batches([batch]) for batch in found)


def _parquet(path: Path, how: ReadSettings, size: int) -> Opened:
    file = pyarrow.parquet.ParquetFile(path, pre_buffer=False)  # with it, the whole file would stay in memory
    names = how.chosen(file.schema_arrow.names)
    return names, file.metadata.num_rows, (pa.Table.from_batches([batch]) for batch in file.iter_batches(size))


def _arrow(path: Path, how: ReadSettings, size: int) -> Opened:
    source = pa.memory_map(str(path))
    is_file = source.read(len(ARROW_FILE)) == ARROW_FILE
    source.seek(0)
    if is_file:
        file = pa.ipc.open_file(source)
        parts = (file.get_batch(number) for number in range(file.num_record_batches))
        return how.chosen(file.schema.names), None, (pa.Table.from_batches([part]) for part in parts)
    stream = pa.ipc.open_stream(source)
    return how.chosen(stream.schema.names), None, (pa.Table.from_batches([part]) for part in stream)


def _json(path: Path, how: ReadSettings, size: int) -> Opened:
    """Reads JSON objects: one in each line, or, in memory, one after another, a list of them, or one of lists."""
    text = read_text(path, how.encoding)
    if text.encoding is None:
        raise text.doubt()

    def lines() -> Iterator[Any]:
        with TextIOWrapper(pa.BufferReader(text.data), "utf-8", newline="\n") as file:
            yield from (_row(number, line) for number, line in enumerate(file, start=1) if line.strip())

    try:
        names = list(next(lines()))
        return how.chosen(names), None, _tables(lines(), names, size)
    except (InputError, StopIteration) as error:
        rows = _objects(text.data.to_pybytes().decode())
        if not rows:
            raise InputError.of("data", path, "a file with JSON objects") from error
        names = list(dict.fromkeys(name for row in rows for name in row))
        return how.chosen(names), len(rows), _tables(iter(rows), names, size)


def _row(number: int, line: str) -> dict[str, Any]:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        row = None
    if not isinstance(row, dict) or (number == 1 and any(isinstance(value, list) for value in row.values())):
        raise InputError.of("data", f"line {number}", "one JSON object in each line")
    return row


def _objects(text: str) -> list[dict[str, Any]]:
    """Returns the objects in a JSON text: one after another, in one list, or as one object with a list for each key.

    Returns no object if the text is something else.
    """
    decoder, place, found = json.JSONDecoder(), 0, list[Any]()
    text = text.strip()
    while place < len(text):
        try:
            value, place = decoder.raw_decode(text, place)
        except (ValueError, RecursionError):
            return []
        found += value if isinstance(value, list) else [value]
        place += len(text[place:]) - len(text[place:].lstrip()) if place < len(text) else 0
    if len(found) == 1 and isinstance(found[0], dict) and found[0] and all(map(_is_list, found[0].values())):
        lists = found[0]
        if len({len(values) for values in lists.values()}) > 1:
            return []
        return [dict(zip(lists, row, strict=True)) for row in zip(*lists.values(), strict=True)]
    return found if all(isinstance(one, dict) for one in found) else []


def _is_list(value: Any) -> bool:
    return isinstance(value, list)


def _tables(rows: Iterator[dict[str, Any]], names: Sequence[str], size: int) -> Iterator[pa.Table]:
    """Yields the rows in tables. Keys that the first line lacks are left out, and a line names them."""
    further = dict[str, None]()
    while chunk := list(itertools.islice(rows, size)):
        further |= dict.fromkeys(name for row in chunk for name in row if name not in names)
        yield pa.table({name: _column([row.get(name) for row in chunk]) for name in names})
    if further:
        _log.warning("keys that the first row lacks are left out: %s", printable(", ".join(further)))


def _column(values: list[Any]) -> pa.Array:
    """Returns the values as a column; values of several types as texts, as they stand in the file."""
    try:
        return pa.array(values)
    except (pa.ArrowInvalid, pa.ArrowTypeError):
        texts = (value if value is None or isinstance(value, str) else json.dumps(value) for value in values)
        return pa.array(list(texts), pa.string())


def _npz(path: Path, how: ReadSettings, size: int) -> Opened:
    return tables_of(read_file(path, how)["train"], size)


def tables_of(found: datasets.Dataset, size: int) -> Opened:
    """Returns the columns, the number of rows and the rows of a data set."""
    plain = found.with_format("arrow")
    parts = (plain[start : start + size] for start in range(0, len(plain), size))
    return list(found.column_names), len(found), parts


OPENERS: dict[str, Callable[[Path, ReadSettings, int], Opened]] = {
    ".csv": _csv,
    ".tsv": partial(_csv, usual="\t"),
    ".txt": partial(_csv, usual="\t"),
    ".parquet": _parquet,
    ".arrow": _arrow,
    ".feather": _arrow,
    ".jsonl": _json,
    ".ndjson": _json,
    ".json": _json,
    ".npz": _npz,
}
"""Ending of a file's name -> function that opens it, and reads its rows in tables of at least one row."""
