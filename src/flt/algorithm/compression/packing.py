"""Quantisation of the messages of one client within a budget of bytes, and the scores that share out the budget."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar

import torch
from torch import Tensor

from flt.algorithm.compression.allocation import DROPPED, allocate
from flt.core.errors import InputError
from flt.protocol.layout import LORA_FACTORS, Layout
from flt.protocol.messages import Ids, Payload, Update, encoded_size
from flt.protocol.quantise import BITS
from flt.protocol.quantised_components import Place, vectors

M = TypeVar("M", Payload, Update)


def pack_within(
    limit: int | None,
    layout: Layout,
    messages: list[M],
    places: Sequence[Mapping[Place, Sequence[int]]],
    scores: Sequence[Mapping[Place, float]],
    close: Callable[[M, Layout, Mapping[Place, int]], M],
) -> list[M]:
    """Quantises the messages so that their encoded bytes stay within the limit.

    The bytes of names, ids and sizes depend on the allocation and are only known after encoding. While the encoded
    messages exceed the limit, the components' budget is therefore reduced by the excess, and the messages are encoded
    again.

    Args:
        limit: Largest allowed size of all messages together, in bytes. If None, all components get 32 bits.
        layout: Names and roles of the tensors.
        messages: Messages of one client.
        places: For each message and each of its components, the lengths of the component's vectors.
        scores: For each message, the score of each component.
        close: Function that quantises one message, given the bits of each component.

    Raises:
        InputError: The messages exceed the limit even without any component.
    """

    def closed(bits: Sequence[Mapping[Place, int]]) -> list[M]:
        return [close(message, layout, chosen) for message, chosen in zip(messages, bits, strict=True)]

    if limit is None:
        return closed([dict.fromkeys(components, BITS[-1]) for components in places])
    besides = size_besides(layout, messages, places, close)
    if besides > limit:
        who = f"client {messages[0].job[0]}"
        raise InputError.of("compression", f"{limit} bytes for {who}", f"at least the {besides} besides its components")
    # The order decides between components with equal scores. The first components of all layers and jobs precede all
    # second components.
    order = sorted(
        (at, job, number, layer)
        for job, components in enumerate(places)
        for number, (layer, at) in enumerate(components)
    )
    weights = [scores[job][layer, at] for at, job, _, layer in order]
    lengths = [places[job][layer, at] for at, job, _, layer in order]
    room = limit - besides
    while True:
        bits: list[dict[Place, int]] = [{} for _ in messages]
        for (at, job, _, layer), chosen in zip(order, allocate(weights, lengths, room), strict=True):
            bits[job][layer, at] = chosen
        packed = closed(bits)
        if (excess := total_size(packed) - limit) <= 0:
            return packed
        room -= excess


def size_besides(
    layout: Layout,
    messages: Sequence[M],
    places: Sequence[Mapping[Place, Sequence[int]]],
    close: Callable[[M, Layout, Mapping[Place, int]], M],
) -> int:
    """Returns the size of the messages in bytes if all components are left out."""
    return total_size(
        [close(m, layout, dict.fromkeys(components, DROPPED)) for m, components in zip(messages, places, strict=True)]
    )


def total_size(messages: Sequence[Payload] | Sequence[Update]) -> int:
    """Returns the number of bytes of the encoded messages together."""
    return sum(encoded_size(message) for message in messages)


def places_of(
    layout: Layout, message: Payload | Update, components: Mapping[str, Sequence[int]]
) -> dict[Place, list[int]]:
    """Returns, for each component of a message, the lengths of its vectors in this message.

    Raises:
        InputError: A tensor has another number of components than the message says. A transform has changed it.
    """
    names = list(message.tensors)
    for name in set(layout.names(LORA_FACTORS)) & set(names):
        found, components_of = tuple(message.tensors[name].shape), components.get(layout.entries[name].layer, ())
        if found != layout.shape(name, {layout.entries[name].layer: tuple(components_of)}):
            who = f"message of client {message.job[0]}, job {message.job[1]}: {name}"
            raise InputError.of(who, found, f"the {len(components_of)} components of its layer")
    lengths = {layer: [length for _, length in vectors(layout, names, layer)] for layer in components}
    return {(layer, at): lengths[layer] for layer, ids in components.items() for at in range(len(ids))}


def measured_scores(layout: Layout, update: Update) -> dict[Place, float]:
    """Returns the score of each component of an update. Without measured scores, the score is |b_i| |a_i|.

    A score below 0 counts as 0, and so does one that isn't finite. The server later refuses an update with the latter.
    """
    scores: dict[Place, float] = {}
    for layer, ids in update.kept.items():
        if update.scores:
            known = _by_component(*update.scores.get(layer, ((), torch.zeros(0))))
            values = [known.get(component, 0.0) for component in ids]
        else:
            values = _magnitudes(layout, update, layer)
        scores |= {(layer, at): max(score, 0.0) if math.isfinite(score) else 0.0 for at, score in enumerate(values)}
    return scores


def _by_component(ids: Ids, values: Tensor) -> dict[int, float]:
    return dict(zip(ids, values.flatten().tolist(), strict=False))  # the server refuses unequal numbers


def _magnitudes(layout: Layout, update: Update, layer: str) -> list[float]:
    """Returns |b_i| |a_i| for each component of a layer, or only |b_i| or |a_i| if the other factor isn't sent."""
    norms = [
        update.tensors[name].double().norm(dim=1 - layout.axis(name))
        for name, _ in vectors(layout, list(update.tensors), layer)
    ]
    return torch.stack(norms).prod(dim=0).tolist()


def has_components(layout: Layout, message: Payload | Update) -> bool:
    """Returns whether a message contains rank-1 components."""
    return not set(layout.names(LORA_FACTORS)).isdisjoint(message.tensors)
