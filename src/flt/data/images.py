"""Decoding of images that a table contains as bytes, or that a folder contains as files. Nothing is started for it."""

from __future__ import annotations

import contextlib
import os
import warnings
from collections.abc import Iterator, Mapping
from importlib.util import find_spec
from io import BytesIO
from pathlib import Path
from typing import IO, Any

import datasets
import PIL.Image
import PIL.ImageOps
import pyarrow as pa
import pyarrow.compute as pc
from datasets.features.features import require_decoding
from datasets.utils.file_utils import xopen

from flt.core.errors import InputError
from flt.core.files import last_name
from flt.core.typed import first_line

AVIF = ("AVIF",) * (find_spec("PIL.AvifImagePlugin") is not None)
"""The format AVIF, which earlier versions of Pillow can't decode."""
FORMATS = ("PNG", "JPEG", "GIF", "BMP", "WEBP", "TIFF", "PPM", "JPEG2000", *AVIF)
"""Formats that are decoded. Pillow knows others too, and starts Ghostscript, for example, to decode EPS."""
BINARY = ("binary", "large_binary", "binary_view", "null")
"""Types of columns that may hold encoded images. The last one is that of a column without any value."""
MOST_PIXELS = 2 * 89_478_485
"""Largest number of pixels of an image, about 13,000 x 13,000. A few bytes can stand for billions.

Pillow has the same limit, but another library may have switched it off.
"""


def undecoded(split: datasets.Dataset, path: Path) -> datasets.Dataset:
    """Returns a split of a file in which images stay bytes until :func:`decode` decodes them.

    Raises:
        InputError: A column refers to other files, or holds something else that would have to be decoded.
    """
    for name, feature in split.features.items():
        if not require_decoding(feature):
            continue
        if not isinstance(feature, datasets.Image):
            raise InputError.of("data.path", path, "columns of text, numbers and images", f"{name} holds {feature}")
        split = split.cast_column(name, datasets.Image(decode=False))
        _check_inside(split.data.column(name), name, path)
    return split


def is_encoded(feature: Any) -> bool:
    """Returns whether a column of this type may hold encoded images: bytes, or ``{"bytes": ..., "path": ...}``."""
    data = feature.get("bytes") if isinstance(feature, dict) else feature
    return isinstance(data, datasets.Image) or getattr(data, "dtype", None) in BINARY


def with_places(split: datasets.Dataset, column: str, name: str) -> datasets.Dataset:
    """Returns a split whose encoded images say where they are from, for the line of an error.

    A column of bytes, or of ``{"bytes": ..., "path": ...}``, becomes a column of the type ``datasets.Image``. The path
    of an image that isn't a file becomes its row, such as ``row 7 of train``. The bytes aren't copied. A column of
    another type, such as arrays of numbers, stays as it is.

    Args:
        split: The split, with all rows of its source.
        column: Name of the column of images.
        name: Name of the split.

    Raises:
        InputError: An image is missing, or a table refers to other files.
    """
    feature = split.features[column]
    if not is_encoded(feature):
        return split
    if isinstance(feature, datasets.Image):
        split = split.cast_column(column, datasets.Image(decode=False))
    images = split.data.column(column)
    if isinstance(feature, dict):
        _check_inside(images, column, "the data")
    places = [f"row {row} of {name}" for row in range(1, len(split) + 1)]
    parts, done = [], 0
    for chunk in images.chunks:
        rows = pa.array(places[done : done + len(chunk)])
        data, files = _fields(chunk)
        paths = pc.if_else(data.is_valid(), rows, files)
        if (missing := data.is_null().to_numpy(False) & paths.is_null().to_numpy(False)).any():
            raise InputError.of("data.image", places[done + int(missing.argmax())], "an image for every example")
        try:
            parts.append(pa.StructArray.from_arrays([data.cast(pa.binary()), paths], names=["bytes", "path"]))
        except pa.ArrowInvalid as error:  # large_binary may hold more
            raise InputError.of("data.image", column, "at most 2 GB in a row group", str(error)) from error
        done += len(chunk)
    # without a fingerprint, the library datasets would pickle the images to hash them
    key, kind = datasets.fingerprint.generate_random_fingerprint(), datasets.Image(decode=False)
    named: Any = pa.chunked_array(parts, kind.pa_type)
    return split.remove_columns(column).add_column(column, named, new_fingerprint=key, feature=kind)


def _fields(images: pa.Array) -> tuple[pa.Array, pa.Array]:
    """Returns the bytes and the paths of images. A path may be null."""
    fields = {field.name: field.type for field in images.type} if pa.types.is_struct(images.type) else {}
    data = pc.struct_field(images, "bytes") if fields else images
    has_paths = fields.get("path") in (pa.string(), pa.large_string())
    return data, (pc.struct_field(images, "path") if has_paths else pa.nulls(len(images))).cast(pa.string())


def _check_inside(images: pa.ChunkedArray, column: str, path: Path | str) -> None:
    for chunk in images.chunks:
        data, files = _fields(chunk)
        if pc.any(pc.and_(data.is_null(), files.is_valid())).as_py():
            raise InputError.of("data.path", path, "images inside of the file", f"{column} holds names of other files")


@contextlib.contextmanager
def naming_place(image: Mapping[str, Any] | None) -> Iterator[None]:
    """Adds the place of an image, which is a row or the path of a file, to the line of an InputError."""
    try:
        yield
    except InputError as error:
        place = "".join(c if c.isprintable() else "?" for c in str((image or {}).get("path") or ""))
        raise InputError(f"{error} ({place})" if place else str(error)) from error


def decode(image: Mapping[str, Any] | None) -> PIL.Image.Image:
    """Decodes an image that a table contains as bytes, or that is a file. Of an animation, it is the first frame.

    Args:
        image: ``{"bytes": ..., "path": ...}``. If bytes is None, the image is the file at path.

    Raises:
        InputError: The image is missing, the bytes are no image of one of the ``FORMATS`` or are truncated, or they
            stand for too many pixels, or the file can't be read.
    """
    if image is None:
        raise InputError.of("data.image", None, "an image for every example")
    data = image["bytes"]
    if data is None:
        # only from a folder of images, or from the hub, whose data sets may consist of files and of archives:
        # undecoded() and with_places() refuse a table that names files
        path = image["path"]
        try:
            with open(path, "rb") if os.path.isfile(path) else xopen(path, "rb") as file:
                data = file.read()
        except Exception as error:  # of the system, the network or the reader of an archive
            allowed = "a file that can be read"
            raise InputError.of("data.image", last_name(path), allowed, type(error).__name__) from error
    return _opened(BytesIO(data), f"<{len(data)} bytes>")


def _opened(file: IO[bytes], value: str) -> PIL.Image.Image:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", PIL.Image.DecompressionBombWarning)
            found = PIL.Image.open(file, formats=FORMATS)
        if found.width * found.height > MOST_PIXELS:
            raise ValueError(f"it has {found.width} x {found.height} pixels, and at most {MOST_PIXELS} are allowed")
        found.load()
        orientation = found.getexif().get(PIL.Image.ExifTags.Base.Orientation)
        return found if orientation is None else PIL.ImageOps.exif_transpose(found)
    except Exception as error:  # Pillow's readers raise errors of many kinds
        why = first_line(error).partition("<_io")[0].strip()
        if isinstance(error, PIL.Image.DecompressionBombError):
            why = f"it has more than {MOST_PIXELS} pixels"
        raise InputError.of("data.image", value, f"an image as {', '.join(FORMATS)}", why) from error
