"""Storage of encoded inputs. Texts are one flat array of token ids, in memory or on disk. Images are one tensor."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
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
from flt.data.image_modes import DEEP, as_array

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

COLUMNS = ("input_ids", "token_type_ids")
OFFSETS = "offsets"
"""Name of the file that contains the start of each row."""
TARGETS = "targets"
"""Name of the file that contains, for each row, the number of tokens before the response."""
IGNORED = -100
"""Label of a token that the loss ignores, as in PyTorch."""


class Store(Protocol):
    """Store of encoded inputs. All selections of a data set's examples share one store."""

    @property
    def lengths(self) -> NDArray[np.int64] | None:
        """Number of tokens of each row, shape (rows,). None for images."""

    def row(self, i: int) -> dict[str, Tensor]:
        """Returns the inputs of one row."""

    def arrays(self) -> list[NDArray]:
        """Returns all arrays that the rows depend on, so that a digest of the inputs can be computed."""


@dataclass(frozen=True)
class TextStore:
    """Store of the token ids of all rows, one row after the other. Row i is the slice offsets[i]:offsets[i + 1].

    Attributes:
        columns: input_ids and, if the tokenizer makes them, token_type_ids. Each is an int32 array with the tokens of
            all rows, one row after the other.
        offsets: Start of each row. The last number is the end of the last row. Shape (rows + 1,), int64.
        targets: Number of tokens before the response in each row. Shape (rows,), int32. None if rows have no response.
        folder: Folder of the files if the arrays are mapped from disk; None if they are in memory.
    """

    columns: dict[str, NDArray[np.int32]]
    offsets: NDArray[np.int64]
    targets: NDArray[np.int32] | None = None
    folder: Path | None = None

    @classmethod
    def mapped(cls, folder: Path) -> TextStore:
        """Creates a store from the files of a folder. A row is read from disk only when it is needed."""
        columns = {name: _map(folder / name, np.int32) for name in COLUMNS if (folder / name).is_file()}
        targets = _map(folder / TARGETS, np.int32) if (folder / TARGETS).is_file() else None
        return cls(columns, _map(folder / OFFSETS, np.int64), targets, folder)

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickles only the folder's path if the arrays are mapped from disk. A worker process maps the files itself."""
        return (
            (TextStore.mapped, (self.folder,))
            if self.folder
            else (TextStore, (self.columns, self.offsets, self.targets))
        )

    def row(self, i: int) -> dict[str, Tensor]:
        """Returns the inputs of one row, each int64 of shape (length,). Adds labels if rows have responses."""
        start, end = int(self.offsets[i]), int(self.offsets[i + 1])
        inputs = {name: torch.from_numpy(flat[start:end].astype(np.int64)) for name, flat in self.columns.items()}
        row = {**inputs, "attention_mask": torch.ones(end - start, dtype=torch.int64)}
        if self.targets is not None:
            row["labels"] = inputs["input_ids"].clone()
            row["labels"][: int(self.targets[i])] = IGNORED
        return row

    @property
    def lengths(self) -> NDArray[np.int64]:
        """Number of tokens of each row, shape (rows,)."""
        return np.diff(self.offsets)

    def arrays(self) -> list[NDArray]:
        """Returns all arrays that the rows depend on, so that a digest of the inputs can be computed."""
        targets = [] if self.targets is None else [self.targets]
        return [self.offsets, *(flat for _, flat in sorted(self.columns.items())), *targets]


class Prepare(Protocol):
    """Function of a model's image processor that gives images the size that the backbone takes."""

    def __call__(self, image: Tensor) -> Tensor:
        """Returns an image (C, H, W) as the backbone takes it, in uint8 or as float32 in [0, 1]."""

    def enlarges(self, image: Tensor) -> bool:
        """Returns whether the prepared image has more numbers than the image."""


