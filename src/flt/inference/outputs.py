"""Writing of predictions, one batch of rows after another, as csv, JSON lines or Parquet."""

from __future__ import annotations

import contextlib
import csv
import json
import math
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any

import pyarrow as pa
import pyarrow.parquet

from flt.core.errors import InputError
from flt.core.files import writing_atomically

Columns = Mapping[str, Sequence[Any]]
"""Name of a column -> its values in some rows."""
Write = Callable[[Columns], None]
FORMATS = (".csv", ".jsonl", ".parquet")


@contextlib.contextmanager
def writer(out: str | Path) -> Iterator[Write]:
    """Opens a file for predictions. It is put in place at the end of the with block, or not at all after an error.

    Args:
        out: Path of a .csv, .jsonl or .parquet file, or ``-`` for csv on standard output.

    Yields:
        A function that writes some rows. Each call must have the same columns.

    Raises:
        InputError: The file can't be written.
    """
    if str(out) == "-":
        yield _csv(sys.stdout)
        return
    path = check_out(out)
    with writing_atomically(path) as temporary:
        if path.suffix.lower() == ".parquet":
            with _parquet(temporary) as write:
                yield write
        else:
            with temporary.open("x", encoding="utf-8", errors="backslashreplace", newline="") as file:
                yield _csv(file) if path.suffix.lower() == ".csv" else _json_lines(file)


def check_out(out: str | Path) -> Path:
    """Returns the path of the file for predictions.

    Raises:
        InputError: Its name has another ending, its folder doesn't exist, or there is a folder in its place.
    """
    path = Path(os.path.expanduser(out))
    if path.suffix.lower() not in FORMATS:
        raise InputError.of("out", out, f"a file that ends in {', '.join(FORMATS)}, or - for the terminal")
    if not path.parent.is_dir():
        raise InputError.of("out", out, "a file in a folder that exists")
    if path.is_dir():
        raise InputError.of("out", out, "a file, or a name that is still free", "there is a folder")
    return path


def _csv(file: IO[str]) -> Write:
    # Python's csv module quotes a carriage return only if it is in the line end, so such rows are quoted as a whole.
    plain = csv.writer(file, lineterminator="\n")
    quoted = csv.writer(file, lineterminator="\n", quoting=csv.QUOTE_ALL)
    begun = False

    def put(row: Sequence[Any]) -> None:
        (quoted if any(isinstance(value, str) and "\r" in value for value in row) else plain).writerow(row)

    def write(columns: Columns) -> None:
        nonlocal begun
        if not begun:
            put(list(columns))
            begun = True
        for row in zip(*columns.values(), strict=True):
            put(row)

    return write


def _json_lines(file: IO[str]) -> Write:
    def write(columns: Columns) -> None:
        for row in zip(*columns.values(), strict=True):
            plain = {name: _plain(value) for name, value in zip(columns, row, strict=True)}
            file.write(json.dumps(plain, ensure_ascii=False) + "\n")

    return write


def _plain(value: Any) -> Any:
    """Returns a value that JSON knows: no NaN, which isn't JSON, and texts for dates."""
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return str(value)


@contextlib.contextmanager
def _parquet(path: Path) -> Iterator[Write]:
    opened: list[pyarrow.parquet.ParquetWriter] = []

    def write(columns: Columns) -> None:
        if not opened:
            table = pa.table({name: pa.array(values) for name, values in columns.items()})
            texts = [field.with_type(pa.string()) if pa.types.is_null(field.type) else field for field in table.schema]
            opened.append(pyarrow.parquet.ParquetWriter(path, pa.schema(texts)))
        try:
            opened[0].write_table(pa.table(dict(columns), schema=opened[0].schema))
        except (pa.ArrowInvalid, pa.ArrowTypeError) as error:
            why = "a column has values of several types"
            raise InputError.of("out", path.name, "a .csv or .jsonl file for these data", why) from error

    try:
        yield write
    finally:
        for one in opened:
            one.close()
