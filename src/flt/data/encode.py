"""Encoding of raw columns as tensors, and division of the classes into tasks."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import datasets
import numpy as np
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from flt.core.errors import InputError
from flt.data import stores, tokens
from flt.data.classes import matching
from flt.data.dataset_sources import RawData
from flt.data.examples import Examples
from flt.data.image_modes import as_array
from flt.data.images import decode, naming_place
from flt.data.random_splits import Positions
from flt.data.stores import ImageStore, Prepare

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

BYTE = 255
"""Largest value of 8 bits."""
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


def encode_images(
    dataset: datasets.Dataset,
    raw: RawData,
    image_size: int | None,
    channels: int | None,
    prepare: Prepare | None = None,
) -> Examples:
    """Loads the images of a split into memory.

    Images with integer values are stored as uint8. An image that is larger than the backbone's input is scaled down
    here, once. All other changes of size and channels are made whenever an example is read. The pixels of an example
    are in [0, 1]. `Collate` normalises them by the mean and standard deviation of the backbone's training data.

    Integers of 16 bits, in arrays and in encoded images, are divided by 65535, and floats are in [0, 1]. If arrays of
    16 bits have no value above 255 in any split, they count as integers of 8 bits.

    Args:
        dataset: The split, one of raw.splits.
        raw: Data set with the name of the image column.
        image_size: Side of the backbone's input in pixels. If None, images keep their size.
        channels: Number of channels of the backbone's input. A grey image's channel is repeated to this number. If
            None, images keep their channels.
        prepare: Function of the model's image processor that gives an image the size of the backbone's input. If None,
            an image is scaled to a square of the side image_size.

    Raises:
        InputError: The column contains no images, the images differ in size and nothing says what size the backbone
            takes, the images are coloured and the backbone takes grey images, or images of 16 bits hold 8 bits.
    """
    images = _tensors(dataset, raw, channels)
    if prepare is not None:
        pixels, late = stores.prepared(images, prepare)
        return Examples(ImageStore(pixels, None, channels, late), dataset[raw.label][:])
    pixels = stores.stack([stores.shrink(image, image_size) for image in images], image_size)
    return Examples(ImageStore(pixels, image_size, channels), dataset[raw.label][:])


def _tensors(dataset: datasets.Dataset, raw: RawData, channels: int | None) -> Iterator[Tensor]:
    """Yields the images of a split, (C, H, W), in uint8 or as float32 in [0, 1]."""
    name = raw.inputs[0]
    if isinstance(dataset.features[name], datasets.Image):
        encoded = column_of(dataset.cast_column(name, datasets.Image(decode=False)), name)
        found = _decoded(encoded)
    else:
        kind = _kind_of_sixteen_bits(raw)
        arrays = column_of(dataset.with_format("numpy"), name)
        found = (stores.to_tensor(array if kind is None else array.astype(kind)) for array in arrays)
    taken = "1" if channels == 1 else f"1 or {channels}"
    for image in found:
        if channels is not None and len(image) not in (1, channels):
            raise InputError.of("data.image", f"{len(image)} channels", f"{taken}, what the backbone takes")
        yield image


def _decoded(images: Iterator[Any]) -> Iterator[Tensor]:
    largest = -1
    for image in images:
        with naming_place(image):
            array = as_array(decode(image))
            tensor = stores.to_tensor(array)
        yield tensor
        if array.dtype == np.uint16:
            largest = max(largest, int(array.max()))
    if 0 <= largest <= BYTE:  # saved as 16 bits by mistake, or almost black: only their owner knows
        allowed = f"images of 8 bits, or of 16 bits with values above {BYTE}"
        raise InputError.of("data.image", f"16 bits, values up to {largest}", allowed)


def _kind_of_sixteen_bits(raw: RawData) -> type[np.unsignedinteger] | None:
    """Returns the type of what arrays of uint16 hold in all splits. Returns None if they are arrays of another type."""
    name = raw.inputs[0]
    feature: Any = raw.splits["train"].features[name]
    while hasattr(feature, "feature"):  # lists of lists
        feature = feature.feature
    if getattr(feature, "dtype", None) != "uint16":
        return None
    arrays = (array for split in raw.splits.values() for array in column_of(split.with_format("numpy"), name))
    return np.uint8 if all(np.max(array, initial=0) <= BYTE for array in arrays) else np.uint16


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
