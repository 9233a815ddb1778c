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
from collections.abc import Mapping, Sequence
from typing import ClassVar

from torch import Tensor

from flt.algorithm.compression.base import CompressionPart
from flt.algorithm.compression.packing import (
    has_components,
    measured_scores,
    pack_within,
    places_of,
    size_besides,
    total_size,
)
from flt.core.errors import InputError
from flt.protocol.layout import LORA_FACTORS, Layout
from flt.protocol.messages import Payload, Update
from flt.protocol.quantised_components import pack_payload, pack_update


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
        if not has_components(layout, updates[0]):
            return updates
        places = [places_of(layout, update, update.kept) for update in updates]
        besides = size_besides(layout, updates, places, pack_update)
        limit = self.limit(updates[0].job[0], updates, besides)
        scores = [measured_scores(layout, update) for update in updates]
        return pack_within(limit, layout, updates, places, scores, pack_update)

    def compress_payload(self, layout: Layout, payload: Payload, scores: Mapping[str, Tensor], jobs: int) -> Payload:
        """Returns a job's payload with quantised components. A client's budget is divided equally among its jobs.

        Raises:
            InputError: The payload exceeds the job's share of the budget even without any component.
        """
        if not self.down or not has_components(layout, payload):
            return payload
        places = places_of(layout, payload, payload.held)
        besides = size_besides(layout, [payload], [places], pack_payload)
        limit = self.limit(payload.job[0], [payload] * jobs, besides * jobs)
        known = {
            (layer, at): max(score, 0.0)
            for layer, ids in payload.held.items()
            for at, score in enumerate(scores[layer][list(ids)].tolist())
        }
        share = None if limit is None else limit // jobs
        return pack_within(share, layout, [payload], [places], [known], pack_payload)[0]


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
        return besides + math.floor(self.ratio * max(0, total_size(messages) - besides))


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
