"""Labels and other properties of the examples of a user's data set, and the names of its classes."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence, Set
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import ConcatDataset, Subset

from flt.core.errors import InputError
from flt.data.clients import check_order

SINGLE = "a column of single values"
CONTAINERS = (Tensor, np.ndarray, Mapping, Set, list, tuple)
"""Types of values that consist of several. A tensor or array with one number has become this number before."""


def column_values(dataset: Any, by: str, key: str = "by") -> NDArray:
    """Returns one value of each example, shape (n,).

    A column of a ``datasets.Dataset`` is read as it is stored. A format or transform of the data set, which may leave
    the column out, doesn't matter. Of any other data set, every example is read.

    Args:
        dataset: Map-style data set.
        by: Name of the column. If items are (input, label), ``"label"`` stands for their second element.
        key: Name of the argument that names the column, for errors.

    Raises:
        InputError: There is no such column, values are missing, an example has several values, or the values are of
            different types.

    Example:
        >>> column_values([("a", 1), ("b", 0)], "label")
        array([1, 0])
    """
    return _array(by, [_plain(value) for value in _values(dataset, by, key)], key)


def class_names(dataset: Any, label: str | None) -> tuple[str, ...]:
    """Returns the names of the classes of a data set, in the order of their numbers; empty if it has no names.

    The names are those of the column's ``datasets.ClassLabel``, or the data set's attribute ``classes``, as in the data
    sets of torchvision.

    Args:
        dataset: Map-style data set.
        label: Name of the column of labels, or of lists of labels. The usual name ``"label"`` stands for ``"labels"``,
            too.

    Raises:
        InputError: Joined data sets have the same classes in another order.
    """
    if isinstance(dataset, Subset):
        return class_names(dataset.dataset, label)
    if isinstance(dataset, ConcatDataset):
        first, *others = dict.fromkeys(class_names(part, label) for part in dataset.datasets)
        for other in others:
            check_order("dataset", first, other)
        return () if others else first
    features = (getattr(dataset, "features", None) or {}) if _is_table(dataset) else {}
    feature = features.get("labels" if label == "label" and label not in features else label)
    while feature is not None and not hasattr(feature, "names"):
        feature = getattr(feature, "feature", None)
    names = getattr(dataset, "classes", None) if feature is None else feature.names
    if not isinstance(names, list | tuple) or not all(isinstance(name, str) for name in names):
        return ()
    if len(set(names)) < len(names):  # the class of each example, perhaps
        return ()
    return tuple(names)


def _is_table(dataset: Any) -> bool:
    """Returns whether a data set is a ``datasets.Dataset``. That library isn't imported, which would take a second."""
    return hasattr(dataset, "column_names") and hasattr(dataset, "with_format")


def _values(dataset: Any, by: str, key: str) -> list[Any]:
    if isinstance(dataset, ConcatDataset):
        return [value for part in dataset.datasets for value in _values(part, by, key)]
    table = _table(dataset)
    if table is None:
        return [_value(dataset[i], by, key) for i in range(len(dataset))]
    if by not in table.column_names:
        raise InputError.of(key, by, table.column_names, "there is no such column")
    return table.with_format("arrow", columns=[by])[:][by].to_pylist()


def _table(dataset: Any) -> Any:
    """Returns the ``datasets.Dataset`` that a data set is, or is a subset of; None if there is none."""
    if isinstance(dataset, Subset):
        inner = _table(dataset.dataset)
        return None if inner is None else inner.select(dataset.indices)
    return dataset if _is_table(dataset) else None


def _value(item: Any, by: str, key: str) -> Any:
    """Returns the value of one example: a dict, named tuple or instance of a dataclass, or (input, label)."""
    fields = getattr(item, "_fields", ())
    if dataclasses.is_dataclass(item):
        fields = tuple(field.name for field in dataclasses.fields(item))
    if isinstance(item, Mapping):
        if by not in item:
            raise InputError.of(key, by, sorted(map(str, item)), "there is no such key")
        return item[by]
    if by in fields:
        return getattr(item, by)
    if fields and (by != "label" or not isinstance(item, tuple)):
        raise InputError.of(key, by, fields, "there is no such field")
    if by != "label":
        raise InputError.of(key, by, "label, for a data set of (input, label)")
    allowed = f"a data set of (input, label) or of dicts; or {key}=None, which needs no labels"
    if not isinstance(item, tuple | list) or len(item) < 2:  # the second character of a text is no label
        raise InputError.of(key, by, allowed, f"an example is of type {type(item).__name__}")
    if len(item) > 2 and not _is_number(item[1]):
        raise InputError.of(key, by, allowed, f"an example has {len(item)} parts")
    return item[1]


def _is_number(value: Any) -> bool:
    return isinstance(_plain(value), bool | int | float)


def _plain(value: Any) -> Any:
    """Returns the only number of a tensor or array as a number of Python. All other values stay."""
    if isinstance(value, Tensor) and value.numel() == 1:
        return value.item()
    if isinstance(value, np.ndarray | np.number | np.bool_) and value.size == 1:
        return value.item()
    return value


def _array(by: str, values: Sequence[Any], key: str) -> NDArray:
    """Returns single values as an array. They must be of one type, because NumPy would merge values such as 1 and "1".

    Raises:
        InputError: A value is missing, consists of several or has another type than the others, or there is no order.
    """
    several = next((value for value in values if isinstance(value, CONTAINERS)), None)
    if several is not None:
        shape = f" of shape {tuple(several.shape)}" if isinstance(several, Tensor | np.ndarray) else ""
        why = f"an example has a {type(several).__name__}{shape}, and {key}=None needs no single values"
        raise InputError.of(key, by, SINGLE, why)
    if missing := sum(value is None or (isinstance(value, float) and math.isnan(value)) for value in values):
        raise InputError.of(key, by, "a value for every example", f"{missing} values are missing")
    kinds = sorted({_kind(value) for value in values})
    if len(kinds) > 1:
        raise InputError.of(key, by, "values of one type", f"there are {' and '.join(kinds)}")
    found = np.asarray(values)
    try:
        np.unique(found[:0] if found.dtype.kind in "biufUSMm" else found)  # objects may have no order
    except TypeError:
        raise InputError.of(key, by, SINGLE, f"values of type {kinds[0]} have no order") from None
    return found


def _kind(value: Any) -> str:
    """Returns the type of a value. Integers and fractions are numbers, and True and False are not."""
    if isinstance(value, bool):
        return "booleans"
    return "numbers" if isinstance(value, int | float) else "texts" if isinstance(value, str) else type(value).__name__
