"""Preparation of images by the model's own image processor, which was saved beside its weights.

The image processor works on 8 bits per channel. It resizes and crops an image when the data are encoded, or when the
image is read. `flt.data.examples.Collate` then scales and normalises a batch by the processor's figures.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from torch import Tensor
from transformers.models.auto.image_processing_auto import get_image_processor_config

from flt.core.errors import InputError
from flt.core.files import last_name
from flt.models.location import one_line_errors

log = logging.getLogger(__name__)

SHAPES = ((60, 40), (40, 60))
"""Heights and widths of the images with which a processor is tried."""
FIGURES = ("do_rescale", "do_normalize", "include_top")
"""Settings with which processors scale and normalise pixels. The last one is of EfficientNet, and normalises again."""
Figures = tuple[float, ...]


@dataclass(frozen=True)
class ImagePreparation:
    """Function that resizes and crops images as a model's image processor does.

    Attributes:
        processor: Image processor of transformers.
        channels: Number of channels that the model takes.
        size: Height and width of every prepared image. None if they depend on the image.
        mean: Mean of each channel, for pixels in [0, 1]. If None, pixels aren't normalised.
        std: Standard deviation of each channel, for pixels in [0, 1]. If None, pixels aren't normalised.
    """

    processor: Any
    channels: int
    size: tuple[int, int] | None = None
    mean: Figures | None = None
    std: Figures | None = None

    def __call__(self, image: Tensor) -> Tensor:
        """Prepares one image.

        Args:
            image: Image (C, H, W), in uint8 or as float32 in [0, 1]. A grey image's channel is repeated if the model
                takes colours.

        Returns:
            The prepared image in uint8. An image in float32 keeps its finer values if the processor doesn't move any
            pixel.
        """
        image = image.repeat(self.channels, 1, 1) if len(image) == 1 else image
        whole = image if image.dtype == torch.uint8 else (image * 255).round().to(torch.uint8)
        known = self.processor.valid_kwargs.__annotations__
        prepared = self._processed(whole, **{name: False for name in FIGURES if name in known})
        return image if torch.equal(prepared, whole) else prepared

    def enlarges(self, image: Tensor) -> bool:
        """Returns whether the prepared image has more numbers than the image."""
        return self.size is not None and image.numel() < self.channels * self.size[0] * self.size[1]

    def whole(self, image: Tensor) -> Tensor:
        """Returns what the processor itself makes of an image in uint8, as float32."""
        return self._processed(image).float()

    def normalised(self, image: Tensor) -> Tensor:
        """Normalises a prepared image in uint8, as ``Collate`` does it."""
        pixels = image.float() / 255
        if self.mean is None or self.std is None:
            return pixels
        mean, std = (torch.tensor(figures).view(-1, 1, 1) for figures in (self.mean, self.std))
        return (pixels - mean) / std

    def _processed(self, image: Tensor, **settings: bool) -> Tensor:
        found = self.processor(image.numpy(), input_data_format="channels_first", **settings)["pixel_values"][0]
        return torch.from_numpy(np.array(found))


def image_preparation(source: str, config: Any, local: bool) -> ImagePreparation | None:
    """Loads the image processor of a model. Returns None if the model has none.

    Args:
        source: Local folder or hub id of the model.
        config: The model's config.
        local: Whether only local files may be read.

    Raises:
        InputError: The processor can't be loaded, needs code of its own, or does more than to resize, crop, scale and
            normalise.
    """
    with one_line_errors(source, "a folder whose image processor transformers can load"):
        try:
            settings = get_image_processor_config(source, local_files_only=local)
        except OSError:
            if Path(source).is_dir():  # the file is there, and damaged
                raise
            settings = {}  # without a network, the cache may lack the file
        if not settings:
            return None
        processor = transformers.AutoImageProcessor.from_pretrained(
            source, local_files_only=local, trust_remote_code=False, backend="pil"
        )
        vision = getattr(config, "vision_config", config)
        _set_missing_sizes(processor, settings, getattr(vision, "image_size", None))
        preparation = ImagePreparation(processor, getattr(vision, "num_channels", None) or 3)
        with np.errstate(all="ignore"):  # a deviation of 0 is refused below
            return _measured(preparation, source)


def check_size(model: torch.nn.Module, preparation: ImagePreparation, image_size: Any, source: str) -> None:
    """Checks that a model takes the images that its image processor makes, if its config names another size.

    Raises:
        InputError: The model doesn't take them.
    """
    size = preparation.size
    if size is None or image_size in (None, size, list(size)) or (image_size, image_size) == size:
        return
    device = next(model.parameters()).device
    try:
        with torch.no_grad():
            model(pixel_values=torch.zeros(1, preparation.channels, *size, device=device))
    except Exception as error:  # each model raises errors of its own
        why = f"its image processor makes images of {size[0]} x {size[1]} pixels"
        raise InputError.of("model.path", source, f"one for the model's size, {image_size}", why) from error


def say_what_is_used(source: str, image_size: Any) -> None:
    """Logs how images are prepared for a model without an image processor."""
    size = "keep their size" if image_size is None else f"are scaled to {image_size} x {image_size} pixels"
    log.warning("%s has no preprocessor_config.json: images %s, with values in [0, 1]", last_name(source), size)


def _set_missing_sizes(processor: Any, settings: Mapping[str, Any], image_size: Any) -> None:
    """Gives a processor whose file names no size the model's size, instead of the usual size of its class."""
    if not isinstance(image_size, int):
        return
    for key in ("size", "crop_size"):
        names = set(dict(getattr(processor, key, None) or {}))
        if key not in settings and names and names <= {"height", "width", "shortest_edge"}:
            setattr(processor, key, dict.fromkeys(sorted(names), image_size))


