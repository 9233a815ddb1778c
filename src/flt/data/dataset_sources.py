"""Loading of a data set as splits with int64 labels in 0..K-1.

The source is a file, the Hugging Face hub, or the handwritten digits in scikit-learn.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import datasets
import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from flt.core.errors import InputError
from flt.core.typed import first_line
from flt.data import columns, held_out, reading, templates
from flt.data.classes import Splits, merge, relabel
from flt.data.columns import Kind
from flt.data.config import DataConfig
from flt.data.contents import contents, named
from flt.data.digits import digits_splits
from flt.data.images import with_places
from flt.data.random_splits import stratified_order
from flt.data.read_settings import ReadSettings
from flt.data.templates import Template

TESTS = ("test", "validation")
"""Allowed values of ``data.test_split``."""


_log = logging.getLogger(__name__)
ONE_CLASS = "flt.class"
"""Name of the label column that is added to data without labels. All rows get the same class."""


@dataclass(frozen=True)
class RawData:
    """Data set before its inputs are encoded as tensors.

    Attributes:
        splits: Name of a split -> examples with all columns of the source. The split train always exists. The splits
            validation and test may be missing.
        kind: Kind of the inputs.
        inputs: Names of the input columns. A causal model has all columns of the prompts, a pair of texts has two
            columns, and the other kinds have one column.
        label: Column of the labels, int64 in 0..len(label_names)-1.
        label_names: Name of each class.
        response: Column of the response; empty except for a causal model.
        templates: Templates of the prompts; empty except for a causal model.
    """

    splits: dict[str, datasets.Dataset]
    kind: Kind
    inputs: tuple[str, ...]
    label: str
    label_names: tuple[str, ...]
    response: str = ""
    templates: tuple[Template, ...] = ()

    def values(self, split: str, column: str) -> NDArray:
        """Returns the values of a column of a split, such as the labels, shape (n,)."""
        return np.asarray(self.splits[split][column][:])


def load(cfg: DataConfig, seed: int = 0, only: str | None = None) -> RawData:
    """Loads a data set and converts it into a common form.

    A split named dev or valid is used as the validation split. A split named train_dev is used as the validation
    split if no other split serves as one. A validation or test split with hidden labels (all below 0) is removed.

    A missing validation or test split is drawn from train before the classes are merged (``cfg.merge``), and is
    stratified by the unmerged classes. Two data sets that merge the classes of one source differently therefore have
    the same rows in these splits.

    Args:
        cfg: Settings of the data set.
        seed: Seed for drawing splits from train, and for drawing the sample of train (``cfg.train_examples``).
        only: Name of the single split that is loaded, as train, see :func:`flt.data.reading.read`. No split is drawn
            from it, and it may have a single class. None: all splits are loaded.

    Returns:
        The splits, the names of the input columns, and the classes.

    Raises:
        InputError: The data can't be read, are empty or lack a column, or the labels aren't classes.

    Example:
        >>> raw = load(DataConfig(classes=[5, 6, 7, 8, 9], test=0.2))
        >>> raw.kind, raw.inputs, raw.label_names
        ('image', ('image',), ('5', '6', '7', '8', '9'))
        >>> {name: len(split) for name, split in raw.splits.items()}
        {'train': 627, 'validation': 90, 'test': 179}
    """
    _check_numbers(cfg)
    own = cfg.name == "digits" and cfg.path is None
    splits, name, how = (digits_splits(), "", ReadSettings()) if own else reading.read(cfg, only)
    features = splits["train"].features
    names, prompts = list(features), templates.choose(cfg, features) if cfg.response is not None else ()
    if prompts:
        kind: Kind = "causal"
        inputs = tuple(dict.fromkeys(name for template in prompts for name in template.columns))
        splits, label = _with_class(cfg, splits, {*inputs, cfg.response})
    else:
        kind, inputs = columns.choose_inputs(cfg, features)
        label = columns.choose_column("label", cfg.label, columns.LABELS, names)
    if cfg.test_path is not None:
        if "test" in splits:
            how.note("its test split not used, because of data.test_path")
        splits["test"] = _own_test(cfg, splits["train"], (*inputs, *([cfg.response] if prompts else [])), label)
    if kind == "image":
        splits = {name: with_places(split, inputs[0], name) for name, split in splits.items()}
    _check_columns(cfg, splits, label, names)
    least, whole = 1 if prompts or only is not None else 2, splits
    splits, label_names = relabel(_rows(splits, cfg.where), label, cfg.label_name, cfg.classes, least)
    if cfg.test_path is not None:
        _check_test(cfg, splits, label, label_names)
    for split in whole:
        if split not in splits:
            how.note(f"{split} not used, because its labels are hidden")
    if name:
        texts = [] if kind == "image" else list(dict.fromkeys([*inputs, *([cfg.response] if cfg.response else [])]))
        labelled = label != ONE_CLASS
        if absent := sorted(set(range(len(label_names))) - set(splits["train"][label][:])):
            how.note(f"train without {named([label_names[k] for k in absent])}")
        _log.info(contents(name, whole, how, texts, label if labelled else "", label_names if labelled else ()))
    if cfg.test_split in splits and cfg.test_path is None:
        splits["test"] = splits.pop(cfg.test_split)
    splits = splits if only is not None else _hold_out(splits, label, cfg, seed)
    splits, label_names = merge(splits, label, label_names, cfg.merge)
    splits = _capped(splits, label, cfg.train_examples, seed)
    return RawData(splits, kind, inputs, label, label_names, cfg.response or "", prompts)


def _check_columns(cfg: DataConfig, splits: Splits, label: str, names: Sequence[str]) -> None:
    """Checks that the columns that the settings name are there, and that their values can divide the examples.

    Args:
        cfg: Settings of the data set.
        splits: Splits of the data set.
        label: Name of the label column.
        names: Names of all columns.

    Raises:
        InputError: A column is missing, or has values of another type.
    """
    for key, column in (("column", cfg.column), ("label_name", cfg.label_name)):
        if column is not None:
            columns.choose_column(key, column, (), names)
    for key, column in (("label", label), ("column", cfg.column), *((f"where.{name}", name) for name in cfg.where)):
        for split in splits.values() if column in names else ():
            columns.check_property(key, split.data.column(column))


def _with_class(cfg: DataConfig, splits: Splits, taken: set[str | None]) -> tuple[Splits, str]:
    """Chooses the label column for a causal model. If there is none, adds a column with the same class for all rows.

    Columns in ``taken``, which are the inputs and the response, can't be the label column.
    """
    free = [name for name in splits["train"].column_names if name not in taken]
    if cfg.label is not None or set(free) & set(columns.LABELS):
        return splits, columns.choose_column("label", cfg.label, columns.LABELS, free)
    return {name: split.add_column(ONE_CLASS, ["all"] * len(split)) for name, split in splits.items()}, ONE_CLASS


def _own_test(cfg: DataConfig, train: datasets.Dataset, inputs: Sequence[str | None], label: str) -> datasets.Dataset:
    """Reads the split test of ``data.test_path``, and compares the types of its columns with those of train.

    Raises:
        InputError: It can't be read, or a column that is used is missing or holds something else.
    """
    names = [*inputs, *([label] if label != ONE_CLASS else []), cfg.label_name, *cfg.where]
    wanted = list(dict.fromkeys(name for name in names if name is not None))
    if cfg.label_name is None:
        wanted += [name for name in columns.LABEL_NAMES if name in train.column_names and name not in wanted][:1]
    test = _with_numbers(cfg, train, reading.read_test(cfg, wanted, _source(cfg)), label)
    for name in wanted:
        kinds = [columns.content(split.features[name]) for split in (train, test)]
        if kinds[0] != kinds[1]:
            why = f"its column {name} holds {kinds[1]}"
            raise InputError.of("data.test_path", cfg.test_path, f"{kinds[0]}, as in {_source(cfg)}", why)
    return test.add_column(ONE_CLASS, ["all"] * len(test)) if label == ONE_CLASS else test


def _with_numbers(cfg: DataConfig, train: datasets.Dataset, test: datasets.Dataset, label: str) -> datasets.Dataset:
    """Returns a test split whose names of classes are the numbers that train's ClassLabel has for them, if it has one.

    Raises:
        InputError: A class isn't one of train's.
    """
    feature = train.features.get(label)
    if not isinstance(feature, datasets.ClassLabel) or isinstance(test.features[label], datasets.ClassLabel):
        return test
    try:
        return test.cast_column(label, feature)
    except (ValueError, pa.ArrowException) as error:
        allowed = f"the classes of {_source(cfg)}: {', '.join(feature.names)}"
        raise InputError.of("data.test_path", cfg.test_path, allowed, first_line(error)) from None


def _check_test(cfg: DataConfig, splits: Splits, label: str, label_names: Sequence[str]) -> None:
    """Checks that a test split of its own is there, and has no class that train lacks.

    Raises:
        InputError: Its labels are hidden, all its rows were left out, or it has further classes.
    """
    if "test" not in splits or not len(splits["test"]):
        allowed = f"rows with the classes of {_source(cfg)}"
        raise InputError.of("data.test_path", cfg.test_path, allowed, "no row is left, or its labels are hidden")
    train, test = (set(splits[name][label][:]) for name in ("train", "test"))
    if further := sorted(test - train):
        allowed = f"the classes of {_source(cfg)}: {', '.join(label_names[k] for k in sorted(train))}"
        raise InputError.of("data.test_path", cfg.test_path, allowed, f"it has the class {label_names[further[0]]}")


def _source(cfg: DataConfig) -> str:
    return str(cfg.path or cfg.name)


def _check_numbers(cfg: DataConfig) -> None:
    if cfg.train_examples is not None and cfg.train_examples < 1:
        raise InputError.of("data.train_examples", cfg.train_examples, "an integer >= 1, or null")
    for key, share in (("data.validation", cfg.validation), ("data.test", cfg.test)):
        if not 0 <= share < 1:
            raise InputError.of(key, share, "a share in [0, 1)")
    if cfg.validation + cfg.test >= 1:
        raise InputError.of("data.validation", cfg.validation, f"less than 1 together with data.test={cfg.test}")
    if cfg.test_split not in TESTS:
        raise InputError.of("data.test_split", cfg.test_split, TESTS)


def _rows(splits: Splits, where: Mapping[str, Sequence[str]]) -> Splits:
    """Selects the rows that have an allowed value in every column of `where`. Removes splits without such rows."""
    for column, wanted in where.items():
        columns.choose_column(f"where.{column}", column, (), splits["train"].column_names)
        values = {name: np.asarray(split[column][:]).astype(str) for name, split in splits.items()}
        known = np.unique(values["train"])
        if not wanted or not set(wanted) <= set(known):
            raise InputError.of(f"data.where.{column}", list(wanted), known, "values that rows of train have")
        kept = {name: np.flatnonzero(np.isin(found, wanted)) for name, found in values.items()}
        splits = {name: splits[name].select(rows) for name, rows in kept.items() if len(rows)}
    return splits


def _capped(splits: Splits, label: str, most: int | None, seed: int) -> Splits:
    """Reduces train to a stratified sample of at most ``most`` examples, in the order of the source.

    If ``most`` is None, nothing changes.
    """
    train = splits["train"]
    if most is None or len(train) <= most:
        return splits
    order = stratified_order(train[label][:], (seed, most))
    return {**splits, "train": train.select(np.sort(order[:most]))}


def _hold_out(splits: Splits, label: str, cfg: DataConfig, seed: int) -> Splits:
    """Creates the validation and test splits that the source lacks. Each is a share of the original train split.

    Raises:
        InputError: There are too few examples for another split.
    """
    train = splits["train"]
    labels = np.asarray(train[label][:])
    rest, size = np.arange(len(labels)), len(labels)
    held: dict[str, datasets.Dataset] = {}
    for stream, (name, share) in enumerate((("validation", cfg.validation), ("test", cfg.test))):
        if share and name not in splits:
            rest, cut = held_out.split(rest, labels, share * size / len(rest), seed=(seed, stream))
            if not len(cut):
                why = f"{size} examples are too few for train and the other splits"
                raise InputError.of(f"data.{name}", share, "0, or more examples", why)
            held[name] = train.select(cut)
    return {**splits, **held, "train": train.select(rest)} if held else splits
