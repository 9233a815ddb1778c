"""Storage of encoded inputs in memory or on disk: text as one flat array of token ids, images stacked in one size."""

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
"""Label of a token that isn't a target, as in PyTorch's losses."""
GREY_MODES = ("1", "L", "LA", "I", "I;16", "F")  # modes of Pillow; every other mode has colours


class Store(Protocol):
    """Store of encoded inputs, shared by all views of them."""

    @property
    def lengths(self) -> NDArray[np.int64] | None:
        """Number of tokens of each row, (rows,); None for images."""

    def row(self, i: int) -> dict[str, Tensor]:
        """Returns the inputs of one row."""

    def arrays(self) -> list[NDArray]:
        """Returns all arrays that the rows depend on, for a digest."""


@dataclass(frozen=True)
class TextStore:
    """Token ids of all rows, one row after the other. Row i is the slice offsets[i]:offsets[i + 1].

    Attributes:
        columns: input_ids, and token_type_ids if the tokenizer has them, each (tokens of all rows,) int32.
        offsets: Start of each row and end of the last row, (rows + 1,) int64.
        targets: Number of tokens of each row before its response, (rows,) int32; None for text to classify.
        folder: Folder of the files if the arrays are mapped from disk.
    """

    columns: dict[str, NDArray[np.int32]]
    offsets: NDArray[np.int64]
    targets: NDArray[np.int32] | None = None
    folder: Path | None = None

    @classmethod
    def mapped(cls, folder: Path) -> TextStore:
        """Maps the files of a folder into memory, read-only. Rows are read from disk when they are needed."""
        columns = {name: _map(folder / name, np.int32) for name in COLUMNS if (folder / name).is_file()}
        targets = _map(folder / TARGETS, np.int32) if (folder / TARGETS).is_file() else None
        return cls(columns, _map(folder / OFFSETS, np.int64), targets, folder)

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickles only the name of the folder, so that a worker process maps the files itself."""
        return (
            (TextStore.mapped, (self.folder,))
            if self.folder
            else (TextStore, (self.columns, self.offsets, self.targets))
        )

    def row(self, i: int) -> dict[str, Tensor]:
        """Returns the inputs of one row, each (length of the row,) int64, and its labels if there is a response."""
        start, end = int(self.offsets[i]), int(self.offsets[i + 1])
        inputs = {name: torch.from_numpy(flat[start:end].astype(np.int64)) for name, flat in self.columns.items()}
        row = {**inputs, "attention_mask": torch.ones(end - start, dtype=torch.int64)}
        if self.targets is not None:
            row["labels"] = inputs["input_ids"].clone()
            row["labels"][: int(self.targets[i])] = IGNORED
        return row

    @property
    def lengths(self) -> NDArray[np.int64]:
        """Number of tokens of each row, (rows,)."""
        return np.diff(self.offsets)

    def arrays(self) -> list[NDArray]:
        """Returns all arrays that the rows depend on, for a digest."""
        targets = [] if self.targets is None else [self.targets]
        return [self.offsets, *(flat for _, flat in sorted(self.columns.items())), *targets]


@dataclass(frozen=True)
class ImageStore:
    """Images of all rows. Each image gets the backbone's size and number of channels when it is read.

    Attributes:
        pixels: Images (rows, C, H, W), uint8, or float32 in [0, 1].
        size: Side of the backbone's input in pixels; None: images keep their size.
        channels: Number of channels of the backbone's input, to which grey images are repeated; None: no repetition.
    """

    pixels: Tensor
    size: int | None
    channels: int | None

    def row(self, i: int) -> dict[str, Tensor]:
        """Returns one image, (C, H, W) float32 in [0, 1]."""
        image = resize(as_float(self.pixels[i]), self.size)
        return {"pixel_values": image.repeat(self.channels or 1, 1, 1) if len(image) == 1 else image}

    @property
    def lengths(self) -> None:
        """None, since all images have the same size."""
        return None

    def arrays(self) -> list[NDArray]:
        """Returns all arrays that the rows depend on, for a digest."""
        return [self.pixels.numpy(), np.array([self.size or 0, self.channels or 0])]


def tokenize(texts: Sequence[Sequence[str]], tokenizer: PreTrainedTokenizerBase, max_length: int) -> dict[str, list]:
    """Tokenises some rows, truncated and without padding.

    Args:
        texts: One sequence of texts, or two for pairs.
        tokenizer: A tokenizer of transformers.
        max_length: Largest number of tokens per row, including special tokens.

    Returns:
        input_ids and perhaps token_type_ids, each a list of lists. GPT-like tokenizers give an empty text no tokens;
        such a row gets a single special token, since a row of length 0 would break attention.
    """
    encoded = tokenizer(*texts, truncation=True, max_length=max_length, return_attention_mask=False)
    special = (tokenizer.eos_token_id, tokenizer.pad_token_id, tokenizer.unk_token_id)
    lone = next((token for token in special if token is not None), 0)
    fill = dict(zip(COLUMNS, (lone, 0), strict=True))
    return {name: [row or [fill[name]] for row in encoded[name]] for name in fill if name in encoded}


def flatten(rows: Sequence[Sequence[int]]) -> NDArray[np.int32]:
    """Joins rows of token ids as int32, which takes half the bytes of PyTorch's int64."""
    return np.fromiter(chain.from_iterable(rows), dtype=np.int32)


def to_tensor(image: Any) -> Tensor:
    """Turns one image into a tensor (C, H, W), uint8 or float32 in [0, 1].

    Args:
        image: A Pillow image, or an array (H, W), (H, W, C) or (C, H, W) with 1 or 3 channels.

    Raises:
        InputError: The shape or the values aren't those of an image.

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
    """Turns uint8 into float32 in [0, 1]. Floats stay unchanged."""
    return image.float() / 255 if image.dtype == torch.uint8 else image


def resize(image: Tensor, size: int | None) -> Tensor:
    """Scales a float image (C, H, W) to (C, size, size), bilinear with antialiasing. None keeps the size.

    Example:
        >>> resize(torch.ones(3, 8, 6), 4).shape
        torch.Size([3, 4, 4])
    """
    if size is None or image.shape[-2:] == (size, size):
        return image
    return interpolate(image[None], (size, size), mode="bilinear", align_corners=False, antialias=True)[0]


def shrink(image: Tensor, size: int | None) -> Tensor:
    """Scales an image down if it is too large, and keeps its dtype. Small images are scaled up when they are read."""
    return image if size is None or max(image.shape[-2:]) <= size else _to_size(image, size)


def stack(images: Sequence[Tensor], size: int | None) -> Tensor:
    """Stacks images to (n, C, H, W). If the images differ, grey ones are repeated and all are scaled to the size.

    Raises:
        InputError: The images differ in size, and no size is given.
    """
    channels = max(map(len, images))
    images = [image if len(image) == channels else image.repeat(channels, 1, 1) for image in images]
    if len({image.shape for image in images}) > 1:
        if size is None:
            raise InputError.of("image_size", None, "a side in pixels", "the images differ in size")
        images = [_to_size(image, size) for image in images]
    return torch.stack(images)


def _map(path: Path, dtype: type[np.integer]) -> NDArray:
    """Maps a file of numbers as a plain array, whose slices are faster than those of a memmap."""
    return np.asarray(np.memmap(path, dtype=dtype, mode="r"))


def _to_size(image: Tensor, size: int) -> Tensor:
    scaled = resize(as_float(image), size)
    return (scaled * 255).round().clamp(0, 255).to(torch.uint8) if image.dtype == torch.uint8 else scaled
