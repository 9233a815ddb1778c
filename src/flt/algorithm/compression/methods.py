"""Compression: the precision of the pairs that travel, by importance, under a budget of bytes per client.

HAFLQ's adapter quantisation (arXiv 2411.06581v2); the quantiser, the allocation and what counts are our
reconstruction. A budget holds for exactly what ``comm/bytes_up`` counts: the encoded messages of a client's jobs in one
round, names, indices, scales and scores with them. Only rank-1 pairs are quantised; the head, and whatever else
travels, goes in float32.
"""

from __future__ import annotations

import abc
import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from typing import ClassVar, TypeVar

import torch
from torch import Tensor

from flt.algorithm.base import CompressionPart
from flt.algorithm.compression.allocation import DROPPED, allocate
from flt.core.errors import InputError
from flt.protocol.codec import encoded_size
from flt.protocol.layout import LORA_FACTORS, Layout
from flt.protocol.messages import Ids, Payload, Update
from flt.protocol.packing import Place, closed_payload, closed_update, vectors
from flt.protocol.quantise import BITS

M = TypeVar("M", Payload, Update)


@dataclasses.dataclass(frozen=True)
class NoCompression(CompressionPart):
    """Everything travels in float32."""


@dataclasses.dataclass(frozen=True)
class _Packing(CompressionPart):
    """Pairs are quantised at precisions that allocate a client's budget.

    Up, a pair counts by the score that its client measured, or where clients measure none by |b_i| |a_i|; down, by its
    group's score. Pairs for which the lowest precision is too much stay away, those of the lowest scores first: they
    are then not among the update's pairs, and the aggregate takes each pair over those who sent it. A client may so
    come to send no pair at all. A budget below what must travel besides the pairs is refused; a round in which no pair
    travels is left alone.

    What the server averages stays exact: only what a client is sent is rounded. So a pair that a client didn't send
    counts as the server's own where it is padded, and not as what the client was sent.

    Attributes:
        down: What the server sends is quantised too.
    """

    down: bool = False

    packs: ClassVar[bool] = True
    works_on: ClassVar[tuple[str, ...]] = LORA_FACTORS

    @abc.abstractmethod
    def limit(self, client: int, messages: Sequence[Update] | Sequence[Payload], besides: int) -> int | None:
        """The client's budget in bytes for all of these float32 messages together; None: as many as it takes.

        Args:
            client: Its number.
            messages: What it would send, or be sent, in float32.
            besides: Bytes of all that travels besides the pairs.
        """

    def upward(self, layout: Layout, updates: list[Update]) -> list[Update]:
        """What a client's jobs send.

        Raises:
            InputError: What has to travel besides the pairs is more than the budget.
        """
        if not _has_components(layout, updates[0]):
            return updates
        places = [_places(layout, update, update.kept) for update in updates]
        besides = _besides(layout, updates, places, closed_update)
        limit = self.limit(updates[0].job[0], updates, besides)
        scores = [_measured(layout, update) for update in updates]
        return _within(limit, layout, updates, places, scores, closed_update)

    def downward(self, layout: Layout, payload: Payload, scores: Mapping[str, Tensor], jobs: int) -> Payload:
        """What a job is sent, one of so many of its client, between which the budget is divided evenly.

        Raises:
            InputError: What has to travel besides the pairs is more than the budget.
        """
        if not self.down or not _has_components(layout, payload):
            return payload
        places = _places(layout, payload, payload.held)
        besides = _besides(layout, [payload], [places], closed_payload)
        limit = self.limit(payload.job[0], [payload] * jobs, besides * jobs)
        known = {
            (layer, at): score
            for layer, ids in payload.held.items()
            for at, score in enumerate(scores[layer][list(ids)].tolist())
        }
        share = None if limit is None else limit // jobs
        return _within(share, layout, [payload], [places], [known], closed_payload)[0]


@dataclasses.dataclass(frozen=True)
class Quantised(_Packing):
    """A budget that follows one rule for all clients; with neither number, all pairs travel at 32 bits.

    Attributes:
        down: What the server sends is quantised too, under the same budget.
        budget: Bytes per client, round and direction; None: ``ratio`` counts.
        ratio: The budget as a share, in (0, 1], of what the same pairs are in float32; what else travels, such as the
            head, comes on top. So a budget of ranks that falls never leaves less than the head needs.
    """

    budget: int | None = None
    ratio: float | None = 0.5

    def __post_init__(self) -> None:
        if self.budget is not None and self.budget < 1:
            raise InputError.of("compression.budget", self.budget, "an integer >= 1, or null")
        if self.ratio is not None and not 0 < self.ratio <= 1:
            raise InputError.of("compression.ratio", self.ratio, "a number in (0, 1], or null")

    def limit(self, client: int, messages: Sequence[Update] | Sequence[Payload], besides: int) -> int | None:
        """The client's budget in bytes."""
        if self.budget is not None or self.ratio is None:
            return self.budget
        return besides + math.floor(self.ratio * max(0, _size(messages) - besides))


