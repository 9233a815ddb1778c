"""Bottleneck adapters (Houlsby et al., arXiv 1902.00751). Each block gets two small networks.

The head is trained together with the adapters.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from torch import Tensor, nn

from flt.core.errors import InputError
from flt.models.adapters.sublayers import bottleneck, prepare
from flt.protocol.layout import Layout

STD = 0.01
"""Standard deviation of the initial weights. Their distribution is truncated at two standard deviations.

With these small weights, an adapter is at first close to the identity function (section 2.1 of the paper).
"""


@dataclasses.dataclass
class HoulsbySettings:
    """Settings of the bottleneck adapters, A(Z) = Z + GELU(Z U + b1) D + b2.

    Each block has one adapter after attention and one after feed-forward, each with its own weights. For L blocks with
    activations of size H, the adapters have 2 L (2 H r + r + H) parameters: 304,320 for H = 768, L = 6, r = 16. Layer
    norms stay frozen here, whereas the paper trains them.

    Attributes:
        name: Always ``houlsby``.
        rank: r, the width of the bottleneck.
        head: Name of the module whose weights are all trained. The string ``"none"`` means no module. If None, the
            classifier and all layers before it that have no pre-trained weights are trained. Such a layer may be a
            pooler or DistilBERT's ``pre_classifier``.
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
        """Replaces the output Z (batch, time, H) of a sub-layer by A(Z). Forward hook."""
        return bottleneck(output, self.u, self.d, self.b1, self.b2)


def attach(module: nn.Module, settings: HoulsbySettings, seed: int, layers: str = "all") -> Layout:
    """Freezes a module and adds two adapters to each of its blocks. Returns the module's layout.

    Args:
        module: The module, changed in place.
        settings: Width of the bottlenecks and name of the head.
        seed: Seed of the adapter's initial weights. The global random generators aren't changed.
        layers: With ``all``, all blocks are adapted; with ``top<k>``, only the k uppermost blocks.

    Raises:
        InputError: The model's type isn't supported, or the configured head or blocks don't exist.
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
