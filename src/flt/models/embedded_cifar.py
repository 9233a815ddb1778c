"""The embedded backbone for colour images of 32 x 32: a small vision transformer that learns half of CIFAR-100.

CIFAR-10's classes are none of CIFAR-100's, and so are new to it, as CIFAR-100's other 50 are.
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
from flt.models.embedded import Pretraining, kept, trained

MIRROR = "cifar100.npz"
PRETRAINING = Pretraining(classes=tuple(range(50)), steps=1500, batch=64, shift=0.2)
EXAMPLES = 5000  # most of them
ARCHITECTURE: dict[str, Any] = {
    "image_size": 32, "num_channels": 3, "patch_size": 4, "hidden_size": 96, "num_hidden_layers": 3,
    "num_attention_heads": 4, "intermediate_size": 192,
}  # fmt: skip


def embedded_cifar(cache: Path | None = None) -> Path:
    """Folder of the embedded backbone for colour images, which the first call pre-trains; the next ones find it.

    Args:
        cache: Where backbones are kept; None is as for :func:`flt.models.embedded.embedded`.

    Raises:
        InputError: If CIFAR-100 is nowhere to be had, or the cache can't be written.
    """
    source = "mirror" if (Path(os.environ.get("FLT_DATA", "")) / MIRROR).is_file() else "hub"
    made_by = [dataclasses.asdict(PRETRAINING), ARCHITECTURE, EXAMPLES, source]
    return kept(cache or cache_folder(), "embedded-cifar", made_by, _pretrain, "two to four minutes")


def _pretrain() -> transformers.PreTrainedModel:
    return trained(PRETRAINING, ARCHITECTURE, *_images(PRETRAINING.classes))


def _images(classes: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """Training images of some classes (n, 3, 32, 32) in [0, 1], and their labels (n,)."""
    from flt.data import encode, sources

    cfg = sources.DataConfig(
        name="cifar100",
        path="uoft-cs/cifar100",
        local=MIRROR,
        classes=list(classes),
        validation=0.0,
        train_examples=EXAMPLES,
    )
    try:
        raw = sources.load(cfg)
    except InputError as error:
        allowed = f"{MIRROR} in the folder $FLT_DATA, or a network"
        raise InputError.of("model", "embedded_cifar", allowed, f"it learns from CIFAR-100, and {error}") from error
    examples = encode.encode_images(raw.splits["train"], raw, ARCHITECTURE["image_size"], ARCHITECTURE["num_channels"])
    images = torch.stack([examples[i]["pixel_values"] for i in range(len(examples))])
    return images, torch.as_tensor(examples.labels)
