"""Data files that would take gigabytes, minutes or other files: only what is used is read, and in bounds."""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
import time
import zipfile
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import bombs
import datasets
import numpy as np
import PIL.features
import PIL.Image
import pyarrow as pa
import pyarrow.parquet
import pytest
import torch
from forked import cost

from flt.core import memory
from flt.core.errors import InputError
from flt.data import read_settings
from flt.data.config import DataConfig
from flt.data.dataset_sources import RawData, load
from flt.data.encode import encode_images
from flt.data.images import decode
from flt.data.stores import ImageStore, to_tensor


def loaded(path: Path, **fields: Any) -> RawData:
    return load(DataConfig("file", str(path), **fields))


def images(path: Path, **fields: Any) -> ImageStore:
    raw = loaded(path, **fields)
    store = encode_images(raw.splits["train"], raw, None, None).store
    assert isinstance(store, ImageStore)
    return store


def refused(path: Path, why: str, **fields: Any) -> None:
    with pytest.raises(InputError, match=why) as raised:
        images(path, **fields)
    assert "\n" not in str(raised.value)
    assert len(str(raised.value)) < 5000


def rows(path: Path, **columns: list) -> Path:
    pyarrow.parquet.write_table(pa.table(columns), path)
    return path


TEXTS = {"text": [f"word {i}" for i in range(40)], "label": [i % 2 for i in range(40)]}


# ------------------------------------------------------------------------------------------------- columns


@pytest.mark.parametrize("suffix", [".parquet", ".csv", ".jsonl"])
def test_only_the_columns_that_are_used_are_read(suffix: str, tmp_path: Path) -> None:
    table, path = {**TEXTS, "split": ["train"] * 30 + ["test"] * 10, "x": [[1]] * 40}, tmp_path / f"a{suffix}"
    flat = {name: [str(value) for value in column] for name, column in table.items()}
    if suffix == ".parquet":
        rows(path, **table)
    elif suffix == ".csv":
        datasets.Dataset.from_dict(flat).to_csv(path, index=False)
    else:
        lines = [dict(zip(table, row, strict=True)) for row in zip(*table.values(), strict=True)]
        path.write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    raw = loaded(path)
    assert set(raw.splits["train"].column_names) == {"text", "label", "split"}
    assert len(raw.splits["test"]) == 10


