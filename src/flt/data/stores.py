"""How encoded inputs lie in memory or on disk: text as one flat run of token ids, images stacked at one size."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import interpolate

from flt.core.errors import InputError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

COLUMNS = ("input_ids", "token_type_ids")
OFFSETS = "offsets"
TARGETS = "targets"
IGNORED = -100
"""Label of a token that is no target, as in PyTorch's losses."""
GREY_MODES = ("1", "L", "LA", "I", "I;16", "F")  # Pillow's; every other mode has colours


class Store(Protocol):
    """Encoded inputs, from which views take rows."""

    @property
    def lengths(self) -> NDArray[np.int64] | None:
        """Tokens of each row, (rows,); None for images."""

    def row(self, i: int) -> dict[str, Tensor]:
        """The inputs of one row."""

    def arrays(self) -> list[NDArray]:
        """All that the rows depend on, for a digest."""


@dataclass(frozen=True)
class TextStore:
    """Token ids of all rows one after the other; row i lies in offsets[i]:offsets[i + 1].

    Attributes:
        columns: input_ids, and token_type_ids where the tokenizer has them, each (tokens of all rows,) int32.
        offsets: (rows + 1,) int64.
        targets: Tokens of each row before its response, (rows,) int32; None for text to classify.
        folder: Where they lie on disk, if they do.
    """

    columns: dict[str, NDArray[np.int32]]
    offsets: NDArray[np.int64]
    targets: NDArray[np.int32] | None = None
    folder: Path | None = None

    @classmethod
    def mapped(cls, folder: Path) -> TextStore:
        """The files of a folder, read where and when a row is asked for: nothing is copied, and nobody can write."""
        columns = {name: _map(folder / name, np.int32) for name in COLUMNS if (folder / name).is_file()}
        targets = _map(folder / TARGETS, np.int32) if (folder / TARGETS).is_file() else None
        return cls(columns, _map(folder / OFFSETS, np.int64), targets, folder)

    def __reduce__(self) -> tuple[Any, ...]:
        """A worker process gets the name of the folder, and not what is in it."""
        return (
            (TextStore.mapped, (self.folder,))
            if self.folder
            else (TextStore, (self.columns, self.offsets, self.targets))
        )

    def row(self, i: int) -> dict[str, Tensor]:
        """The inputs of one row, each (its own length,) int64; with a response its labels too."""
        start, end = int(self.offsets[i]), int(self.offsets[i + 1])
        inputs = {name: torch.from_numpy(flat[start:end].astype(np.int64)) for name, flat in self.columns.items()}
        row = {**inputs, "attention_mask": torch.ones(end - start, dtype=torch.int64)}
        if self.targets is not None:
            row["labels"] = inputs["input_ids"].clone()
            row["labels"][: int(self.targets[i])] = IGNORED
        return row

    @property
    def lengths(self) -> NDArray[np.int64]:
        """Tokens of each row, (rows,)."""
        return np.diff(self.offsets)

    def arrays(self) -> list[NDArray]:
        """All that the rows depend on, for a digest."""
        targets = [] if self.targets is None else [self.targets]
        return [self.offsets, *(flat for _, flat in sorted(self.columns.items())), *targets]


@dataclass(frozen=True)
class ImageStore:
    """Images of all rows, to be brought to the backbone's size and channels one at a time.

    Attributes:
        pixels: (rows, C, H, W) uint8, or float32 in [0, 1].
        size: Side that the backbone wants; None leaves them as they are.
        channels: Channels that the backbone wants; grey is repeated.
    """

    pixels: Tensor
    size: int | None
    channels: int | None

    def row(self, i: int) -> dict[str, Tensor]:
        """One image, (C, H, W) float32 in [0, 1]."""
        image = resize(as_float(self.pixels[i]), self.size)
        return {"pixel_values": image.repeat(self.channels or 1, 1, 1) if len(image) == 1 else image}

    @property
    def lengths(self) -> None:
        """None: every image is as large as the others."""
        return None

    def arrays(self) -> list[NDArray]:
        """All that the rows depend on, for a digest."""
        return [self.pixels.numpy(), np.array([self.size or 0, self.channels or 0])]