@dataclasses.dataclass(frozen=True)
class Channel(_Packing):
    """What a radio channel carries in a while: C_k = tau W log2(1 + P h(d_k) / (N0 W)), in bits.

    The formula, and clients between 1100 and 2000 m, are from a secondary source on HAFLQ. The path loss is our choice:
    128.1 + 37.6 log10(d / 1 km) dB, that of 3GPP TR 36.814 for a macro cell; so are the other numbers.

    Attributes:
        down: What the server sends is quantised too, for the same channel.
        tau: Seconds of a round that are for sending.
        bandwidth: W, in Hz.
        power: P, in W.
        noise: N0, in dBm / Hz.
        distances: d_k in m, dealt to the clients in turn.
    """

    tau: float = 1.0
    bandwidth: float = 180e3
    power: float = 0.1
    noise: float = -174.0
    distances: list[float] = dataclasses.field(default_factory=lambda: [1100.0 + 100 * k for k in range(10)])

    def __post_init__(self) -> None:
        for key in ("tau", "bandwidth", "power"):
            if not 0 < getattr(self, key) < math.inf:
                raise InputError.of(f"compression.{key}", getattr(self, key), "a number > 0")
        if not math.isfinite(self.noise):
            raise InputError.of("compression.noise", self.noise, "a number")
        if not self.distances or not all(0 < distance < math.inf for distance in self.distances):
            raise InputError.of("compression.distances", self.distances, "a list of numbers > 0")

    def limit(self, client: int, messages: Sequence[Update] | Sequence[Payload], besides: int) -> int | None:
        """The client's budget in bytes."""
        distance = self.distances[client % len(self.distances)]
        gain = 10 ** (-(128.1 + 37.6 * math.log10(distance / 1000)) / 10)
        density = 10 ** ((self.noise - 30) / 10)  # W / Hz
        ratio = self.power * gain / (density * self.bandwidth)
        return math.floor(self.tau * self.bandwidth * math.log2(1 + ratio) / 8)


def _within(
    limit: int | None,
    layout: Layout,
    messages: list[M],
    places: Sequence[Mapping[Place, Sequence[int]]],
    scores: Sequence[Mapping[Place, float]],
    close: Callable[[M, Layout, Mapping[Place, int]], M],
) -> list[M]:
    """The messages, packed so that their encoded bytes stay within the limit.

    What isn't codes (names, ids, sizes) is measured and not estimated: as long as the messages are too long, the pairs
    get as much less.
    """

    def closed(bits: Sequence[Mapping[Place, int]]) -> list[M]:
        return [close(message, layout, its) for message, its in zip(messages, bits, strict=True)]

    if limit is None:
        return closed([dict.fromkeys(its, BITS[-1]) for its in places])
    besides = _besides(layout, messages, places, close)
    if besides > limit:
        who = f"client {messages[0].job[0]}"
        raise InputError.of("compression", f"{limit} bytes for {who}", f"at least the {besides} besides its components")
    # where scores tie, the first pairs of all layers and jobs come before the second ones
    order = sorted((at, job, number, layer) for job, its in enumerate(places) for number, (layer, at) in enumerate(its))
    weights = [scores[job][layer, at] for at, job, _, layer in order]
    lengths = [places[job][layer, at] for at, job, _, layer in order]
    room = limit - besides
    while True:
        bits: list[dict[Place, int]] = [{} for _ in messages]
        for (at, job, _, layer), chosen in zip(order, allocate(weights, lengths, room), strict=True):
            bits[job][layer, at] = chosen
        made = closed(bits)
        if (over := _size(made) - limit) <= 0:
            return made
        room -= over


def _besides(
    layout: Layout,
    messages: Sequence[M],
    places: Sequence[Mapping[Place, Sequence[int]]],
    close: Callable[[M, Layout, Mapping[Place, int]], M],
) -> int:
    """Bytes of the messages without any pair."""
    return _size([close(m, layout, dict.fromkeys(its, DROPPED)) for m, its in zip(messages, places, strict=True)])


def _size(messages: Sequence[Payload] | Sequence[Update]) -> int:
    return sum(encoded_size(message) for message in messages)


def _places(
    layout: Layout, message: Payload | Update, components: Mapping[str, Sequence[int]]
) -> dict[Place, list[int]]:
    """Each pair of a message -> the lengths of its vectors."""
    names = list(message.tensors)
    lengths = {layer: [length for _, length in vectors(layout, names, layer)] for layer in components}
    return {(layer, at): lengths[layer] for layer, ids in components.items() for at in range(len(ids))}


def _measured(layout: Layout, update: Update) -> dict[Place, float]:
    """The score of each pair as the client knows it; one that isn't finite is for the server to refuse."""
    found: dict[Place, float] = {}
    for layer, ids in update.kept.items():
        if update.scores:
            known = _by_component(*update.scores.get(layer, ((), torch.zeros(0))))
            its = [known.get(component, 0.0) for component in ids]
        else:
            its = _magnitudes(layout, update, layer)
        found |= {(layer, at): score if math.isfinite(score) else 0.0 for at, score in enumerate(its)}
    return found


def _by_component(ids: Ids, values: Tensor) -> dict[int, float]:
    return dict(zip(ids, values.tolist(), strict=True))


def _magnitudes(layout: Layout, update: Update, layer: str) -> list[float]:
    """The product of the norms of each pair's vectors."""
    norms = [
        update.tensors[name].double().norm(dim=1 - layout.axis(name))
        for name, _ in vectors(layout, list(update.tensors), layer)
    ]
    return torch.stack(norms).prod(dim=0).tolist()


def _has_components(layout: Layout, message: Payload | Update) -> bool:
    return not set(layout.names(LORA_FACTORS)).isdisjoint(message.tensors)