def _measured(preparation: ImagePreparation, source: str) -> ImagePreparation:
    """Returns the preparation with the size and the figures of its processor, which are compared with what it does."""
    channels, generator = preparation.channels, torch.Generator().manual_seed(0)
    probes = [torch.randint(256, (channels, *shape), generator=generator, dtype=torch.uint8) for shape in SHAPES]
    done = [preparation(probe) for probe in probes]
    size = (done[0].shape[1], done[0].shape[2]) if done[0].shape == done[1].shape else None
    for mean, std in (_stated(preparation), _observed(preparation)):  # the first gives the same bits, if it is right
        found = ImagePreparation(preparation.processor, channels, size, mean, std)
        if all(_equal(found.normalised(image), found.whole(probe)) for image, probe in zip(done, probes, strict=True)):
            return found
    allowed = "one that resizes, crops, scales and normalises images"
    raise InputError.of("model.path", source, allowed, f"its {type(preparation.processor).__name__} does more")


def _equal(image: Tensor, wanted: Tensor) -> bool:
    is_finite = bool(wanted.isfinite().all())
    return image.shape == wanted.shape and is_finite and torch.allclose(image, wanted, atol=1e-4)


def _stated(preparation: ImagePreparation) -> tuple[Figures | None, Figures | None]:
    """Returns the mean and the standard deviation that a processor states, for pixels in [0, 1]."""
    processor = preparation.processor
    unit = 255 * processor.rescale_factor if processor.do_rescale else 255.0
    if not processor.do_normalize or processor.image_mean is None:
        return (None, None) if unit == 1 else ((0.0,), (1 / unit,))
    mean, std = np.atleast_1d(processor.image_mean), np.atleast_1d(processor.image_std)
    return tuple((mean / unit).tolist()), tuple((std / unit).tolist())


def _observed(preparation: ImagePreparation) -> tuple[Figures, Figures]:
    """Returns the mean and the standard deviation that turn a black and a white image into what a processor makes."""
    black, white = (
        preparation.whole(torch.full((preparation.channels, *SHAPES[0]), level, dtype=torch.uint8)).double()
        for level in (0, 255)
    )
    middle = black.shape[1] // 2, black.shape[2] // 2
    low, high = black[:, *middle], white[:, *middle]
    return tuple((-low / (high - low)).tolist()), tuple((1 / (high - low)).tolist())
