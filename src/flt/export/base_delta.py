"""Export of changed base weights with a LoRA adapter: as additional components if possible, else as whole weights."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from flt.protocol.entries import Layer
from flt.protocol.layout import Layout
from flt.protocol.state import BaseState

Factors = tuple[Tensor, Tensor]


def with_change(layout: Layout, base: BaseState, tensors: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], list[str]]:
    """Converts an adapter for the changed base into an adapter for the initial base.

        W0 + sum_v B_v A_v + s B A = W0 + s [B, B_1 / s, ..] [A; A_1; ..]

    Here W0 is the initial weight of a layer, and s is the layer's scale. B_v A_v, a product with r_v components, is the
    change of W0 in base version v. If all changes of W0 are such products, the adapter's layer gets r + sum_v r_v
    components instead of r. Otherwise the layer stays the same, and the current value of the base weight must be
    exported too. The equation holds up to rounding.

    Args:
        layout: Names and roles of the adapter's tensors.
        base: Versions of the base.
        tensors: Tensors of the adapter and the head, by name.

    Returns:
        The tensors of the new adapter and the head, and the names of the base weights that must be exported too.
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
    """Returns the two factors (out, r_v) and (r_v, in) of each change of a layer's base weight, oldest change first.

    Returns None if at least one of the changes is a new value of the weight instead of a product.
    """
    changes = [delta.tensors[layer.base] for delta in base.recent if layer.base in delta.tensors]
    if layer.base in base.folded or any(len(change) == 1 for change in changes):
        return None
    return [layer.stored(change[0], change[1]) for change in changes]