@dataclass(frozen=True)
class ImageStore:
    """Store of images. An image is scaled to the backbone's size and number of channels whenever it is read.

    Attributes:
        pixels: Images of shape (rows, C, H, W), as uint8 or as float32 in [0, 1].
        size: Side of the backbone's input in pixels. If None, images keep their size.
        channels: Number of channels of the backbone's input. A grey image's channel is repeated until the
            image has this number. If None, images keep their channels.
        prepare: Function that prepares an image whenever it is read. None if the images are prepared already, or the
            model has no image processor.
    """

    pixels: Tensor
    size: int | None
    channels: int | None
    prepare: Prepare | None = None

    def row(self, i: int) -> dict[str, Tensor]:
        """Returns one image of shape (C, H, W), as float32 in [0, 1]."""
        image = self.pixels[i] if self.prepare is None else self.prepare(self.pixels[i])
        image = resize(as_float(image), self.size)
        return {"pixel_values": image.repeat(self.channels or 1, 1, 1) if len(image) == 1 else image}

    @property
    def lengths(self) -> None:
        """None, since all images have the same size."""
        return None

    def arrays(self) -> list[NDArray]:
        """Returns all arrays that the rows depend on, so that a digest of the inputs can be computed."""
        prepare = [] if self.prepare is None else [np.frombuffer(repr(self.prepare).encode(), dtype=np.uint8)]
        return [self.pixels.numpy(), np.array([self.size or 0, self.channels or 0]), *prepare]


def tokenize(texts: Sequence[Sequence[str]], tokenizer: PreTrainedTokenizerBase, max_length: int) -> dict[str, list]:
    """Tokenises some rows. The rows are truncated and not padded.

    Args:
        texts: One sequence of texts, or two sequences for pairs of texts.
        tokenizer: A tokenizer of transformers.
        max_length: Largest number of tokens per row, including special tokens.

    Returns:
        input_ids and, with some tokenizers, token_type_ids, each a list with one list per row. GPT-like tokenizers make
        no tokens from an empty text. Such a row gets one special token, because attention fails on a row of length 0.
    """
    encoded = tokenizer(*texts, truncation=True, max_length=max_length, return_attention_mask=False)
    special = (tokenizer.eos_token_id, tokenizer.pad_token_id, tokenizer.unk_token_id)
    lone = next((token for token in special if token is not None), 0)
    fill = dict(zip(COLUMNS, (lone, 0), strict=True))
    return {name: [row or [fill[name]] for row in encoded[name]] for name in fill if name in encoded}


def flatten(rows: Sequence[Sequence[int]]) -> NDArray[np.int32]:
    """Joins rows of token ids into one int32 array, because int64 would take twice as many bytes."""
    return np.fromiter(chain.from_iterable(rows), dtype=np.int32)


def to_tensor(image: Any) -> Tensor:
    """Turns one image into a tensor of shape (C, H, W). The tensor is uint8, or float32 in [0, 1].

    Integers of 16 bits are divided by 65535.

    Args:
        image: A Pillow image, or an array (H, W), (H, W, C) or (C, H, W) with 1 or 3 channels.

    Raises:
        InputError: The shape is wrong, or values are out of range.

    Example:
        >>> to_tensor(np.zeros((4, 5, 3), dtype=np.int64)).shape
        torch.Size([3, 4, 5])
    """
    array = as_array(image) if hasattr(image, "convert") else np.asarray(image)
    is_flat = array.ndim == 2
    array = array[None] if is_flat else array
    if (
        array.ndim != 3
        or not array.size
        or array.dtype.kind not in "iufb"
        or not {array.shape[0], array.shape[-1]} & {1, 3}
    ):
        raise InputError.of("data.image", array.shape, "images (H, W), (H, W, C) or (C, H, W) with 1 or 3 channels")
    channels_first = array.shape[0] in (1, 3) and (array.shape[0], array.shape[-1]) != (1, 3)
    array = array if is_flat or channels_first else array.transpose(2, 0, 1)
    if array.dtype == np.uint16:
        array = array.astype(np.float32) / DEEP
    whole = array.dtype.kind in "iu"
    top = 255 if whole else 1
    if not (array.min() >= 0 and array.max() <= top):  # nan fails this too
        allowed = "integers in 0..255, integers of 16 bits (uint16), or floats in [0, 1]"
        raise InputError.of("data.image", f"{array.min()} to {array.max()}", allowed)
    return torch.from_numpy(np.array(array, dtype=np.uint8 if whole else np.float32, order="C"))


