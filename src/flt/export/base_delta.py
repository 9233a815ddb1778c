"""The base's change as a part of an adapter: further pairs where its factors are known, else the weight itself."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from flt.protocol.layout import Layer, Layout
from flt.protocol.state import BaseState

Factors = tuple[Tensor, Tensor]


def with_change(layout: Layout, base: BaseState, tensors: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], list[str]]:
    """An adapter for the base as it was given, and the weights that are to be replaced by their last values.

        W0 + sum_v B_v A_v + s B A = W0 + s [B, B_1 / s, ..] [A; A_1; ..]

    So a layer all of whose versions are factors has r + sum_v r_v pairs, and no weight of the base is written. That
    holds up to rounding, as always where a product isn't added to the weight first.

    Args:
        layout: Names and roles of the adapter's tensors.
        base: The versions of the base.
        tensors: The adapter and the head.
    """
    wider, replaced = dict(tensors), set(base.changed())
    for layer in layout.layers.values():
        if layer.base not in replaced or (added := _factors(base, layer)) is None:
            continue
        replaced.remove(layer.base)
        wider[layer.b] = torch.cat([tensors[layer.b], *(left / layer.scale for left, _ in added)], dim=1)
        wider[layer.a] = torch.cat([tensors[layer.a], *(right for _, right in added)])
    return wider, sorted(replaced)


def _factors(base: BaseState, layer: Layer) -> list[Factors] | None:
    """The changes (out, r_v), (r_v, in) of a layer's weight, oldest first; None where one is a value."""
    changes = [delta.tensors[layer.base] for delta in base.recent if layer.base in delta.tensors]
    if layer.base in base.folded or any(len(change) == 1 for change in changes):
        return None
    return [layer.stored(change[0], change[1]) for change in changes]
