"""Conversion of Pillow's images to arrays of grey levels or colours. An image's mode says the range of its values."""

from __future__ import annotations

import numpy as np
import PIL.Image
from numpy.typing import NDArray

from flt.core.errors import InputError
from flt.core.typed import first_line

GREY = ("1", "L", "LA", "La")
"""Modes of grey images with 8 bits or fewer. All other modes, except those of numbers, have colours."""
DEEP = 65535
"""Largest value of 16 bits. Images of 16 bits are divided by it, whatever values they hold."""


def as_array(image: PIL.Image.Image) -> NDArray:
    """Returns an image as an array (H, W) if it is grey, or (H, W, 3) if it has colours.

    The array is uint8, uint16 for an image of 16 bits, or float32 for an image of floats. Mode I has 32 bits, but
    Pillow reads 16-bit files into it; its values therefore have the range of 16 bits. Where an image is transparent,
    a white page shows through. Of the frames of an animation, it is the current one, which is the first after decoding.

    Raises:
        InputError: An image of mode I has values outside of 0..65535, or Pillow can't convert the mode to RGB.

    Example:
        >>> as_array(PIL.Image.new("RGBA", (2, 1), (0, 0, 0, 0)))[0, 0].tolist()
        [255, 255, 255]
    """
    if image.mode.startswith("I"):
        whole = np.asarray(image)
        if whole.size and not (whole.min() >= 0 and whole.max() <= DEEP):
            raise InputError.of("data.image", f"{whole.min()} to {whole.max()}", f"integers in 0..{DEEP}")
        return whole.astype(np.uint16)
    if image.mode == "F":
        return np.asarray(image)
    try:
        opaque = _on_white(image) if image.has_transparency_data else image
        return np.asarray(opaque.convert("L" if image.mode in GREY else "RGB"))
    except (ValueError, OSError) as error:
        allowed = "images whose mode Pillow can convert to RGB"
        raise InputError.of("data.image", f"mode {image.mode}", allowed, first_line(error)) from error


def _on_white(image: PIL.Image.Image) -> PIL.Image.Image:
    layered = image.convert("RGBA")
    return PIL.Image.alpha_composite(PIL.Image.new("RGBA", image.size, "white"), layered)
