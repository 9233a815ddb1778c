"""From raw columns to tensors: encoded examples, and tasks among the classes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

import datasets
import numpy as np
from numpy.typing import ArrayLike, NDArray

from flt.core.errors import InputError
from flt.data import stores, tokens
from flt.data.classes import matching
from flt.data.examples import Examples
from flt.data.random_splits import Positions
from flt.data.sources import RawData
from flt.data.stores import ImageStore

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

BATCH = 1000  # rows read at once


def encode_text(
    dataset: datasets.Dataset,
    raw: RawData,
    tokenizer: PreTrainedTokenizerBase,
    max_length: int,
    name: str = "",
    limit: int = 20 * 10**9,
) -> Examples:
    """Tokenises a split's text or pairs, truncated to max_length; a missing text counts as an empty one.

    The tokens are kept in the cache on disk, where the next call with the same texts and tokenizer finds them.

    Args:
        dataset: One of raw.splits.
        raw: Says which columns.
        tokenizer: A tokenizer of transformers.
        max_length: Most tokens per example, the special ones included.
        name: What to call the data in the cache.
        limit: Bytes that the cache may hold.

    Raises:
        InputError: If max_length is below 1, or the cache has no room.
    """
    if max_length < 1:
        raise InputError.of("model.max_length", max_length, "an integer >= 1")

    def texts() -> Iterator[list[list[str | None]]]:
        return ([batch[column] for column in raw.inputs] for batch in batches(dataset, raw.inputs))

    return Examples(tokens.stored(texts, tokenizer, max_length, name, limit), dataset[raw.label][:])


def encode_images(dataset: datasets.Dataset, raw: RawData, image_size: int | None, channels: int | None) -> Examples:
    """Reads a split's images; each is brought to the backbone's size and channels when it is asked for.

    They are held as bytes where the source has bytes, and larger ones are scaled down once, here. Values are in [0, 1];
    `Collate` brings them to the mean and deviation that a backbone wants.

    Args:
        dataset: One of raw.splits.
        raw: Says which column.
        image_size: Side that the backbone wants, pixels; None keeps the images' own.
        channels: Channels that the backbone wants: grey images are repeated to 3; None keeps the images' own.

    Raises:
        InputError: If the column holds no images, they differ in size and image_size is None, or colour images meet a
            backbone for grey ones.
    """
    if not isinstance(dataset.features[raw.inputs[0]], datasets.Image):
        dataset = dataset.with_format("numpy")
    column = (image for batch in batches(dataset, raw.inputs) for image in batch[raw.inputs[0]])
    pixels = stores.stack([stores.shrink(stores.to_tensor(image), image_size) for image in column], image_size)
    taken = "1" if channels == 1 else f"1 or {channels}"
    if channels is not None and pixels.shape[1] not in (1, channels):
        raise InputError.of("data.image", f"{pixels.shape[1]} channels", f"{taken}, what the backbone takes")
    return Examples(ImageStore(pixels, image_size, channels), dataset[raw.label][:])


def tasks(
    labels: ArrayLike, label_names: Sequence[str], tasks_cfg: Mapping[str, Sequence[str]]
) -> dict[str, tuple[Positions, NDArray[np.int64]]]:
    """Splits examples into tasks by class; classes in no task are left out.

    Args:
        labels: Class of each example, (n,).
        label_names: Name of each class.
        tasks_cfg: Task -> class names, numbers, or patterns such as `comp.*`. A name goes before a number. Empty: one
            task, `all`.

    Returns:
        Task -> its positions, sorted, and their labels counted from 0 within the task, in the order of the classes.

    Raises:
        InputError: If a task has no class, no examples, or a class of another task.

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


def batches(dataset: datasets.Dataset, columns: Sequence[str]) -> Iterator[dict]:
    """Some columns, some rows at a time."""
    inputs = dataset.select_columns(list(columns))
    return (inputs[start : start + BATCH] for start in range(0, len(inputs), BATCH))
