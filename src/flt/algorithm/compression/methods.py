"""Compression of messages. A component's precision depends on its importance and on the client's byte budget.

This is HAFLQ's adapter quantisation (arXiv 2411.06581v2). The quantiser, the allocation and the definition of the
budget are our reconstruction. A budget limits the bytes that ``comm/bytes_up`` counts: the encoded messages of a
client's jobs in one round, including names, indices, scales and scores. Only rank-1 components are quantised. The head
and all other tensors are sent in float32.
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
from flt.protocol.layout import LORA_FACTORS, Layout
from flt.protocol.messages import Ids, Payload, Update, encoded_size
from flt.protocol.quantise import BITS
from flt.protocol.quantised_components import Place, pack_payload, pack_update, vectors

M = TypeVar("M", Payload, Update)


@dataclasses.dataclass(frozen=True)
class NoCompression(CompressionPart):
    """No compression: all tensors are sent in float32."""


@dataclasses.dataclass(frozen=True)
class _Quantisation(CompressionPart):
    """Base of the compressions that quantise components, with the highest precisions that a client's budget allows.

    Components with higher scores get more bits. In updates, the score of component i is the one that the client
    measured. If clients don't measure scores, the score is |b_i| |a_i|, where b_i is column i of B and a_i is row i of
    A. In payloads, the score is that of the job's group.

    If the budget is too small for all components at the lowest precision, the components with the lowest scores are
    dropped, if necessary all of them. The update doesn't list dropped components: the server treats them as components
    that the client didn't send. A budget that is too small for the other tensors alone is refused. Messages without
    components aren't changed.

    Only messages are rounded, never the server's own state. If a rule fills in a component that a client didn't send,
    the rule therefore uses the server's exact value and not the rounded value that the client received.

    Attributes:
        down: If True, payloads (server to client) and updates are quantised. If False, only updates are quantised.
    """

    down: bool = False

    packs: ClassVar[bool] = True
    works_on: ClassVar[tuple[str, ...]] = LORA_FACTORS

    @property
    def needs_matrices(self) -> bool:
        """Always true, because a component is sent as two vectors."""
        return True

    @abc.abstractmethod
    def limit(self, client: int, messages: Sequence[Update] | Sequence[Payload], besides: int) -> int | None:
        """Returns the client's budget in bytes for all messages together, or None if there is no limit.

        Args:
            client: Number of the client.
            messages: Messages of the client's jobs, with components in float32.
            besides: Size of the messages in bytes if all components are left out.
        """

    def compress_updates(self, layout: Layout, updates: list[Update]) -> list[Update]:
        """Returns the updates of one client's jobs, with quantised components.

        Raises:
            InputError: The updates exceed the budget even without any component.
        """
        if not _has_components(layout, updates[0]):
            return updates
        places = [_places(layout, update, update.kept) for update in updates]
        besides = _besides(layout, updates, places, pack_update)
        limit = self.limit(updates[0].job[0], updates, besides)
        scores = [_measured(layout, update) for update in updates]
        return _pack_within(limit, layout, updates, places, scores, pack_update)

    def compress_payload(self, layout: Layout, payload: Payload, scores: Mapping[str, Tensor], jobs: int) -> Payload:
        """Returns a job's payload with quantised components. A client's budget is divided equally among its jobs.

        Raises:
            InputError: The payload exceeds the job's share of the budget even without any component.
        """
        if not self.down or not _has_components(layout, payload):
            return payload
        places = _places(layout, payload, payload.held)
        besides = _besides(layout, [payload], [places], pack_payload)
        limit = self.limit(payload.job[0], [payload] * jobs, besides * jobs)
        known = {
            (layer, at): score
            for layer, ids in payload.held.items()
            for at, score in enumerate(scores[layer][list(ids)].tolist())
        }
        share = None if limit is None else limit // jobs
        return _pack_within(share, layout, [payload], [places], [known], pack_payload)[0]


@dataclasses.dataclass(frozen=True)
class Quantised(_Quantisation):
    """Quantisation with a budget in bytes (``budget``) or with a budget relative to the message size (``ratio``).

    All clients have the same setting. If ``budget`` and ``ratio`` are both None, all components are sent at 32 bits.

    Attributes:
        down: If True, payloads (server to client) are quantised too, with the same ``budget`` or ``ratio``. If False,
            only updates are quantised.
        budget: Number of bytes that a client may send in a round. With ``down``, the client may also be sent this
            number of bytes. If None, ``ratio`` determines the budget.
        ratio: Budget for the components, as a share in (0, 1] of their size in float32. All other tensors, such as the
            head, are sent in addition. There is therefore always room for the head, even when the rank budget falls.
    """

    budget: int | None = None
    ratio: float | None = 0.5

    def __post_init__(self) -> None:
        if self.budget is not None and self.budget < 1:
            raise InputError.of("compression.budget", self.budget, "an integer >= 1, or null")
        if self.ratio is not None and not 0 < self.ratio <= 1:
            raise InputError.of("compression.ratio", self.ratio, "a number in (0, 1], or null")

    def limit(self, client: int, messages: Sequence[Update] | Sequence[Payload], besides: int) -> int | None:
        """Returns the client's budget in bytes, or None if there is no limit."""
        if self.budget is not None or self.ratio is None:
            return self.budget
        return besides + math.floor(self.ratio * max(0, _size(messages) - besides))