def test_only_the_arrays_that_are_used_are_read(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", x_train=np.zeros((20, 8, 8)), y_train=np.arange(20) % 2, other_train=np.zeros(20))
    assert set(loaded(tmp_path / "a.npz").splits["train"].column_names) == {"image", "label"}


def test_a_column_that_lacks_is_named_beside_all_that_are_there(tmp_path: Path) -> None:
    path = rows(tmp_path / "a.parquet", **TEXTS, other=[1] * 40)
    refused(path, r"^data\.text=nowhere: no such column; allowed is text, label, other$", text="nowhere")
    refused(path, r"^data\.column=nowhere: no such column; allowed is text, label, other$", column="nowhere")
    refused(path, r"^data\.where\.no=no: no such column; allowed is text, label, other$", where={"no": ["1"]})


@pytest.mark.slow
@pytest.mark.slow
def test_a_table_of_a_million_columns_takes_little_memory_and_time(tmp_path: Path) -> None:
    path, began = bombs.wide_csv(tmp_path / "a.csv", 1_000_000), time.monotonic()
    rows, grown = cost(lambda: len(loaded(path, validation=0.0).splits["train"]))
    assert rows == 4
    assert grown < 1_500_000_000  # all columns: > 4 GB
    assert time.monotonic() - began < 60


def test_a_line_that_names_many_columns_is_short(tmp_path: Path) -> None:
    refused(bombs.wide_csv(tmp_path / "a.csv", 5_000), "no such column", label="nowhere")


# ------------------------------------------------------------------------------------------------- bombs


@pytest.mark.parametrize("what", bombs.JSON)
def test_json_that_is_nested_deeply_or_has_ever_new_keys_is_refused(what: str, tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text(bombs.JSON[what]() + '{"text": "b", "label": 0}\n')
    refused(tmp_path / "a.jsonl", r"^data\.path=.*allowed is at most (64 nested levels|5000 different keys)$")


def test_brackets_and_braces_in_texts_are_no_levels(tmp_path: Path) -> None:
    line = '{"text": "%s \\\\ \\"[[{%s", "label": %d}\n'
    (tmp_path / "a.jsonl").write_text("".join(line % ("[" * 100, "{" * 100, i % 2) for i in range(40)))
    assert len(loaded(tmp_path / "a.jsonl").splits["train"]) == 36


def test_a_number_of_400_digits_is_refused(tmp_path: Path) -> None:
    lines = ['{"text": "a", "label": %s}\n' % ("9" * 400 if i == 3 else i % 2) for i in range(40)]
    (tmp_path / "a.jsonl").write_text("".join(lines))
    refused(tmp_path / "a.jsonl", r"^data\.(path|label)=")


@pytest.mark.parametrize("make", [bombs.same_text, bombs.zipped_zeros], ids=lambda make: make.__name__)
def test_a_file_that_needs_more_memory_than_is_free_is_refused(
    make: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = make(tmp_path / ("a.parquet" if make is bombs.same_text else "a.npz"), 40)
    monkeypatch.setattr(read_settings, "available_memory", lambda device: 30_000_000)
    assert path.stat().st_size < 1_000_000
    refused(path, r"^data\.path=.*: it needs 0\.0 GB of memory; allowed is data that fit into the 0\.0 GB that are")


@pytest.mark.parametrize(("stated", "most"), [(None, 30_000_000), (5, 300_000_000)], ids=["true size", "a lie"])
def test_a_vast_text_of_a_parquet_file_is_refused_by_its_stated_size_or_once_it_is_read(
    stated: int | None, most: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = bombs.one_text(tmp_path / "a.parquet", 60_000_000, stated)
    monkeypatch.setattr(read_settings, "available_memory", lambda device: 50_000_000)
    assert path.stat().st_size < 100_000
    said, grown = cost(lambda: loaded(path))
    assert re.match(r"InputError: data\.path=.*: it needs 0\.1 GB of memory; allowed is data that fit into", said)
    assert grown < most


def test_a_vast_text_in_a_column_that_is_not_used_is_neither_counted_nor_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = bombs.one_text(tmp_path / "a.parquet", 60_000_000, column="other")
    monkeypatch.setattr(read_settings, "available_memory", lambda device: 10_000_000)
    rows, grown = cost(lambda: len(loaded(path, validation=0.0).splits["train"]))
    assert (rows, grown < 30_000_000) == (2, True)


def test_a_text_that_is_written_once_for_all_rows_is_read_a_few_rows_at_a_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = bombs.same_text(tmp_path / "a.parquet", 500)
    monkeypatch.setattr(read_settings, "available_memory", lambda device: 30_000_000)
    said, grown = cost(lambda: loaded(path))
    assert said.startswith("InputError: data.path=")
    assert grown < 200_000_000


def test_a_file_is_read_where_the_system_does_not_tell_its_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(memory, "MEMINFO", tmp_path / "nowhere")
    monkeypatch.setattr(memory, "OWN_CGROUPS", tmp_path / "nowhere")
    monkeypatch.setattr(memory.os, "sysconf", lambda name: -1)
    assert len(loaded(rows(tmp_path / "a.parquet", **TEXTS)).splits["train"]) == 36


def test_a_class_with_a_very_long_name_is_refused(tmp_path: Path) -> None:
    names = {**TEXTS, "label": ["x" * 100_000 if i % 2 else "y" for i in range(40)]}
    refused(rows(tmp_path / "a.parquet", **names), r"^data\.label=100000 characters: allowed is texts of at most 1000")
    nested = {**TEXTS, "x": [[1, 2]] * 40}
    refused(rows(tmp_path / "b.parquet", **nested), r"^data\.column=list", column="x")
    refused(rows(tmp_path / "b.parquet", **nested), r"^data\.where\.x=list", where={"x": ["1"]})
    binary = {**TEXTS, "x": [b"\xff"] * 40}
    refused(rows(tmp_path / "c.parquet", **binary), r"^data\.where\.x=binary", where={"x": ["1"]})


def test_a_name_of_a_class_is_a_text_or_an_integer(tmp_path: Path) -> None:
    path = rows(tmp_path / "a.parquet", **TEXTS, label_name=["a", None] * 20)
    refused(path, r"^data\.label_name=label_name: it holds NoneType; allowed is a column of texts or integers$")


def test_text_that_is_no_utf8_is_refused(tmp_path: Path) -> None:
    offsets = pa.array(["ab"] * 40).buffers()[:2]
    damaged = pa.Array.from_buffers(pa.string(), 40, [*offsets, pa.py_buffer(b"\xff\xfe" * 40)])
    pyarrow.parquet.write_table(pa.table({"text": damaged, "label": TEXTS["label"]}), tmp_path / "a.parquet")
    refused(tmp_path / "a.parquet", r"^data\.path=.*UTF8")


# ------------------------------------------------------------------------------------------------- images


@pytest.mark.parametrize("shape", [(30, 0, 8), (30, 8, 0), (30, 8, 8, 0), ()], ids=str)
def test_images_without_pixels_are_refused(shape: tuple[int, ...], tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", x_train=np.zeros(shape), y_train=np.arange(30) % 2)
    refused(tmp_path / "a.npz", r"^data\.path=.*: x_train has shape .*; allowed is arrays with a row for each example$")


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "GIF", "BMP", "WEBP", "TIFF", "PPM", "JPEG2000", "AVIF"])
def test_pictures_of_the_usual_formats_are_decoded_to_the_same_pixels(kind: str, tmp_path: Path) -> None:
    if kind == "AVIF" and not PIL.features.check("avif"):
        pytest.skip("this Pillow has no AVIF")
    path = bombs.image_table(tmp_path / "a.parquet", {"bytes": bombs.picture(kind), "path": None})
    pixels = images(path).pixels
    image = datasets.Image().decode_example({"bytes": bombs.picture(kind), "path": None})
    assert torch.equal(pixels[0], to_tensor(image))


def half(kind: str) -> bytes:
    data = bombs.picture(kind)
    return data[: len(data) // 2]


PICTURES: dict[str, tuple[Any, str]] = {
    "truncated": ({"bytes": half("PNG"), "path": None}, r"^data\.image=<\d+ bytes>: .*truncated"),
    "a truncated JPEG": ({"bytes": half("JPEG"), "path": None}, r"^data\.image=<\d+ bytes>: .*truncated"),
    "EPS": ({"bytes": bombs.picture("EPS"), "path": None}, r"^data\.image=.*cannot identify image file"),
    "no image": ({"bytes": b"text", "path": None}, r"^data\.image=<4 bytes>: cannot identify image file"),
    "empty": ({"bytes": b"", "path": None}, r"^data\.image=<0 bytes>"),
    "a bomb": ({"bytes": bombs.png(20_000, 20_000), "path": None}, r"it has more than 178956970 pixels"),
    "a vast bomb": ({"bytes": bombs.png(1 << 20, 1 << 20), "path": None}, r"it has more than 178956970 pixels"),
    "another file": ({"bytes": None, "path": "/etc/hostname"}, "image holds names of other files; allowed is images"),
    "an address": ({"bytes": None, "path": "http://127.0.0.1:1/x.png"}, "image holds names of other files"),
    "missing": (None, r"^data\.image=row 1 of train: allowed is an image for every example$"),
}


@pytest.mark.parametrize("what", PICTURES)
def test_other_pictures_are_refused_in_a_line(what: str, tmp_path: Path) -> None:
    image, why = PICTURES[what]
    refused(bombs.image_table(tmp_path / "a.parquet", image), why)


@pytest.mark.slow
def test_a_picture_of_a_hundred_million_pixels_is_decoded() -> None:
    file = io.BytesIO()
    PIL.Image.new("1", (10_000, 10_000)).save(file, "PNG")
    assert decode({"bytes": file.getvalue(), "path": None}).size == (10_000, 10_000)


def test_the_number_of_pixels_is_bounded_where_pillows_bound_is_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(PIL.Image, "MAX_IMAGE_PIXELS", None)
    with pytest.raises(InputError, match="it has 20000 x 20000 pixels, and at most 178956970 are allowed"):
        decode({"bytes": bombs.png(20_000, 20_000), "path": None})


def test_an_image_of_the_hub_that_is_a_file_is_decoded_as_the_bytes_are(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(bombs.picture("PNG"))
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.write(tmp_path / "a.png", "b.png")
    bytes_decoded = to_tensor(decode({"bytes": bombs.picture("PNG"), "path": None}))
    for path in (str(tmp_path / "a.png"), f"zip://b.png::{tmp_path / 'a.zip'}"):
        assert torch.equal(to_tensor(decode({"bytes": None, "path": path})), bytes_decoded)
    (tmp_path / "a.png").write_bytes(bombs.picture("EPS"))
    for name, why in (
        ("a.png", "cannot identify image file"),
        ("no.png", r"^data\.image=no\.png: FileNotFound"),
    ):
        with pytest.raises(InputError, match=why):
            decode({"bytes": None, "path": str(tmp_path / name)})


@pytest.mark.parametrize("description", ["Audio", "Video", "Pdf"])
def test_columns_that_other_libraries_would_decode_are_refused(description: str, tmp_path: Path) -> None:
    path = bombs.image_table(tmp_path / "a.parquet", {"bytes": b"x", "path": None}, description)
    refused(path, rf"^data\.path=.*: image holds {description}.*; allowed is columns of text, numbers and images$")


def test_a_structure_without_a_description_is_no_image_and_no_file_is_opened(tmp_path: Path) -> None:
    path = rows(tmp_path / "a.parquet", image=[{"bytes": None, "path": "/etc/hostname"}] * 40, label=TEXTS["label"])
    refused(path, "image holds names of other files; allowed is images inside of the file")


@pytest.mark.slow
@pytest.mark.parametrize("room", [10**9, 100], ids=["all parts fit", "no part fits"])
def test_no_damage_of_a_parquet_files_footer_ends_the_process(
    room: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """pyarrow ends the process, without an exception, when it is asked for the sizes in some damaged footers."""
    monkeypatch.setattr(read_settings, "available_memory", lambda device: room)
    path = tmp_path / "data.parquet"
    rows = range(30)
    pa.parquet.write_table(pa.table({"text": [f"word {i}" for i in rows], "label": [i % 2 for i in rows]}), path)
    data = path.read_bytes()
    end = len(data) - 8
    begin = end - int.from_bytes(data[-8:-4], "little")

    def read_all() -> None:
        for position in range(begin, end) if room > 100 else (begin + 20, begin + 37, begin + 233):
            path.write_bytes(data[:position] + bytes([data[position] ^ 0x20]) + data[position + 1 :])
            with contextlib.suppress(InputError):
                loaded(path)
        os._exit(7)

    process = get_context("fork").Process(target=read_all)
    process.start()
    process.join(120)
    process.kill()
    assert process.exitcode == 7
