"""Rows to predict, read in batches, so that a file may be larger than the memory."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import datasets
import pandas as pd
import pyarrow as pa
import pyarrow.parquet
from omegaconf import OmegaConf

from flt.core.errors import InputError
from flt.core.files import expand_user
from flt.core.typed import typed
from flt.data import columns, dataset_sources
from flt.data.config import DataConfig
from flt.data.folders import data_files
from flt.data.image_folders import image_files, is_image_folder
from flt.data.images import undecoded
from flt.data.read_settings import ReadSettings
from flt.data.reading import check_file, nothing_in, readable
from flt.data.suffixes import SUFFIXES, suffix_of
from flt.data.tasks import OUTSIDE
from flt.data.used_columns import check_names
from flt.export.inputs import TaskInputs
from flt.inference.labelled import check_unused, data_settings
from flt.inference.row_files import OPENERS, tables_of
from flt.run.compose import compose_config

FILE_NAME = "file_name"
"""Column of the names of images in a folder."""
ROWS = ("where", "classes", "merge", "train_examples")
"""Settings that choose rows by their values. A prediction has all rows of a file or folder."""


@dataclasses.dataclass(frozen=True)
class Rows:
    """Rows to predict.

    Attributes:
        name: Name of the data, for lines.
        columns: Names of the columns.
        inputs: Names of the columns that the model reads.
        count: Number of rows. None: not known before they are read.
        batches: Function that yields the rows, at most as many at once as its argument says. It may be called again.
    """

    name: str
    columns: Sequence[str]
    inputs: tuple[str, ...]
    count: int | None
    batches: Callable[[int], Iterator[pa.Table]]


def open_rows(data: Any, known: TaskInputs, overrides: Sequence[str] = (), split: str | None = None) -> Rows:
    """Opens data for a prediction. A column of labels isn't needed, and is treated like any other column.

    Args:
        data: A file, a folder of files or images, a hub id, a name in conf/data, texts, pairs of texts, a data frame or
            a ``datasets.Dataset``.
        known: Columns that the model's training has read.
        overrides: Settings of the data, such as ``data.text=review``.
        split: Split of a hub data set, of one with a name, or of an npz file. None: test. Other files and folders are
            read whole.

    Raises:
        InputError: The data can't be read, or lack a column that the model needs.
    """
    if not isinstance(data, str | Path):
        return _in_memory(data, known)
    if not str(data):
        raise InputError.of("data", "''", "a file, a folder, a hub id or a name, such as data=new.csv")
    cfg = compose_config([f"data={data}", *overrides])
    path = cfg.data.get("path")
    place = expand_user(str(path))
    is_file = bool(path) and bool(suffix_of(str(path)))
    if cfg.data.name not in ("file", "hub") or not (is_file or place.exists()):
        return _of_split(cfg.data, known, split or "test")
    if split is not None and suffix_of(str(path)) != ".npz":
        raise InputError.of("split", split, "nothing: a file or folder is predicted whole")
    check_unused(overrides, ROWS)
    settings = data_settings(cfg.data, overrides, known)
    if is_file:
        return _with_rows(place, _of_file(place, settings, known, split))
    if is_image_folder(place):
        if known.kind != "image":
            raise InputError.of(
                "data", data, "a file or folder of texts", "the folder has images; the model reads texts"
            )
        return _of_images(place)
    files, _ = data_files(place)
    if not files:
        raise InputError.of("data", data, f"a folder of images, or of files: {', '.join(SUFFIXES)}")
    parts = [_of_file(file, settings, known) for file in files]
    counts = [part.count for part in parts]
    whole = sum(count for count in counts if count is not None) if None not in counts else None
    every = Rows(
        place.name, parts[0].columns, parts[0].inputs, whole,
        lambda size: itertools.chain.from_iterable(part.batches(size) for part in parts),
    )  # fmt: skip
    return _with_rows(place, every)


def _with_rows(path: Path, rows: Rows) -> Rows:
    """Returns the rows of a file or folder, which are refused if there are none, as for a training.

    Raises:
        InputError: There are none. It may be raised only when they are read.
    """
    if rows.count == 0:
        raise nothing_in(path)

    def batches(size: int) -> Iterator[pa.Table]:
        read = rows.batches(size)
        first = next(read, None)
        if first is None:
            raise nothing_in(path)
        yield from itertools.chain([first], read)

    return dataclasses.replace(rows, batches=batches)


def chosen_columns(names: Sequence[str], known: TaskInputs, settings: DataConfig | None = None) -> tuple[str, ...]:
    """Returns the columns that a model reads, out of the names of all columns.

    Raises:
        InputError: There is no such column, or the model reads another kind of input.
    """
    first, second = [*known.columns, None, None][:2]
    default = DataConfig(image=first) if known.kind == "image" else DataConfig(text=first, text_pair=second)
    kind, found = columns.input_names(settings or default, names)
    if (kind == "image") != (known.kind == "image"):
        allowed = "a column of images" if known.kind == "image" else "a column of texts, such as data.text=..."
        raise InputError.of("data", ", ".join(found), allowed, f"the model reads {known.kind}")
    return found


def _of_file(path: Path, settings: DataConfig, known: TaskInputs, split: str | None = None) -> Rows:
    suffix = suffix_of(path.name)
    check_file(path)

    def choose(names: Sequence[str]) -> list[str]:
        check_names(settings, names)
        chosen_columns(names, known, settings)
        return list(names)

    how = ReadSettings(choose, None, settings.encoding, settings.delimiter, settings.quote, only=split or "")
    opener = OPENERS[suffix]
    with readable(path):
        names, count, _ = opener(path, how, 1)
    inputs = chosen_columns(names, known, settings)

    def batches(size: int) -> Iterator[pa.Table]:
        with readable(path):
            _, rows, found = opener(path, how, size)
            done = 0
            for table in found:
                if known.kind == "image":  # refuses names of other files, which only a folder may name
                    undecoded(datasets.Dataset(table.select(list(inputs))), path)
                for start in range(0, table.num_rows, size):
                    done += min(size, table.num_rows - start)
                    yield table.slice(start, size)
            if rows is not None and rows != done:
                why = f"it holds {rows} rows, and {done} were read"
                raise InputError.of("data", path, "a file whose rows can all be read", why)

    return Rows(path.name, names, inputs, count, batches)


def _of_images(folder: Path) -> Rows:
    """Lists the images of a folder and of its subfolders, in alphabetical order."""
    names = [name.as_posix() for name in image_files(folder)]
    features = datasets.Features({FILE_NAME: datasets.Value("string"), "image": datasets.Image(decode=False)})

    def batches(size: int) -> Iterator[pa.Table]:
        for start in range(0, len(names), size):
            part = names[start : start + size]
            places = [{"bytes": None, "path": str(folder / name)} for name in part]
            made = datasets.Dataset.from_dict({FILE_NAME: part, "image": places}, features=features)
            yield made.data.table

    return Rows(folder.name, [FILE_NAME], ("image",), len(names), batches)


def _of_split(section: Any, known: TaskInputs, split: str) -> Rows:
    """Reads a split of a hub data set or of one with a name, whose labels become names of classes."""
    settings: DataConfig = typed(DataConfig, section, "data")
    if settings.sets:
        used = settings.use or list(settings.sets)
        if len(used) != 1 or used[0] not in settings.sets:
            allowed = " or ".join(f"data.use=[{name}]" for name in settings.sets)
            why = "it consists of several data sets, of which one has to be named"
            raise InputError.of("data", settings.name, allowed, why)
        written: Any = OmegaConf.to_container(section)
        common = {key: value for key, value in written.items() if key not in OUTSIDE}
        settings = typed(DataConfig, OmegaConf.create({**common, **settings.sets[used[0]]}), "data")
    raw = dataset_sources.load(settings)
    if split not in raw.splits:
        raise InputError.of("split", split, list(raw.splits), "there is no such split")
    if (raw.kind == "image") != (known.kind == "image"):
        raise InputError.of("data", settings.name, f"data of the kind {known.kind}", f"they are {raw.kind}")
    rows = raw.splits[split]

    def batches(size: int) -> Iterator[pa.Table]:
        for table in tables_of(rows, size)[2]:
            labels = pa.array([raw.label_names[k] for k in table[raw.label].to_pylist()])
            yield table.set_column(table.column_names.index(raw.label), raw.label, labels)

    return Rows(settings.name, rows.column_names, raw.inputs, len(rows), batches)


def _in_memory(data: Any, known: TaskInputs) -> Rows:
    """Returns texts, pairs of texts, a data frame or a data set as rows."""
    if isinstance(data, pd.DataFrame):
        data = datasets.Dataset(pa.Table.from_pandas(data, preserve_index=False))
    elif not isinstance(data, datasets.Dataset):
        keys = known.columns or (("text", "text_pair") if known.kind == "pair" else ("text",))
        rows = [(one,) if isinstance(one, str) else one for one in data] if isinstance(data, Sequence) else [None]
        fits = all(
            isinstance(row, list | tuple) and len(row) == len(keys) and all(isinstance(one, str) for one in row)
            for row in rows
        )
        if not fits or not rows or known.kind == "image":
            allowed = "a file, a folder, a data frame, a datasets.Dataset, or a list of texts or pairs of texts"
            raise InputError.of("data", type(data).__name__, allowed)
        data = datasets.Dataset.from_dict(dict(zip(keys, map(list, zip(*rows, strict=True)), strict=True)))
    inputs = chosen_columns(data.column_names, known)
    return Rows("the data", data.column_names, inputs, len(data), lambda size: tables_of(data, size)[2])
