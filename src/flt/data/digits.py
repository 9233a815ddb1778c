"""The handwritten digits in scikit-learn."""

from __future__ import annotations

import functools
from collections.abc import Sequence

import datasets
import numpy as np
from numpy.typing import NDArray
from sklearn.datasets import load_digits

from flt.core.errors import InputError


def digits(classes: Sequence[int]) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Loads the images of some classes from the handwritten digits in scikit-learn, without a download.

    Args:
        classes: Digits to keep. They get the labels 0, 1, ... in this order.

    Returns:
        Images (n, 1, 8, 8) in [0, 1] and labels (n,), in the order of the source.

    Raises:
        InputError: No class is given, a class is given twice, or a class isn't a digit.

    Example:
        >>> images, labels = digits([7, 3])
        >>> images.shape, labels[:4].tolist()
        ((362, 1, 8, 8), [1, 0, 1, 0])
    """
    if not classes or len(set(classes)) < len(classes) or not set(classes) <= set(range(10)):
        raise InputError.of("data.classes", list(classes), "different digits from 0 to 9")
    source = load_digits()
    lookup = np.full(10, -1)
    lookup[list(classes)] = np.arange(len(classes))
    labels = lookup[source.target]
    images = (source.images / 16).astype(np.float32)[:, None]  # (1797, 1, 8, 8); the source's grey levels are 0..16
    return images[labels >= 0], labels[labels >= 0]


@functools.cache
def digits_splits() -> dict[str, datasets.Dataset]:
    """Returns all digits as the only split ``train``, with the columns ``image`` (8, 8) and ``label``."""
    images, labels = digits(range(10))
    features = datasets.Features(
        image=datasets.Array2D((8, 8), "float32"), label=datasets.ClassLabel(names=list(map(str, range(10))))
    )
    return {"train": datasets.Dataset.from_dict({"image": images[:, 0], "label": labels}, features=features)}
