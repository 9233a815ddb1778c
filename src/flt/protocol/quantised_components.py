"""Quantisation and dequantisation of the rank-1 components of a message (HAFLQ, arXiv 2411.06581v2)."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from flt.core.errors import InputError
from flt.protocol.layout import LORA_FACTORS, Layout
from flt.protocol.messages import Ids, Packed, PackedPayload, PackedUpdate, Payload, Plan, Update
from flt.protocol.quantise import BITS, decoded, encoded, packed_size, scales_of

Place = tuple[str, int]
"""(layer, position) of a component in a message.

The position is the component's index among those components of the layer that the message contains. It isn't the
component id.
"""


def pack_update(update: Update, layout: Layout, bits: Mapping[Place, int]) -> PackedUpdate:
    """Quantises the components of an update. Components with 0 bits are left out.

    Args:
        update: Update from a local fit.
        layout: Names and roles of the tensors.
        bits: Number of bits per value of each component: 0, 2, 4, 8, 16 or 32.
    """
    kept = _without_dropped(update.kept, bits)
    packed = _pack(update.tensors, layout, bits)
    return PackedUpdate(**{**_fields(update), "tensors": _others(update, layout), "kept": kept}, packed=packed)


def pack_payload(payload: Payload, layout: Layout, bits: Mapping[Place, int]) -> PackedPayload:
    """Quantises the components of a payload. Components with 0 bits are removed from ``held`` and ``kept``."""
    held = _without_dropped(payload.held, bits)
    kept = {
        layer: tuple(component for component in ids if component in held[layer]) for layer, ids in payload.kept.items()
    }
    packed = _pack(payload.tensors, layout, bits)
    changed = {"tensors": _others(payload, layout), "held": held, "kept": kept}
    return PackedPayload(**{**_fields(payload), **changed}, packed=packed)


def unpack_update(update: Update, layout: Layout, plan: Plan) -> Update:
    """Turns the quantised components of an update back into float32. Returns any other update unchanged.

    Args:
        update: Update as received by the server.
        layout: Names and roles of the tensors.
        plan: Plan of the round, which says which tensors the update contains.

    Raises:
        InputError: The bits, scales or codes don't fit the components. The message names the client and the job.
    """
    if not isinstance(update, PackedUpdate):
        return update
    names = layout.names(set(LORA_FACTORS) & set(plan.train) - set(plan.private))
    components = _unpack(
        f"update of client {update.job[0]}, job {update.job[1]}", update.packed, layout, names, update.kept
    )
    return Update(**{**_fields(update), "tensors": {**update.tensors, **components}})


def unpack_payload(payload: Payload, layout: Layout) -> Payload:
    """Turns the quantised components of a payload back into float32. Returns any other payload unchanged.

    Raises:
        InputError: The bits, scales or codes don't fit the components.
    """
    if not isinstance(payload, PackedPayload):
        return payload
    names = layout.names(set(LORA_FACTORS) - set(payload.plan.private))
    components = _unpack(f"payload of client {payload.job[0]}", payload.packed, layout, names, payload.held)
    return Payload(**{**_fields(payload), "tensors": {**payload.tensors, **components}})


def vectors(layout: Layout, names: Sequence[str], layer: str) -> list[tuple[str, int]]:
    """Returns (tensor name, length) for each vector of a component. The row of A comes before the column of B.

    A vector is left out if its tensor isn't in the message, because the tensor is private or wasn't trained.

    Args:
        layout: Layout of the module.
        names: Names of the tensors in the message.
        layer: Name of the component's layer.
    """
    about = layout.layers[layer]
    found = [name for name in (about.a, about.b) if name in names]
    return [(name, layout.entries[name].shape[1 - layout.axis(name)]) for name in found]


def _pack(tensors: Mapping[str, Tensor], layout: Layout, bits: Mapping[Place, int]) -> Packed:
    names, number = list(tensors), {layer: i for i, layer in enumerate(layout.layers)}
    chosen, scales, codes = [], [], [np.zeros(0, np.uint8)]
    for layer, position in sorted(bits, key=lambda place: (number[place[0]], place[1])):
        precision = bits[layer, position]
        if not precision:
            continue
        chosen.append(precision)
        for name, _ in vectors(layout, names, layer):
            vector = tensors[name].select(layout.axis(name), position)
            data, scale = encoded(vector.float().numpy(), precision)
            scales += scale
            codes.append(data)
    return Packed(
        torch.tensor(chosen, dtype=torch.uint8),
        torch.tensor(scales, dtype=torch.float32),
        torch.from_numpy(np.concatenate(codes)),
    )


def _unpack(
    who: str, packed: Packed, layout: Layout, names: Sequence[str], components: Mapping[str, Ids]
) -> dict[str, Tensor]:
    places = [(layer, at) for layer in layout.layers for at in range(len(components.get(layer, ())))]
    chosen = packed.bits.tolist()
    if len(chosen) != len(places) or not set(chosen) <= set(BITS):
        raise InputError.of(f"{who}: bits", chosen, f"{len(places)} precisions out of {BITS}")
    parts = [(name, length, bits) for (layer, _), bits in zip(places, chosen, strict=True)
             for name, length in vectors(layout, names, layer)]  # fmt: skip
    expected = {
        "scales": sum(scales_of(bits) for _, _, bits in parts),
        "codes": sum(packed_size(length, bits) for _, length, bits in parts),
    }
    for what, size in expected.items():
        if (found := getattr(packed, what).numel()) != size:
            raise InputError.of(f"{who}: {what}", found, str(size), "another number than its components need")
    rows: dict[str, list[Tensor]] = {name: [] for name in names}
    for name, vector in _decoded(packed, parts):
        rows[name].append(vector)
    no_components = dict.fromkeys(layout.layers, ())
    return {
        name: torch.stack(found, dim=layout.axis(name)) if found else torch.zeros(layout.shape(name, no_components))
        for name, found in rows.items()
    }


def _decoded(packed: Packed, parts: Sequence[tuple[str, int, int]]) -> Iterator[tuple[str, Tensor]]:
    codes, scales, at = packed.codes.numpy(), iter(packed.scales.numpy()), 0
    for name, length, bits in parts:
        size = packed_size(length, bits)
        scale = next(scales) if scales_of(bits) else np.float32(1)
        yield name, torch.from_numpy(decoded(codes[at : at + size], length, bits, scale))
        at += size


def _others(message: Payload | Update, layout: Layout) -> dict[str, Tensor]:
    # A head's tensors may have different names on server and client, so they are found by excluding LoRA factors.
    components = layout.names(LORA_FACTORS)
    return {name: tensor for name, tensor in message.tensors.items() if name not in components}


def _without_dropped(components: Mapping[str, Ids], bits: Mapping[Place, int]) -> dict[str, Ids]:
    return {
        layer: tuple(component for at, component in enumerate(ids) if bits[layer, at])
        for layer, ids in components.items()
    }


def _fields(message: Any) -> dict[str, Any]:
    """Returns all fields of a message except ``packed``."""
    return {field.name: getattr(message, field.name) for field in dataclasses.fields(message) if field.name != "packed"}
