"""Conversion of labels to int64 in 0..K-1, and the names of the classes.

The labels of a source are texts, integers or a ``datasets.ClassLabel``.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from fnmatch import fnmatchcase

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from flt.core.errors import InputError
from flt.data.columns import LABEL_NAMES, choose_column

Splits = dict[str, datasets.Dataset]
Codes = dict[str, NDArray[np.int64]]
"""Split -> labels as integers, shape (n,), before they are renumbered to 0..K-1."""


def relabel(
    splits: Splits, label: str, label_name: str | None = None, classes: Sequence[int] | None = None, least: int = 2
) -> tuple[Splits, tuple[str, ...]]:
    """Converts the labels to int64 in 0..K-1, and keeps only the examples of the chosen classes.

    A validation or test split is removed if its labels are hidden, which means that all of them are below 0, and no
    chosen class is.

    Args:
        splits: Splits of the data, including train.
        label: Column of the labels. Its type is text, integer or ClassLabel.
        label_name: Column with the names of the classes if the labels are integers. If None, a column called label_name
            or label_text is used if there is one.
        classes: Label values to keep. They are renumbered from 0 in this order. If None, all label values are kept, in
            sorted order. Values below 0 are classes only if they are chosen here.
        least: Smallest allowed number of classes.

    Returns:
        The splits with the new labels, and the name of each class.

    Raises:
        InputError: A label is missing, the labels aren't classes, or a chosen class doesn't exist.

    Example:
        >>> pets = datasets.Dataset.from_dict({"text": ["miau", "wau", "miau"], "label": ["cat", "dog", "cat"]})
        >>> splits, names = relabel({"train": pets}, "label")
        >>> splits["train"]["label"][:], names
        ([0, 1, 0], ('cat', 'dog'))
    """
    arrays = {name: _column(split, label) for name, split in splits.items()}
    codes, names = _codes(_with_same_numbers(splits, arrays, label), label, splits["train"].features[label])
    least_value = min([0, *(classes or [])])
    codes = {name: values for name, values in codes.items() if name == "train" or (values >= least_value).any()}
    booleans = all(pa.types.is_boolean(column.type) for column in arrays.values())
    names = names or _names(splits, codes, label_name, bool if booleans else int, least_value)
    order = _order(codes, names, label, classes, least)
    kept = {name: _renumbered(splits[name], label, values, order) for name, values in codes.items()}
    if not len(kept["train"]):
        raise InputError.of("data.classes", order, "classes that train has examples of")
    return kept, tuple(names[value] for value in order)


def merge(
    splits: Splits, label: str, label_names: tuple[str, ...], groups: Mapping[str, Sequence[str]]
) -> tuple[Splits, tuple[str, ...]]:
    """Merges each group of classes into one class. Examples whose class is in no group are left out.

    Args:
        splits: Splits of the data, with labels int64 in 0..K-1.
        label: Column of the labels.
        label_names: Name of each class.
        groups: Name of the new class -> patterns of the classes to merge, see :func:`matching`. If empty, nothing
            changes.

    Returns:
        The splits with the new labels, and the name of each new class.

    Raises:
        InputError: A pattern matches no class, a class is in two groups, or there is only one group.
    """
    if not groups:
        return splits, label_names
    if len(groups) < 2:
        raise InputError.of("data.merge", list(groups), "two classes or more")
    lookup = np.full(len(label_names), -1)
    for new, (name, patterns) in enumerate(groups.items()):
        classes = matching(f"data.merge.{name}", patterns, label_names)
        if taken := [k for k in classes if lookup[k] >= 0]:
            raise InputError.of(f"data.merge.{name}", label_names[taken[0]], "classes of no other group")
        lookup[classes] = new
    merged = {name: _relabelled(split, label, lookup[np.asarray(split[label][:])]) for name, split in splits.items()}
    return merged, tuple(groups)


def matching(key: str, patterns: Sequence[str], label_names: Sequence[str]) -> list[int]:
    """Returns the numbers of the classes that match any of the patterns, in ascending order.

    A pattern is the name of a class, the number of a class, or a wildcard such as `comp.*`. If a pattern is equal to
    the name of a class, the pattern matches only this class.

    Args:
        key: Config key of the patterns, used in the text of an error.
        patterns: Names, numbers or wildcards.
        label_names: Name of each class.

    Raises:
        InputError: A pattern matches no class, or there is no pattern.

    Example:
        >>> matching("data.tasks.sci", ["sci.*", "0"], ["rec.autos", "sci.med", "sci.space"])
        [0, 1, 2]
    """
    found: set[int] = set()
    for pattern in map(str, patterns):
        exact = {k for k, name in enumerate(label_names) if pattern == name}
        matches = exact or {k for k, name in enumerate(label_names) if fnmatchcase(name, pattern) or pattern == str(k)}
        if not matches:
            raise InputError.of(key, pattern, label_names, "no class has this name")
        found |= matches
    if not found:
        raise InputError.of(key, list(patterns), "at least one class")
    return sorted(found)


def _column(split: datasets.Dataset, label: str) -> pa.ChunkedArray:
    """Returns the column of the labels.

    Raises:
        InputError: A label is missing or is an empty text.
    """
    column = split.select_columns(label).with_format("arrow")[:][label]
    missing = column.null_count
    if _is_text(column):
        missing += pc.sum(pc.equal(column, "")).as_py() or 0
    if missing:
        raise InputError.of("data.label", label, "a class for every example", f"{missing} labels are missing")
    return column


def _is_text(column: pa.ChunkedArray) -> bool:
    return pa.types.is_string(column.type) or pa.types.is_large_string(column.type)


def _codes(arrays: Mapping[str, pa.ChunkedArray], label: str, feature: object) -> tuple[Codes, dict[int, str]]:
    """Returns the labels as integers, and the name of each integer.

    If the labels in the data are integers without names, the second dict is empty.
    """
    if all(map(_is_text, arrays.values())):
        texts = {split: np.asarray(column.to_pylist()) for split, column in arrays.items()}
        names = np.unique(np.concatenate(list(texts.values())))
        return {split: np.searchsorted(names, values) for split, values in texts.items()}, _numbered(names.tolist())
    if any(map(_is_text, arrays.values())):
        why = ", ".join(f"{split} has {'texts' if _is_text(c) else c.type}" for split, c in arrays.items())
        raise InputError.of("data.label", label, "labels of one type in all splits", why)
    for kind in (column.type for column in arrays.values()):
        if not pa.types.is_integer(kind) and not pa.types.is_boolean(kind):
            raise InputError.of("data.label", label, "a column of integers or class names", f"it holds {kind}")
    codes = {split: column.to_numpy().astype(np.int64) for split, column in arrays.items()}
    return codes, _numbered(feature.names) if isinstance(feature, datasets.ClassLabel) else {}


def _with_same_numbers(splits: Splits, arrays: Mapping[str, pa.ChunkedArray], label: str) -> dict[str, pa.ChunkedArray]:
    """Returns the labels of all splits with the numbers that train has for the names of the classes.

    Raises:
        InputError: A split has examples of a class that train has no number for.
    """
    features = {split: rows.features[label] for split, rows in splits.items()}
    train, found = features["train"], dict(arrays)
    for split, feature in features.items():
        if not all(isinstance(one, datasets.ClassLabel) for one in (train, feature)) or feature.names == train.names:
            continue
        numbers = {name: number for number, name in enumerate(train.names)}
        values = np.maximum(arrays[split].to_numpy(), -1)  # below 0, labels are hidden
        present = {feature.names[number] for number in np.unique(values[values >= 0])}
        if further := sorted(present - set(numbers)):
            raise InputError.of("data.label", label, train.names, f"{split} has the class {further[0]}, train doesn't")
        new = np.array([-1, *(numbers.get(name, -1) for name in feature.names)])
        found[split] = pa.chunked_array([new[values + 1]])
    return found


def _numbered(names: Sequence[str]) -> dict[int, str]:
    return dict(enumerate(names))


def _names(splits: Splits, codes: Codes, label_name: str | None, kind: type[int], least: int) -> dict[int, str]:
    """Returns the name of each integer class, taken from the column of class names.

    If there is no such column, the labels themselves are the names, such as 5 or True. Integers below ``least`` aren't
    classes. The type of the labels is ``kind``, int or bool.
    """
    present = splits["train"].column_names
    if label_name is None and not set(LABEL_NAMES) & set(present):
        present_codes = np.unique(np.concatenate(list(codes.values())))
        return {int(value): str(kind(value)) for value in present_codes if value >= least}
    column = choose_column("label_name", label_name, LABEL_NAMES, present)
    found = {split: splits[split][column][:] for split in codes}
    other = {type(name).__name__ for given in found.values() for name in given} - {"str", "int", "bool"}
    if other:
        raise InputError.of("data.label_name", column, "a column of texts or integers", f"it holds {min(other)}")
    pairs = {pair for split, values in codes.items() for pair in zip(values.tolist(), found[split], strict=True)}
    names = {value: str(name) for value, name in sorted(pairs) if value >= least}
    if len(names) < sum(value >= least for value, _ in pairs):
        raise InputError.of("data.label_name", column, "one name for each class", "a class has two names")
    return names


def _order(codes: Codes, names: Mapping[int, str], label: str, classes: Sequence[int] | None, least: int) -> list[int]:
    """Returns the label values to keep, in their new order."""
    order = sorted(names) if classes is None else list(classes)
    if len(set(order)) < len(order) or not set(order) <= set(names):
        raise InputError.of("data.classes", order, sorted(names), "different label values, each in the data")
    if classes is None and any((values < 0).any() for values in codes.values()):
        values = np.unique(np.concatenate(list(codes.values())))
        allowed = f"labels >= 0, or data.classes=[...] with those to keep, out of {', '.join(map(str, values[:20]))}"
        raise InputError.of("data.label", label, allowed, "there are labels below 0")
    if len(order) < least:
        raise InputError.of("data.label", label, "two classes or more", f"there are {len(order)}")
    return order


def _renumbered(split: datasets.Dataset, label: str, values: NDArray[np.int64], order: list[int]) -> datasets.Dataset:
    """Replaces each label of a split by its position in `order`. Rows whose label isn't in `order` are left out."""
    new = np.full(len(values), -1)
    for number, value in enumerate(order):
        new[values == value] = number
    return _relabelled(split, label, new)


@contextlib.contextmanager
def _without_bars() -> Iterator[None]:
    """Hides the progress bar that the library datasets shows while it rewrites rows."""
    shown = not datasets.are_progress_bars_disabled()
    datasets.disable_progress_bars()
    try:
        yield
    finally:
        if shown:
            datasets.enable_progress_bars()


def _relabelled(split: datasets.Dataset, label: str, new: NDArray[np.int64]) -> datasets.Dataset:
    """Replaces the labels of a split, and leaves out rows whose new label is below 0. The data aren't copied."""
    # The column is added before rows are selected: after a selection, add_column would rewrite the whole table.
    with _without_bars():
        split = split.remove_columns(label).add_column(label, new)
    return split.select(np.flatnonzero(new >= 0)) if (new < 0).any() else split