def tokenize(texts: Sequence[Sequence[str]], tokenizer: PreTrainedTokenizerBase, max_length: int) -> dict[str, list]:
    """Tokenises some rows, truncated and not padded.

    Args:
        texts: One sequence of texts, or the two of a pair.
        tokenizer: A tokenizer of transformers.
        max_length: Most tokens per row, the special ones included.

    Returns:
        input_ids and perhaps token_type_ids, a list of lists each. A text without any token, which GPT-like tokenizers
        make of an empty one, gets a single special token: a row of length 0 would break attention.
    """
    encoded = tokenizer(*texts, truncation=True, max_length=max_length, return_attention_mask=False)
    special = (tokenizer.eos_token_id, tokenizer.pad_token_id, tokenizer.unk_token_id)
    lone = next((token for token in special if token is not None), 0)
    fill = dict(zip(COLUMNS, (lone, 0), strict=True))
    return {name: [row or [fill[name]] for row in encoded[name]] for name in fill if name in encoded}


def flatten(rows: Sequence[Sequence[int]]) -> NDArray[np.int32]:
    """Joins rows of token ids, half the bytes of PyTorch's own int64."""
    return np.fromiter(chain.from_iterable(rows), dtype=np.int32)


def to_tensor(image: Any) -> Tensor:
    """Turns one image into (C, H, W), uint8 or float32 in [0, 1].

    Args:
        image: A Pillow image, or an array (H, W), (H, W, C) or (C, H, W) with 1 or 3 channels.

    Raises:
        InputError: If the shape or the values are not an image's.

    Example:
        >>> to_tensor(np.zeros((4, 5, 3), dtype=np.int64)).shape
        torch.Size([3, 4, 5])
    """
    if hasattr(image, "convert"):
        image = image.convert("L" if image.mode in GREY_MODES else "RGB")
    array = np.asarray(image)
    array = array[None] if array.ndim == 2 else array
    if array.ndim != 3 or not {array.shape[0], array.shape[-1]} & {1, 3}:
        raise InputError.of("data.image", array.shape, "images (H, W), (H, W, C) or (C, H, W) with 1 or 3 channels")
    array = array.transpose(2, 0, 1) if array.shape[0] not in (1, 3) else array
    whole = array.dtype.kind in "iu"
    top = 255 if whole else 1
    if not (array.min() >= 0 and array.max() <= top):  # nan fails this too
        raise InputError.of("data.image", f"{array.min()} to {array.max()}", "integers in 0..255 or floats in [0, 1]")
    return torch.from_numpy(np.array(array, dtype=np.uint8 if whole else np.float32, order="C"))


def as_float(image: Tensor) -> Tensor:
    """Turns bytes into float32 in [0, 1]; floats stay."""
    return image.float() / 255 if image.dtype == torch.uint8 else image


def resize(image: Tensor, size: int | None) -> Tensor:
    """Scales a float image (C, H, W) to (C, size, size), bilinear with antialiasing; None leaves it.

    Example:
        >>> resize(torch.ones(3, 8, 6), 4).shape
        torch.Size([3, 4, 4])
    """
    if size is None or image.shape[-2:] == (size, size):
        return image
    return interpolate(image[None], (size, size), mode="bilinear", align_corners=False, antialias=True)[0]


def shrink(image: Tensor, size: int | None) -> Tensor:
    """Resizes an image that is larger than needed and keeps its dtype; smaller ones wait until they are read."""
    return image if size is None or max(image.shape[-2:]) <= size else _to_size(image, size)


def stack(images: Sequence[Tensor], size: int | None) -> Tensor:
    """Stacks images to (n, C, H, W); where they differ, grey is repeated and all are brought to the size.

    Raises:
        InputError: If their sides differ and there is no size to bring them to.
    """
    channels = max(map(len, images))
    images = [image if len(image) == channels else image.repeat(channels, 1, 1) for image in images]
    if len({image.shape for image in images}) > 1:
        if size is None:
            raise InputError.of("image_size", None, "a side in pixels", "the images differ in size")
        images = [_to_size(image, size) for image in images]
    return torch.stack(images)


def _map(path: Path, dtype: type[np.integer]) -> NDArray:
    """A file of numbers as an array of the plain class, whose slices are faster than memmap's."""
    return np.asarray(np.memmap(path, dtype=dtype, mode="r"))


def _to_size(image: Tensor, size: int) -> Tensor:
    scaled = resize(as_float(image), size)
    return (scaled * 255).round().clamp(0, 255).to(torch.uint8) if image.dtype == torch.uint8 else scaled
