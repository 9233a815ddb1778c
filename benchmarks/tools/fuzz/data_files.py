"""Random data files of every format: odd values and types, damaged bytes, bombs, and images of all kinds."""

from __future__ import annotations

import csv
import io
import json
import math
import random
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pyarrow as pa
import pyarrow.parquet
from benchmarks.tools.fuzz.messages import mutated
from benchmarks.tools.fuzz.running import Make

from flt.data.config import DataConfig
from flt.data.dataset_sources import load
from flt.data.encode import batches, encode_images

ODD: list[Any] = [
    None, "", "a", "good film", "0", "1", "nan", "☃" * 20, "x" * 5000, '"', ",", "\n", "\0", -1, 0, 1, 2**31,
    2**63 - 1,
    -(2**63), 2**70, int("9" * 400), 0.5, 1e308, math.nan, math.inf, True, False, [], [1],
    [[0.5] * 4] * 4, {}, {"a": 1}, "2020-01-01", "[1]", "\ud800",
]  # fmt: skip
NAMES = ["text", "label", "split", "image", "label_name", "sentence1", "sentence2", "x", "", " ", "text", "é", "a\nb"]
SPLITS = ["train", "test", "validation", "valid", "other", "", None]
SETTINGS: list[dict[str, Any]] = [
    {}, {}, {}, {"label": "x"}, {"text": "x"}, {"column": "x"}, {"where": {"x": ["1"]}}, {"classes": [0, 1]},
    {"classes": [2**62]}, {"merge": {"a": ["0"], "b": ["1"]}}, {"response": "x"},
    {"response": "x", "prompts": ["{text}"]},
    {"validation": 0.99}, {"test": 0.5}, {"train_examples": 1}, {"image": "x"}, {"label_name": "x"},
]  # fmt: skip


def rows(draw: random.Random) -> list[dict[str, Any]]:
    """Returns the rows of a table in which most columns are as they should be."""
    names = draw.sample(NAMES, draw.randrange(4)) + ["text", "label"] * (draw.random() < 0.9)
    own = {name: draw.choice((None, None, draw.sample(ODD, 4))) for name in names}
    return [{name: _value(draw, name, i, own[name]) for name in names} for i in range(draw.choice((0, 1, 30, 60)))]


def _value(draw: random.Random, name: str, number: int, odd: list[Any] | None) -> Any:
    if odd is not None and draw.random() < 0.5:
        return draw.choice(odd)
    if name == "split":
        return draw.choice(SPLITS)
    return number % 2 if name in ("label", "x") else f"word {number}"


def text_file(draw: random.Random, path: Path) -> None:
    """Writes a table as CSV or as lines of JSON."""
    table = rows(draw)
    if path.suffix in (".csv", ".tsv"):
        file = io.StringIO(newline="")
        writer = csv.writer(file, delimiter="\t" if path.suffix == ".tsv" else ",")
        writer.writerows([list(table[0]) if table else [], *([str(v) for v in row.values()] for row in table)])
        path.write_bytes(file.getvalue().encode(errors="surrogatepass"))
    else:
        path.write_text("\n".join(json.dumps(row) for row in table))


def parquet(draw: random.Random, path: Path) -> None:
    """Writes a table as Parquet, sometimes with images, or with a description that names types of all kinds."""
    columns: dict[str, pa.Array] = {}
    for name in rows(draw)[:1] or [{}]:
        for key in name:
            columns[key] = _array(draw)
    columns["label"] = pa.array([i % 2 for i in range(30)])
    table = pa.table(columns)
    if draw.random() < 0.4:
        kind = draw.choice(("Image", "Audio", "Video", "ClassLabel", "Value", "Translation", "Any", "os", "Features"))
        described = {name: {"_type": kind, "dtype": "int64", "names": ["a", "b"]} for name in columns}
        info = json.dumps({"info": {"features": described}}).encode()
        table = table.replace_schema_metadata({"huggingface": info})
    pyarrow.parquet.write_table(table, path, compression=draw.choice(("snappy", "zstd", "none")))


