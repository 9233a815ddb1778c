"""Sizes of messages in bytes, and the range in which training can move them."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from flt.algorithm.compression.allocation import cost
from flt.algorithm.recipe import Recipe
from flt.protocol.layout import Layout
from flt.protocol.messages import Ids, PackedPayload, PackedUpdate, Payload, Update, encoded_size
from flt.protocol.quantise import BITS
from flt.protocol.quantised_components import vectors

SHORTEST, LONGEST = 0.0, -1.2345678901234567e-100
"""Numbers with the shortest and the longest text in JSON: 3 and 24 characters."""
SLACK = 64
"""Largest number of bytes by which names, ids and padding of a quantised message vary, besides its components."""

PER_LAYER = 16
"""Largest number of bytes by which a layer's ids, shapes and offsets vary where layers share components out."""


@dataclasses.dataclass(frozen=True)
class Size:
    """Number of bytes of messages.

    Attributes:
        bytes: Number of bytes if all metrics have texts of the usual length.
        least: Smallest number that training can lead to.
        most: Largest number that training can lead to.
    """

    bytes: int = 0
    least: int = 0
    most: int = 0

    def __add__(self, other: Size) -> Size:
        return Size(self.bytes + other.bytes, self.least + other.least, self.most + other.most)


NOTHING = Size()


def _scopes(recipe: Recipe) -> tuple[str, str]:
    return getattr(recipe.selection, "scope", ""), getattr(recipe.schedule, "allocation", "")


class Sizes:
    """Measures messages with the run's codec.

    The values in tensors never change a size. The range has three causes. The texts of metrics have 3 to 24 characters
    (:data:`SHORTEST`, :data:`LONGEST`). Where scores select components, their ids have one digit or more. And a
    quantised message is filled up to its budget, except for less than the price of one further step of precision.
    Where scores share components out over the layers, shapes and offsets have other digits, and layers of different
    widths also have other tensors.

    Args:
        layout: Names and roles of the server's tensors.
        recipe: Parts of the method.
    """

    def __init__(self, layout: Layout, recipe: Recipe) -> None:
        self.layout = layout
        factors = [name for layer in layout.layers.values() for name in (layer.a, layer.b)]
        lengths = [[length for _, length in vectors(layout, factors, layer)] for layer in layout.layers]
        widths = [4 * sum(each) for each in lengths] or [0]
        self._shared_out = "global" in _scopes(recipe)
        self._swap = max(widths) - min(widths) if self._shared_out else 0
        self._step = max((cost(each, BITS[-1]) - cost(each, BITS[-2]) for each in lengths), default=0) + SLACK

    def of_payload(self, payload: Payload) -> Size:
        """Returns the size of a payload."""
        size = least = most = encoded_size(payload)
        if self._is_long(payload.held) or self._is_long(payload.kept):
            first, last = (
                dataclasses.replace(payload, held=self._ids(payload.held, end), kept=self._ids(payload.kept, end))
                for end in (False, True)
            )
            least, most = encoded_size(first), encoded_size(last)
        room = self._room(payload.held, isinstance(payload, PackedPayload)) + self._uneven(payload.kept)
        return Size(size, least - room, most + room)

    def of_update(self, update: Update) -> Size:
        """Returns the size of an update."""
        ends = [
            dataclasses.replace(update, metrics=dict.fromkeys(update.metrics, number)) for number in (SHORTEST, LONGEST)
        ]
        if self._is_long(update.kept):
            ends = [
                dataclasses.replace(message, kept=self._ids(message.kept, last), scores=self._scores(message, last))
                for message, last in zip(ends, (False, True), strict=True)
            ]
        least, most = map(encoded_size, ends)
        room = self._room(update.kept, isinstance(update, PackedUpdate))
        return Size(encoded_size(update), least - room, most + room)

    def _room(self, components: Mapping[str, Ids], packed: bool) -> int:
        """Returns the bytes by which what scores decide can change the size of a message with these components."""
        uneven = self._uneven(components)
        swapped = self._swap * sum(map(len, components.values())) if uneven else 0
        return (self._step if packed else 0) + swapped + uneven

    def _uneven(self, components: Mapping[str, Ids]) -> int:
        """Returns the bytes by which ids, shapes and offsets vary if scores share components out over the layers."""
        left_out = any(len(ids) < self.layout.layers[name].rank for name, ids in components.items())
        return PER_LAYER * len(components) + SLACK if self._shared_out and left_out else 0

    def _is_long(self, components: Mapping[str, Ids]) -> bool:
        """Returns whether ids of two digits are possible, and some components are left out."""
        ranks = {name: self.layout.layers[name].rank for name in components}
        return any(ranks[name] > 10 and len(ids) < ranks[name] for name, ids in components.items())

    def _ids(self, components: Mapping[str, Ids], last: bool) -> dict[str, Ids]:
        """Returns as many ids in each layer: those with the longest or with the shortest texts."""
        ranks = {name: self.layout.layers[name].rank for name in components}
        return {
            name: tuple(range(ranks[name]))[-len(ids) :] if last and ids else tuple(range(len(ids)))
            for name, ids in components.items()
        }

    def _scores(self, update: Update, last: bool) -> dict[str, Any]:
        ids = self._ids({name: ids for name, (ids, _) in update.scores.items()}, last)
        return {name: (ids[name], values) for name, (_, values) in update.scores.items()}