def as_float(image: Tensor) -> Tensor:
    """Converts an image in uint8 to float32 in [0, 1]. Returns an image in float32 unchanged."""
    return image.float() / 255 if image.dtype == torch.uint8 else image


def resize(image: Tensor, size: int | None) -> Tensor:
    """Scales a float image (C, H, W) to (C, size, size). If size is None, nothing changes.

    The interpolation is bilinear with antialiasing.

    Example:
        >>> resize(torch.ones(3, 8, 6), 4).shape
        torch.Size([3, 4, 4])
    """
    if size is None or image.shape[-2:] == (size, size):
        return image
    return interpolate(image[None], (size, size), mode="bilinear", align_corners=False, antialias=True)[0]


def shrink(image: Tensor, size: int | None) -> Tensor:
    """Scales an image down if its height or width is larger than size. Keeps the dtype.

    If size is None, nothing changes.
    """
    return image if size is None or max(image.shape[-2:]) <= size else _to_size(image, size)


def stack(images: Sequence[Tensor], size: int | None) -> Tensor:
    """Stacks images into one tensor of shape (n, C, H, W).

    If some images have colours, the channel of grey images is repeated. If some are float32, all become float32. If the
    images differ in size, all of them are scaled.

    Args:
        images: Images (C, H, W) as returned by :func:`to_tensor`.
        size: Side in pixels to which images are scaled if they differ in size.

    Raises:
        InputError: The images differ in size, and size is None.
    """
    channels = max(map(len, images))
    images = [image if len(image) == channels else image.repeat(channels, 1, 1) for image in images]
    if len({image.dtype for image in images}) > 1:  # torch.stack would mix values in 0..255 with values in [0, 1]
        images = [as_float(image) for image in images]
    if len(shapes := {tuple(image.shape[1:]) for image in images}) > 1:
        if size is None:
            why = "neither the model's config nor its image processor says what size it takes"
            sizes = " and ".join(f"{height} x {width}" for height, width in sorted(shapes)[:2])
            raise InputError.of("data.image", f"{sizes} pixels", "images of one size", why)
        images = [_to_size(image, size) for image in images]
    return torch.stack(images)


def prepared(images: Iterable[Tensor], prepare: Prepare) -> tuple[Tensor, Prepare | None]:
    """Prepares images for the backbone and stacks them, or stacks them unprepared if they need less memory so.

    Returns:
        The images (n, C, H, W), and the function that prepares an image when it is read. It is None if the images are
        prepared already.

    Raises:
        InputError: The prepared images differ in size.
    """
    kept, late = list[Tensor](), list[bool]()
    for image in images:
        late.append(prepare.enlarges(image))
        kept.append(image if late[-1] else prepare(image))
    if all(late) and len({image.shape[1:] for image in kept}) == 1:
        return stack(kept, None), prepare
    return stack(
        [prepare(image) if unprepared else image for image, unprepared in zip(kept, late, strict=True)], None
    ), None


def _map(path: Path, dtype: type[np.integer]) -> NDArray:
    """Maps a file of numbers into memory. Returns a plain array, because slicing a memmap is slower."""
    return np.asarray(np.memmap(path, dtype=dtype, mode="r"))


def _to_size(image: Tensor, size: int) -> Tensor:
    scaled = resize(as_float(image), size)
    return (scaled * 255).round().clamp(0, 255).to(torch.uint8) if image.dtype == torch.uint8 else scaled
