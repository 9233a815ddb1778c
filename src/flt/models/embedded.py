"""The embedded backbone: a small vision transformer that learns the digits 0-4 once, in seconds.

It gives a first run a backbone worth freezing for the digits 5-9, without a download.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import logging
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers
from lightning.pytorch.utilities.seed import isolate_rng
from torch import Tensor
from torch.nn import functional as F

from flt.core.cache import folder as cache_folder
from flt.core.cache import move_into_place
from flt.core.errors import InputError
from flt.core.quiet import quiet_transformers

log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Pretraining:
    """How the embedded backbone comes about; another value of any field is another backbone."""

    classes: tuple[int, ...] = (0, 1, 2, 3, 4)
    steps: int = 1100
    batch: int = 48
    lr: float = 1e-3
    weight_decay: float = 0.05
    rotation: float = 0.1
    """Largest rotation, in radians."""
    scale: float = 0.1
    shift: float = 0.25
    """Largest shift, as a share of half the image: 0.25 is one pixel of eight."""
    seed: int = 0
    code: int = 1
    """Version of the code below: count it up whenever the weights come out different."""


PRETRAINING = Pretraining()
# Two narrow layers: wider or deeper ones learn the digits 5-9 from random weights nearly as well.
ARCHITECTURE: dict[str, Any] = {
    "image_size": 8, "num_channels": 1, "patch_size": 2, "hidden_size": 64, "num_hidden_layers": 2,
    "num_attention_heads": 4, "intermediate_size": 64,
}  # fmt: skip


def embedded(cache: Path | None = None) -> Path:
    """Folder of the embedded backbone, which the first call pre-trains; the next ones find it.

    Args:
        cache: Where backbones are kept; None is `$FLT_CACHE`, else `$XDG_CACHE_HOME/flt`, else `~/.cache/flt`.

    Returns:
        A folder that from_pretrained takes. Its name tells what made it: settings, architecture and versions.

    Raises:
        InputError: If the cache can't be written.
    """
    made_by = [dataclasses.asdict(PRETRAINING), ARCHITECTURE]
    return kept(cache or cache_folder(), "embedded-vit", made_by, _pretrain, "about 10 s")


def kept(
    root: Path, name: str, made_by: list[Any], pretrain: Callable[[], transformers.PreTrainedModel], takes: str
) -> Path:
    """Folder of a backbone that the first call pre-trains; the next ones find it.

    Args:
        root: Where backbones are kept.
        name: Beginning of the folder's name.
        made_by: What the weights depend on, besides versions.
        pretrain: Makes the model.
        takes: How long, in words.

    Raises:
        InputError: If the cache can't be written.
    """
    versions = [torch.__version__, transformers.__version__]
    digest = hashlib.sha256(json.dumps([*made_by, *versions], sort_keys=True).encode()).hexdigest()[:12]
    folder = root / f"{name}-{digest}"
    if not folder.is_dir():
        log.info("pre-training the embedded backbone, once, in %s; it is kept in %s", takes, folder)
        try:
            _write(folder, pretrain)
        except OSError as error:
            raise InputError.of("FLT_CACHE", root, "a folder that can be written", str(error)) from error
    with contextlib.suppress(OSError):  # a cache that can only be read is of use too
        os.utime(folder)  # when it was last used
    return folder


def _write(folder: Path, pretrain: Callable[[], transformers.PreTrainedModel]) -> None:
    """Pre-trains and writes a folder, whole or not at all."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".writing-") as scratch, quiet_transformers():
        pretrain().save_pretrained(Path(scratch) / "model")
        move_into_place(Path(scratch) / "model", folder)


def _pretrain() -> transformers.PreTrainedModel:
    from flt.data.sources import digits

    images, labels = map(torch.as_tensor, digits(PRETRAINING.classes))
    return trained(PRETRAINING, ARCHITECTURE, images, labels)


def trained(
    how: Pretraining, architecture: dict[str, Any], images: Tensor, labels: Tensor
) -> transformers.PreTrainedModel:
    """Trains a vision transformer on moved, turned and scaled images, on one thread: the bits don't depend on more.

    Args:
        how: Length and manner.
        architecture: Of the transformer.
        images: In [0, 1] (n, channels, height, width).
        labels: In 0..K-1, for K classes (n,).
    """
    threads = torch.get_num_threads()
    with isolate_rng():
        torch.manual_seed(how.seed)
        torch.set_num_threads(1)
        try:
            config = transformers.ViTConfig(**architecture)
            config.num_labels = len(how.classes)
            return _fit(how, transformers.ViTForImageClassification(config), images, labels)
        finally:
            torch.set_num_threads(threads)


def _fit(
    how: Pretraining, model: transformers.PreTrainedModel, images: Tensor, labels: Tensor
) -> transformers.PreTrainedModel:
    optimizer = torch.optim.AdamW(model.parameters(), lr=how.lr, weight_decay=how.weight_decay, fused=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, how.lr, total_steps=how.steps, pct_start=0.2)
    for _ in range(how.steps):
        index = torch.randint(len(images), (how.batch,))
        loss = F.cross_entropy(model(_moved(how, images[index])).logits, labels[index])
        loss.backward()
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
    return model.eval()


def _moved(how: Pretraining, images: Tensor) -> Tensor:
    """Turns, scales and shifts each image (batch, channels, height, width) by its own random amounts."""
    angle, zoom, right, down = torch.rand(4, len(images)) * 2 - 1
    angle, zoom = how.rotation * angle, 1 + how.scale * zoom
    cos, sin = zoom * angle.cos(), zoom * angle.sin()
    first = torch.stack([cos, -sin, how.shift * right], dim=1)
    second = torch.stack([sin, cos, how.shift * down], dim=1)
    grid = F.affine_grid(torch.stack([first, second], dim=1), list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, align_corners=False)