@dataclasses.dataclass(frozen=True)
class Channel(_Quantisation):
    """Quantisation in which a client's budget is the capacity of the client's radio channel.

        C_k = tau W log2(1 + P h(d_k) / (N0 W))    capacity of client k in bits, with the channel gain h

    The formula and the distances between 1100 and 2000 m are from a secondary source on HAFLQ. The path loss, which
    determines h, is our choice: 128.1 + 37.6 log10(d / 1 km) dB, from 3GPP TR 36.814 for a macro cell. The other
    numbers are our choice too.

    Attributes:
        down: If True, payloads (server to client) are quantised too, with the same capacity. If False, only updates
            are quantised.
        tau: Transmission time per round, in s.
        bandwidth: Bandwidth W of the channel, in Hz.
        power: Transmission power P, in W.
        noise: Noise power density N0, in dBm / Hz.
        distances: Distances d_k between client k and the server, in m. The list is repeated if there are more clients
            than distances.
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
        if not -1000 <= self.noise <= 1000:
            raise InputError.of("compression.noise", self.noise, "a number from -1000 to 1000")
        if not self.distances or not all(0 < distance < math.inf for distance in self.distances):
            raise InputError.of("compression.distances", self.distances, "a list of numbers > 0")

    def limit(self, client: int, messages: Sequence[Update] | Sequence[Payload], besides: int) -> int | None:
        """Returns the client's budget in bytes: C_k / 8, rounded down."""
        distance = self.distances[client % len(self.distances)]
        gain = 10 ** (-(128.1 + 37.6 * math.log10(distance / 1000)) / 10)
        density = 10 ** ((self.noise - 30) / 10)  # W / Hz
        ratio = self.power * gain / (density * self.bandwidth)
        return math.floor(self.tau * self.bandwidth * math.log2(1 + ratio) / 8)


def _pack_within(
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
    besides = _besides(layout, messages, places, close)
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
        if (excess := _size(packed) - limit) <= 0:
            return packed
        room -= excess


def _besides(
    layout: Layout,
    messages: Sequence[M],
    places: Sequence[Mapping[Place, Sequence[int]]],
    close: Callable[[M, Layout, Mapping[Place, int]], M],
) -> int:
    """Returns the size of the messages in bytes if all components are left out."""
    return _size(
        [close(m, layout, dict.fromkeys(components, DROPPED)) for m, components in zip(messages, places, strict=True)]
    )


def _size(messages: Sequence[Payload] | Sequence[Update]) -> int:
    return sum(encoded_size(message) for message in messages)


def _places(
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


def _measured(layout: Layout, update: Update) -> dict[Place, float]:
    """Returns the score of each component of an update. Without measured scores, the score is |b_i| |a_i|.

    A score that isn't finite counts as 0 here. The server later refuses an update with such a score.
    """
    scores: dict[Place, float] = {}
    for layer, ids in update.kept.items():
        if update.scores:
            known = _by_component(*update.scores.get(layer, ((), torch.zeros(0))))
            values = [known.get(component, 0.0) for component in ids]
        else:
            values = _magnitudes(layout, update, layer)
        scores |= {(layer, at): score if math.isfinite(score) else 0.0 for at, score in enumerate(values)}
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


def _has_components(layout: Layout, message: Payload | Update) -> bool:
    return not set(layout.names(LORA_FACTORS)).isdisjoint(message.tensors)
