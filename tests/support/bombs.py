"""Files of a few bytes, or of odd values, that would take gigabytes or end in a traceback."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pyarrow as pa
import pyarrow.parquet

ALIASES = "a0: &a0 [x]\n" + "".join(f"a{i + 1}: &a{i + 1} [*a{i}, *a{i}]\n" for i in range(25))
"""YAML in which each line stands for twice as much as the one before."""


def chunk(kind: bytes, data: bytes) -> bytes:
    return len(data).to_bytes(4, "big") + kind + data + zlib.crc32(kind + data).to_bytes(4, "big")


def png(width: int, height: int) -> bytes:
    """A grey PNG whose header declares any size, while its pixels are a few."""
    header = struct.pack(">II", width, height) + b"\x08\x00\x00\x00\x00"
    pixels = zlib.compress(b"\0" * 1000)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")


def picture(kind: str) -> bytes:
    file = io.BytesIO()
    PIL.Image.fromarray(np.arange(64 * 64, dtype=np.uint8).reshape(64, 64)).save(file, kind)
    return file.getvalue()


def image_table(path: Path, image: dict[str, Any] | None, description: str = "Image") -> Path:
    """A Parquet file with the same image in every row, as the library datasets writes it."""
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    table = pa.table({"image": pa.array([image] * 40, kind), "label": [i % 2 for i in range(40)]})
    features = f'{{"image": {{"_type": "{description}"}}, "label": {{"_type": "Value", "dtype": "int64"}}}}'
    about = {"huggingface": f'{{"info": {{"features": {features}}}}}'}
    pyarrow.parquet.write_table(table.replace_schema_metadata(about), path)
    return path


def wide_csv(path: Path, columns: int) -> Path:
    """A table of some rows and many columns that nobody needs."""
    names = ",".join(f"c{i}" for i in range(columns))
    rows = "".join(f"word {i},{i % 2},{'1,' * (columns - 1)}1\n" for i in range(4))
    path.write_text(f"text,label,{names}\n{rows}")
    return path


def zipped_zeros(path: Path, rows: int) -> Path:
    """An .npz file of some kilobytes with an image of a megabyte in each row."""
    np.savez_compressed(path, x_train=np.zeros((rows, 1024, 1024), np.uint8), y_train=np.arange(rows) % 2)
    return path


def same_text(path: Path, rows: int) -> Path:
    """A Parquet file of some kilobytes with a text of a megabyte in each row."""
    text = pa.DictionaryArray.from_arrays(pa.array([0] * rows, pa.int32()), pa.array(["word " * 200_000]))
    table = pa.table({"text": text.cast(pa.large_string()), "label": [i % 2 for i in range(rows)]})
    pyarrow.parquet.write_table(table, path, compression="zstd")
    return path


ROW = '{"text": "a", "label": %d, "%s": %s}\n'
JSON: dict[str, Callable[[], str]] = {
    "nested a hundred thousand times": lambda: ROW % (1, "x", "[" * 100_000 + "]" * 100_000),
    "nested objects": lambda: ROW % (1, "x", '{"a": ' * 100_000 + "1" + "}" * 100_000),
    "another key in each row": lambda: "".join(ROW % (i % 2, f"c{i}", 1) for i in range(9_000)),
}
"""Lines of JSON that let pyarrow crash, or take minutes."""


def one_text(path: Path, characters: int, stated: int | None = None, column: str = "text") -> Path:
    """A Parquet file of some kilobytes with one vast text, whose size the file may state wrongly."""
    columns = {"text": ["a", "b"], "label": [0, 1], "other": ["x", "y"]}
    table = pa.table({**columns, column: ["a" * characters, "b"]})
    pyarrow.parquet.write_table(table, path, compression="zstd", use_dictionary=False)
    if stated is not None:
        about = pyarrow.parquet.read_metadata(path).row_group(0)
        size = varint(about.column(table.column_names.index(column)).total_uncompressed_size)
        path.write_bytes(path.read_bytes().replace(size, varint(stated, len(size))))
    return path


def varint(number: int, length: int = 0) -> bytes:
    """A positive integer as the footer of a Parquet file has it, in so many bytes or as few as it takes."""
    number, found = 2 * number, b""
    while number >= 128 or len(found) + 1 < length:
        number, found = number >> 7, found + bytes([number & 127 | 128])
    return found + bytes([number])
