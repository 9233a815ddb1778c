"""Small images in all the forms in which people keep them."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pyarrow as pa
import pyarrow.parquet
from numpy.typing import NDArray

CLASSES = ("cat", "dog")
LABELS = [i % 2 for i in range(12)]
COLOURS: NDArray[np.uint8] = np.random.default_rng(0).integers(0, 256, (12, 8, 8, 3)).astype(np.uint8)
GREYS: NDArray[np.uint8] = COLOURS[..., 0].copy()


def encoded(image: PIL.Image.Image, kind: str = "PNG", **settings: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **settings)
    return file.getvalue()


def colours(kind: str = "PNG", **settings: Any) -> list[bytes]:
    return [encoded(PIL.Image.fromarray(image), kind, **settings) for image in COLOURS]


def greys(factor: float, dtype: Any, kind: str = "PNG") -> list[bytes]:
    return [encoded(PIL.Image.fromarray((image.astype(np.float64) * factor).astype(dtype)), kind) for image in GREYS]


def table(images: Sequence[Any], kind: Any = None) -> Callable[[Path], Path]:
    """Returns a function that writes images and their classes into a Parquet file of a folder."""

    def write(folder: Path) -> Path:
        columns = {"image": pa.array(images, kind), "label": [CLASSES[label] for label in LABELS[: len(images)]]}
        pyarrow.parquet.write_table(pa.table(columns), folder / "images.parquet")
        return folder / "images.parquet"

    return write


def arrays(images: NDArray) -> Callable[[Path], Path]:
    """Returns a function that writes images and their classes into an .npz file of a folder."""

    def write(folder: Path) -> Path:
        np.savez(folder / "images.npz", x_train=images, y_train=LABELS, class_names=CLASSES)
        return folder / "images.npz"

    return write


def photos(
    name: Callable[[int], str] = lambda i: f"{CLASSES[LABELS[i]]}/{i:02}.png",
    images: Sequence[bytes] | None = None,
    files: dict[str, bytes | str] | None = None,
) -> Callable[[Path], Path]:
    """Returns a function that writes a folder of images, and other files beside them."""

    def write(folder: Path) -> Path:
        root = folder / "photos"
        found: dict[str, bytes | str] = {name(i): data for i, data in enumerate(images or colours())}
        for place, data in {**found, **(files or {})}.items():
            (root / place).parent.mkdir(parents=True, exist_ok=True)
            (root / place).write_bytes(data.encode() if isinstance(data, str) else data)
        return root

    return write
