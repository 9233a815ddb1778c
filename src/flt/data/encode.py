"""Encoding of raw columns as tensors, and division of the classes into tasks."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import datasets
import numpy as np
from numpy.typing import ArrayLike, NDArray

from flt.core.errors import InputError
from flt.data import stores, tokens
from flt.data.classes import matching
from flt.data.dataset_sources import RawData
from flt.data.examples import Examples
from flt.data.images import decode
from flt.data.random_splits import Positions
from flt.data.stores import ImageStore

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

BATCH = 1000
"""Number of rows that are read at once."""


def encode_text(
    dataset: datasets.Dataset,
    raw: RawData,
    tokenizer: PreTrainedTokenizerBase,
    max_length: int,
    name: str = "",
    limit: int = 20 * 10**9,
) -> Examples:
    """Tokenises and truncates the texts, or the pairs of texts, of a split. A missing text counts as empty.

    The tokens are kept in the cache on disk. The next call with the same texts and tokenizer reads them from the cache.

    Args:
        dataset: The split, one of raw.splits.
        raw: Data set with the names of the input columns.
        tokenizer: A tokenizer of transformers.
        max_length: Largest number of tokens per example, including special tokens.
        name: Name of the data in the cache.
        limit: Largest size of the cache in bytes.

    Raises:
        InputError: max_length is below 1, or the cache has too little space.
    """
    if max_length < 1:
        raise InputError.of("model.max_length", max_length, "an integer >= 1")

    def texts() -> Iterator[list[list[str | None]]]:
        return ([batch[column] for column in raw.inputs] for batch in batches(dataset, raw.inputs))

    return Examples(tokens.stored(texts, tokenizer, max_length, name, limit), dataset[raw.label][:])


def encode_images(dataset: datasets.Dataset, raw: RawData, image_size: int | None, channels: int | None) -> Examples:
    """Loads the images of a split into memory.

    Images with integer values are stored as uint8. An image that is larger than the backbone's input is scaled down
    here, once. All other changes of size and channels are made whenever an example is read. The pixels of an example
    are in [0, 1]. `Collate` normalises them by the mean and standard deviation of the backbone's training data.

    Args:
        dataset: The split, one of raw.splits.
        raw: Data set with the name of the image column.
        image_size: Side of the backbone's input in pixels. If None, images keep their size.
        channels: Number of channels of the backbone's input. A grey image's channel is repeated to this number. If
            None, images keep their channels.

    Raises:
        InputError: The column contains no images, the images differ in size and image_size is None, or the images are
            coloured and the backbone takes grey images.
    """
    if isinstance(dataset.features[raw.inputs[0]], datasets.Image):
        dataset = dataset.cast_column(raw.inputs[0], datasets.Image(decode=False))
        column: Iterator[Any] = map(decode, column_of(dataset, raw.inputs[0]))
    else:
        column = column_of(dataset.with_format("numpy"), raw.inputs[0])
    pixels = stores.stack([stores.shrink(stores.to_tensor(image), image_size) for image in column], image_size)
    taken = "1" if channels == 1 else f"1 or {channels}"
    if channels is not None and pixels.shape[1] not in (1, channels):
        raise InputError.of("data.image", f"{pixels.shape[1]} channels", f"{taken}, what the backbone takes")
    return Examples(ImageStore(pixels, image_size, channels), dataset[raw.label][:])


def tasks(
    labels: ArrayLike, label_names: Sequence[str], tasks_cfg: Mapping[str, Sequence[str]]
) -> dict[str, tuple[Positions, NDArray[np.int64]]]:
    """Divides examples into tasks by class. Examples whose class is in no task are left out.

    Args:
        labels: Class of each example, shape (n,).
        label_names: Name of each class.
        tasks_cfg: Task -> names, numbers or patterns of its classes, see :func:`flt.data.classes.matching`. If
            empty, all examples form one task called `all`.

    Returns:
        Task -> sorted positions of its examples, and the labels of these examples. Within a task, classes are
        renumbered from 0 and keep their order.

    Raises:
        InputError: A task has no classes or no examples, or a class belongs to two tasks.

    Example:
        >>> found = tasks([0, 1, 2, 1], ["rec.autos", "sci.med", "sci.space"], {"sci": ["sci.*"]})
        >>> [array.tolist() for array in found["sci"]]
        [[1, 2, 3], [0, 1, 0]]
    """
    labels = np.asarray(labels, dtype=np.int64)
    if not tasks_cfg:
        return {"all": (np.arange(len(labels)), labels)}
    taken: dict[int, str] = {}
    found = {}
    for task, patterns in tasks_cfg.items():
        classes = matching(f"data.tasks.{task}", patterns, label_names)
        if shared := [k for k in classes if k in taken]:
            name = label_names[shared[0]]
            raise InputError.of(f"data.tasks.{task}", name, "classes of no other task", f"also in {taken[shared[0]]}")
        taken |= dict.fromkeys(classes, task)
        positions = np.flatnonzero(np.isin(labels, classes))
        if not len(positions):
            raise InputError.of(f"data.tasks.{task}", list(patterns), "classes with examples")
        found[task] = (positions, np.searchsorted(classes, labels[positions]))
    return found


def column_of(dataset: datasets.Dataset, name: str) -> Iterator[Any]:
    """Yields the values of a column. Only some of the rows are in memory at a time."""
    return (value for batch in batches(dataset, [name]) for value in batch[name])


def batches(dataset: datasets.Dataset, columns: Sequence[str]) -> Iterator[dict]:
    """Yields some columns of a data set in batches of rows."""
    inputs = dataset.select_columns(list(columns))
    return (inputs[start : start + BATCH] for start in range(0, len(inputs), BATCH))
