"""The embedded backbone for colour images of 32 x 32 pixels. flt itself pre-trains this small vision transformer.

The backbone is pre-trained on 50 classes of CIFAR-100. The other 50 classes don't occur in the pre-training. The
classes of CIFAR-10 don't occur there either, because CIFAR-10 and CIFAR-100 have no class in common.
"""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor

from flt.core.cache import folder as cache_folder
from flt.core.errors import InputError
from flt.models.embedded import Pretraining, pretrain_vit, pretrained_folder

MIRROR = "cifar100.npz"
PRETRAINING = Pretraining(classes=tuple(range(50)), steps=1500, batch=64, shift=0.2)
MAX_EXAMPLES = 5000
ARCHITECTURE: dict[str, Any] = {
    "image_size": 32, "num_channels": 3, "patch_size": 4, "hidden_size": 96, "num_hidden_layers": 3,
    "num_attention_heads": 4, "intermediate_size": 192,
}  # fmt: skip


def embedded_cifar(cache: Path | None = None) -> Path:
    """Returns the folder of the embedded backbone for colour images.

    The first call pre-trains the backbone; later calls find it in the cache.

    Args:
        cache: Folder of the cached backbones. If None, the folder is chosen as in :func:`flt.models.embedded.embedded`.

    Raises:
        InputError: If CIFAR-100 can't be found, or the cache can't be written.
    """
    source = "mirror" if (Path(os.environ.get("FLT_DATA", "")) / MIRROR).is_file() else "hub"
    depends_on = [dataclasses.asdict(PRETRAINING), ARCHITECTURE, MAX_EXAMPLES, source]
    return pretrained_folder(cache or cache_folder(), "embedded-cifar", depends_on, _pretrain, "two to four minutes")


def _pretrain() -> transformers.PreTrainedModel:
    return pretrain_vit(PRETRAINING, ARCHITECTURE, *_images(PRETRAINING.classes))


def _images(classes: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """Returns the training images (n, 3, 32, 32) of the given classes, with values in [0, 1], and their labels (n,)."""
    from flt.data import dataset_sources, encode

    cfg = dataset_sources.DataConfig(
        name="cifar100",
        path="uoft-cs/cifar100",
        local=MIRROR,
        classes=list(classes),
        validation=0.0,
        train_examples=MAX_EXAMPLES,
    )
    try:
        raw = dataset_sources.load(cfg)
    except InputError as error:
        allowed = f"{MIRROR} in the folder $FLT_DATA, or a network"
        raise InputError.of("model", "embedded_cifar", allowed, f"it learns from CIFAR-100, and {error}") from error
    examples = encode.encode_images(raw.splits["train"], raw, ARCHITECTURE["image_size"], ARCHITECTURE["num_channels"])
    images = torch.stack([examples[i]["pixel_values"] for i in range(len(examples))])
    return images, torch.as_tensor(examples.labels)
