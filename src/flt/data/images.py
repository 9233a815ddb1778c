"""Decoding of images that a table contains as bytes. Nothing outside of the table is opened, and nothing is started."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from importlib.util import find_spec
from io import BytesIO
from pathlib import Path
from typing import Any

import datasets
import PIL.Image
import PIL.ImageOps
import pyarrow.compute as pc
from datasets.features.features import require_decoding

from flt.core.errors import InputError
from flt.core.typed import first_line

AVIF = ("AVIF",) * (find_spec("PIL.AvifImagePlugin") is not None)
"""The format AVIF, which earlier versions of Pillow can't decode."""
FORMATS = ("PNG", "JPEG", "GIF", "BMP", "WEBP", "TIFF", "PPM", "JPEG2000", *AVIF)
"""Formats that are decoded. Pillow knows others too, and starts Ghostscript, for example, to decode EPS."""
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
        if pc.struct_field(split.data.column(name), "bytes").null_count:
            raise InputError.of("data.path", path, "images inside of the file", f"{name} holds names of other files")
    return split


def decode(image: Mapping[str, Any] | None) -> PIL.Image.Image:
    """Decodes an image that a table contains as bytes.

    Args:
        image: ``{"bytes": ..., "path": ...}``.

    Raises:
        InputError: The image is missing, the bytes are no image of one of the ``FORMATS`` or are truncated, or they
            stand for too many pixels.
    """
    if image is None:
        raise InputError.of("data.image", None, "an image for every example")
    data = image["bytes"]
    if data is None:  # only from the hub, where a data set may consist of files: undecoded() refuses it in a file
        return datasets.Image().decode_example(dict(image))
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", PIL.Image.DecompressionBombWarning)
            found = PIL.Image.open(BytesIO(data), formats=FORMATS)
        if found.width * found.height > MOST_PIXELS:
            raise ValueError(f"it has {found.width} x {found.height} pixels, and at most {MOST_PIXELS} are allowed")
        found.load()
        orientation = found.getexif().get(PIL.Image.ExifTags.Base.Orientation)
        return found if orientation is None else PIL.ImageOps.exif_transpose(found)
    except Exception as error:  # Pillow's readers raise errors of many kinds
        why = first_line(error).partition("<_io")[0].strip()
        if isinstance(error, PIL.Image.DecompressionBombError):
            why = f"it has more than {MOST_PIXELS} pixels"
        raise InputError.of("data.image", f"<{len(data)} bytes>", f"an image as {', '.join(FORMATS)}", why) from error
