"""Export of changes of the base with an adapter: as further components if their factors are known, else as weights."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from flt.protocol.layout import Layer, Layout
from flt.protocol.state import BaseState

Factors = tuple[Tensor, Tensor]


def with_change(layout: Layout, base: BaseState, tensors: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], list[str]]:
    """Returns an adapter for the initial base, and the names of the weights whose last values must replace the base's.

        W0 + sum_v B_v A_v + s B A = W0 + s [B, B_1 / s, ..] [A; A_1; ..]

    If all changes of a layer are factors, the layer gets r + sum_v r_v components and no weight of the base is
    exported. The equation holds up to rounding, as always if a product isn't added to the weight first.

    Args:
        layout: Names and roles of the adapter's tensors.
        base: Versions of the base.
        tensors: Tensors of the adapter and the head.
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
    """Returns the changes (out, r_v), (r_v, in) of a layer's weight, oldest first; None if one of them is a value."""
    changes = [delta.tensors[layer.base] for delta in base.recent if layer.base in delta.tensors]
    if layer.base in base.folded or any(len(change) == 1 for change in changes):
        return None
    return [layer.stored(change[0], change[1]) for change in changes]
