"""Bottleneck adapters (Houlsby et al., arXiv 1902.00751): two small networks in each block, trained with the head."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from torch import Tensor, nn

from flt.core.errors import InputError
from flt.models.adapters.sublayers import bottleneck, prepare
from flt.protocol.layout import Layout

STD = 0.01
"""Standard deviation of the initial weights, truncated at two deviations.

The adapter thus begins near the identity (section 2.1).
"""


@dataclasses.dataclass
class HoulsbySettings:
    """Settings of the adapters Z + GELU(Z U + b1) D + b2 after attention and feed-forward, each with its own weights.

    Number of parameters: 2 L (2 H r + r + H), which is 304,320 for H = 768, L = 6, r = 16. Layer norms stay frozen; in
    the paper they train.

    Attributes:
        name: Always ``houlsby``.
        rank: r, the width of the bottleneck.
        head: Name of the module that is trained whole. None: the classifier and the layers before it that the
            checkpoint lacks (DistilBERT's ``pre_classifier``, a pooler). ``none``: no head.
    """

    name: str = "houlsby"
    rank: int = 16
    head: str | None = None

    def __post_init__(self) -> None:
        if self.rank < 1:
            raise InputError.of("adapter.rank", self.rank, "an integer >= 1")


class Bottleneck(nn.Module):
    """One bottleneck adapter.

    Args:
        width: H, the size of the activations.
        rank: r, the width of the bottleneck.
    """

    def __init__(self, width: int, rank: int) -> None:
        super().__init__()
        self.u, self.b1 = nn.Parameter(torch.empty(width, rank)), nn.Parameter(torch.zeros(rank))
        self.d, self.b2 = nn.Parameter(torch.empty(rank, width)), nn.Parameter(torch.zeros(width))
        for weight in (self.u, self.d):
            nn.init.trunc_normal_(weight, std=STD, a=-2 * STD, b=2 * STD)

    def forward_hook(self, place: nn.Module, inputs: Any, output: Tensor) -> Tensor:
        """Replaces a sub-layer's output Z (batch, time, H) by A(Z), as a forward hook."""
        return bottleneck(output, self.u, self.d, self.b1, self.b2)


def attach(module: nn.Module, settings: HoulsbySettings, seed: int, layers: str = "all") -> Layout:
    """Freezes a module and puts two adapters into each of its blocks. Returns the role of each tensor.

    Args:
        module: The module, changed in place.
        settings: Width of the bottlenecks and name of the head.
        seed: Seed of the initial weights. The global generator isn't changed.
        layers: ``all``, or ``top<k>`` for the k uppermost blocks only.

    Raises:
        InputError: The model's type isn't supported, or the head or blocks don't exist.
    """
    host = prepare(module, settings.name, settings.head, layers)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        for block, places in zip(host.blocks, host.places, strict=True):
            for name, place in zip(("houlsby_attention", "houlsby_feed_forward"), places, strict=True):
                adapter = Bottleneck(host.width, settings.rank)
                block.add_module(name, adapter)
                place.register_forward_hook(adapter.forward_hook)
    return Layout.of(module, host.head)