def _array(draw: random.Random) -> pa.Array:
    choices: list[Callable[[], list[Any]]] = [
        lambda: [f"word {i}" for i in range(30)], lambda: [draw.choice((None, "a", "")) for _ in range(30)],
        lambda: [{"bytes": picture(draw), "path": None} for _ in range(30)],
        lambda: [{"bytes": None, "path": draw.choice(("/etc/hostname", "x.png", "http://127.0.0.1:1/x"))}] * 30,
        lambda: [[i, 1] for i in range(30)], lambda: [b"\xff\xfe"] * 30, lambda: [math.nan] * 30,
    ]  # fmt: skip
    return pa.array(draw.choice(choices)())


def picture(draw: random.Random) -> bytes:
    """Returns an image as bytes: whole, truncated, damaged, of an unusual kind, or with very many pixels."""
    kind = draw.choice(("PNG", "JPEG", "GIF", "BMP", "TIFF", "WEBP", "PPM", "EPS", "PDF", "bomb"))
    if kind == "bomb":
        return png_of(draw.choice((1 << 15, 1 << 20)), 1 << 14)
    mode = draw.choice(("L", "RGB")) if kind != "PNG" else draw.choice(("1", "L", "LA", "P", "RGB", "RGBA", "I;16"))
    file = io.BytesIO()
    PIL.Image.new(mode, draw.choice(((8, 8), (8, 8), (1, 1), (3, 40)))).save(file, kind)
    data = file.getvalue()
    return draw.choice((data, data, data[: len(data) // 2], b"", mutated(draw, data)))


def png_of(width: int, height: int) -> bytes:
    """Returns a PNG of some hundred bytes whose header declares any size."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return len(data).to_bytes(4, "big") + kind + data + zlib.crc32(kind + data).to_bytes(4, "big")

    header = width.to_bytes(4, "big") + height.to_bytes(4, "big") + b"\x08\x00\x00\x00\x00"
    pixels = zlib.compress(b"\0" * 100_000)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")


def npz(draw: random.Random, path: Path) -> None:
    """Writes arrays of unusual shapes and types."""
    shapes = [
        (30, 8, 8),
        (30, 8, 8, 1),
        (30, 8, 8, 3),
        (30, 0, 8),
        (30, 8, 0),
        (0, 8, 8),
        (30,),
        (),
        (29, 8, 8),
        (1, 1, 1),
    ]
    kinds = ["uint8", "float32", "float64", "int64", "bool", "complex64", "U3", "M8[s]", "float16"]
    arrays: dict[str, Any] = {}
    for split in draw.sample(["train", "test", "validation", "x"], 2):
        arrays[f"x_{split}"] = np.zeros(draw.choice(shapes), draw.choice(kinds))
        arrays[f"y_{split}"] = draw.choice((np.arange(30) % 2, np.zeros(draw.choice(shapes), draw.choice(kinds))))
    if draw.random() < 0.3:
        arrays["class_names"] = draw.choice((np.array(["a", "b"]), np.array([1, 2]), np.array("a"), np.zeros((2, 2))))
    np.savez_compressed(path, **arrays)


WRITERS = {
    ".csv": text_file, ".tsv": text_file, ".jsonl": text_file, ".json": text_file, ".parquet": parquet, ".npz": npz,
}  # fmt: skip


def attempt(cfg: DataConfig) -> None:
    """Reads a file as a run does, up to the tokenizer.

    Raises:
        InputError: The file is refused.
    """
    raw = load(cfg)
    for split in raw.splits.values():
        if raw.kind == "image":
            encode_images(split, raw, 8, None)
        else:
            [
                text.encode()
                for batch in batches(split, raw.inputs)
                for column in batch.values()
                for text in column
                if text
            ]


def example(draw: random.Random, folder: Path) -> tuple[str, Any]:
    """Makes a data file; its bytes are damaged in one example of four."""
    path = folder / f"data{draw.choice(sorted(WRITERS))}"
    settings = draw.choice(SETTINGS)
    try:
        WRITERS[path.suffix](draw, path)
    except (pa.ArrowException, UnicodeEncodeError, TypeError, OverflowError, ValueError, OSError, KeyError):
        path.write_bytes(b"")  # this format can't hold such values
    if draw.random() < 0.25:
        path.write_bytes(mutated(draw, path.read_bytes() or b"\0"))
    size = path.stat().st_size
    return f"{path.name} of {size} bytes with {settings}", lambda: attempt(DataConfig("file", str(path), **settings))


FUZZERS: dict[str, Make] = {"data": example}
