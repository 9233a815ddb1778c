"""The embedded backbone, a small vision transformer that flt itself pre-trains on the digits 0-4 within seconds.

A first run can therefore learn the digits 5-9 with a useful frozen backbone, without a download.
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

from flt.core.cache import move_into_place
from flt.core.cache_folders import folder as cache_folder
from flt.core.cache_folders import unusable
from flt.core.files import PRIVATE_FOLDER
from flt.core.locks import hold
from flt.core.quiet import quiet_transformers

log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Pretraining:
    """Settings of the pre-training of an embedded backbone. If a field changes, a new backbone is trained."""

    classes: tuple[int, ...] = (0, 1, 2, 3, 4)
    steps: int = 1100
    batch: int = 48
    lr: float = 1e-3
    weight_decay: float = 0.05
    rotation: float = 0.1
    """Largest rotation, in radians."""
    scale: float = 0.1
    """Largest change of the size. With 0.1, an image is scaled by a factor between about 0.9 and 1.1."""
    shift: float = 0.25
    """Largest shift, as a fraction of half the image: in an image of 8 x 8 pixels, 0.25 is one pixel."""
    seed: int = 0
    code: int = 1
    """Version of the pre-training code. Increase it with every change to the code that alters the weights."""


PRETRAINING = Pretraining()
# The model has only two narrow blocks, because a larger model gains little from pre-training: with random weights, a
# larger model learns the digits 5-9 nearly as well as with pre-trained weights.
ARCHITECTURE: dict[str, Any] = {
    "image_size": 8, "num_channels": 1, "patch_size": 2, "hidden_size": 64, "num_hidden_layers": 2,
    "num_attention_heads": 4, "intermediate_size": 64,
}  # fmt: skip


def embedded(cache: Path | None = None) -> Path:
    """Returns the folder of the embedded backbone. The first call pre-trains the backbone; later calls find it cached.

    Args:
        cache: Folder of the cached backbones. If None, the folder is `$FLT_CACHE`, else `$XDG_CACHE_HOME/flt`, else
            `~/.cache/flt`.

    Returns:
        A folder that from_pretrained can load. Its name contains a digest of the settings, the architecture and the
        library versions.

    Raises:
        InputError: If the cache can't be read or written.
    """
    depends_on = [dataclasses.asdict(PRETRAINING), ARCHITECTURE]
    return pretrained_folder(cache or cache_folder(), "embedded-vit", depends_on, _pretrain, "about 10 s")


def pretrained_folder(
    root: Path, name: str, depends_on: list[Any], pretrain: Callable[[], transformers.PreTrainedModel], duration: str
) -> Path:
    """Returns the folder of a backbone. The first call pre-trains the backbone; later calls find it in the cache.

    Args:
        root: Folder of the cached backbones.
        name: Beginning of the folder's name.
        depends_on: Everything that determines the weights, except the library versions.
        pretrain: Function that pre-trains the model and returns it.
        duration: Usual duration of the pre-training, as text for the log.

    Raises:
        InputError: If the cache can't be read or written.
    """
    versions = [torch.__version__, transformers.__version__]
    digest = hashlib.sha256(json.dumps([*depends_on, *versions], sort_keys=True).encode()).hexdigest()[:12]
    folder = root / f"{name}-{digest}"
    try:
        while not hold(folder):  # a loop, because another process may remove the folder before this one uses it
            log.info("pre-training the embedded backbone, once, in %s; it is kept in %s", duration, folder)
            _write(folder, pretrain)
    except OSError as error:
        raise unusable(root, error) from error
    with contextlib.suppress(OSError):  # a read-only cache can't be marked, but works
        os.utime(folder)  # marks the folder as just used
    return folder


def _write(folder: Path, pretrain: Callable[[], transformers.PreTrainedModel]) -> None:
    """Pre-trains a model and writes its folder. The folder appears only when it is complete.

    All users may read it if the umask allows it, because it tells nothing about the data of clients.
    """
    folder.parent.mkdir(mode=PRIVATE_FOLDER, parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".writing-") as scratch, quiet_transformers():
        built = Path(scratch) / "model"
        pretrain().save_pretrained(built)
        for path in built.glob("*.safetensors"):  # safetensors lets only the owner read its files
            path.chmod((built / "config.json").stat().st_mode)
        move_into_place(built, folder)


def _pretrain() -> transformers.PreTrainedModel:
    from flt.data.digits import digits

    images, labels = map(torch.as_tensor, digits(PRETRAINING.classes))
    return pretrain_vit(PRETRAINING, ARCHITECTURE, images, labels)


def pretrain_vit(
    settings: Pretraining, architecture: dict[str, Any], images: Tensor, labels: Tensor
) -> transformers.PreTrainedModel:
    """Trains a vision transformer on randomly shifted, rotated and scaled images.

    The training uses one thread. Otherwise the last bits of the weights would depend on the number of threads.

    Args:
        settings: Length of the training, optimiser, augmentation and seed.
        architecture: Fields of the transformer's config.
        images: Images (n, channels, height, width) with values in [0, 1].
        labels: Labels (n,), integers in 0..K-1 for K classes.
    """
    threads = torch.get_num_threads()
    with isolate_rng():
        torch.manual_seed(settings.seed)
        torch.set_num_threads(1)
        try:
            config = transformers.ViTConfig(**architecture)
            config.num_labels = len(settings.classes)
            return _fit(settings, transformers.ViTForImageClassification(config), images, labels)
        finally:
            torch.set_num_threads(threads)


def _fit(
    settings: Pretraining, model: transformers.PreTrainedModel, images: Tensor, labels: Tensor
) -> transformers.PreTrainedModel:
    optimizer = torch.optim.AdamW(model.parameters(), lr=settings.lr, weight_decay=settings.weight_decay, fused=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, settings.lr, total_steps=settings.steps, pct_start=0.2)
    for _ in range(settings.steps):
        index = torch.randint(len(images), (settings.batch,))
        loss = F.cross_entropy(model(_augment(settings, images[index])).logits, labels[index])
        loss.backward()
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
    return model.eval()


def _augment(settings: Pretraining, images: Tensor) -> Tensor:
    """Rotates, scales and shifts each image by its own random amounts. Images: (batch, channels, height, width)."""
    angle, zoom, right, down = torch.rand(4, len(images)) * 2 - 1
    angle, zoom = settings.rotation * angle, 1 + settings.scale * zoom
    cos, sin = zoom * angle.cos(), zoom * angle.sin()
    first = torch.stack([cos, -sin, settings.shift * right], dim=1)
    second = torch.stack([sin, cos, settings.shift * down], dim=1)
    grid = F.affine_grid(torch.stack([first, second], dim=1), list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, align_corners=False)
