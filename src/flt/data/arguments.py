"""Checks of the arguments of ``flt.partition`` and ``flt.fit``: types of data sets, integers and numbers."""

from __future__ import annotations

from collections.abc import Mapping
from numbers import Integral, Real
from typing import Any

import numpy as np
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from flt.core.errors import InputError

DATASET = "a data set with a length and positions, such as a datasets.Dataset, a torch Dataset or a list of examples"
TABLES = {
    "pandas": "datasets.Dataset.from_pandas",
    "polars": "datasets.Dataset.from_polars",
    "pyarrow": "datasets.Dataset",
}


def described(value: Any) -> str:
    """Returns a value that is short and plain as it is written in Python, and of any other value the name of its type.

    Example:
        >>> described("3"), described(None), described([1, 2]), described(int)
        ("'3'", 'None', 'list', 'the class int')
    """
    if isinstance(value, type):
        return f"the class {value.__name__}"
    return repr(value) if value is None or isinstance(value, bool | int | float | str) else type(value).__name__


def check_integer(key: str, value: Any, least: int) -> None:
    """Raises InputError unless a value is an integer that is large enough. True and False are no integers."""
    if isinstance(value, bool) or not isinstance(value, Integral) or int(value) < least:
        raise InputError.of(key, described(value), f"an integer >= {least}")


def check_number(key: str, value: Any) -> None:
    """Raises InputError unless a value is a number. True and False are no numbers."""
    if isinstance(value, bool) or not isinstance(value, Real):
        raise InputError.of(key, described(value), "a number")


def check_text(key: str, value: Any, allowed: str = "a text") -> None:
    """Raises InputError unless a value is a text."""
    if not isinstance(value, str):
        raise InputError.of(key, described(value), allowed)


def check_dataset(key: str, dataset: Any) -> None:
    """Checks that examples can be read from a data set by their positions.

    Args:
        key: Name of the argument.
        dataset: Value of the argument.

    Raises:
        InputError: The value is no map-style data set. The message says what to write instead.
    """
    package = type(dataset).__module__.partition(".")[0]
    allowed = DATASET
    if isinstance(dataset, DataLoader):
        allowed = "the data set of the loader, loader.dataset"
    elif hasattr(dataset, "train_dataloader"):
        allowed = "a data set, not a data module"
    elif isinstance(dataset, Mapping):
        tables = all(hasattr(part, "column_names") for part in dataset.values())
        splits = f"one of its splits, such as {key}[{next(iter(dataset), 'train')!r}]"
        allowed = splits if tables else f"{DATASET}; datasets.Dataset.from_dict makes one of columns"
    elif package in TABLES:
        allowed = f"datasets.{TABLES[package]}({key})"
    elif isinstance(dataset, tuple) and dataset and all(isinstance(part, Tensor | np.ndarray) for part in dataset):
        allowed = f"torch.utils.data.TensorDataset(*{key}), or a list of examples"
    elif isinstance(dataset, list) and any(isinstance(part, Dataset | DataLoader) for part in dataset):
        allowed = "one data set; torch.utils.data.ConcatDataset joins several"
    elif hasattr(dataset, "__iter__") and not _has_positions(dataset):
        allowed = f"{DATASET}; of data that can only be read in order, list({key}) makes one"
    elif _has_positions(dataset) and not isinstance(dataset, str | bytes | type):
        return
    raise InputError.of(key, described(dataset), allowed)


def _has_positions(dataset: Any) -> bool:
    """Returns whether a data set has a length, and examples at positions."""
    try:
        len(dataset)
    except (TypeError, NotImplementedError, AttributeError):
        return False
    return hasattr(dataset, "__getitem__") and not isinstance(dataset, Mapping)
