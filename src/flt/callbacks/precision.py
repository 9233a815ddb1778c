"""Measures how precisely pairs travel."""

from __future__ import annotations

import numpy as np

from flt.callbacks.base import FedCallback
from flt.federator import Federator
from flt.messages import PackedUpdate, Payload, encode


class Precision(FedCallback):
    """Leaves how precisely the pairs of a round went up; nothing where updates aren't packed.

    ``comm/bits_mean`` is the mean precision, in bits, of the pairs that were sent, each of them counting once, and
    ``bits/<layer>`` that of a layer, 0 where none was; ``comm/pairs_dropped`` is how many pairs were trained and not
    sent; ``comm/bytes_up_most`` the bytes of the client that sent most, which its budget bounds.
    """

    def __init__(self) -> None:
        self.trained = 0

    def on_round_start(self, federator: Federator) -> None:
        """Called when a cohort has been drawn."""
        self.trained = 0

    def on_job_start(self, federator: Federator, payload: Payload) -> None:
        """Called when a job is sent its payload."""
        self.trained += sum(map(len, payload.kept.values()))

    def on_round_end(self, federator: Federator) -> None:
        """Called when a round has been aggregated."""
        packed = [update for update in federator.updates if isinstance(update, PackedUpdate)]
        if not packed:
            return
        bits = by_layer(packed, list(federator.server.layout.layers))
        sent = [precision for its in bits.values() for precision in its]
        clients: dict[int, int] = {}
        for update in packed:
            clients[update.job[0]] = clients.get(update.job[0], 0) + len(encode(update))
        federator.log({"comm/bits_mean": _mean(sent), **{f"bits/{layer}": _mean(its) for layer, its in bits.items()}})
        federator.log({"comm/pairs_dropped": self.trained - len(sent), "comm/bytes_up_most": max(clients.values())})


def by_layer(updates: list[PackedUpdate], layers: list[str]) -> dict[str, list[int]]:
    """Layer -> the bits of each pair of it in all of these updates."""
    found: dict[str, list[int]] = {layer: [] for layer in layers}
    for update in updates:
        bits = iter(update.packed.bits.tolist())
        for layer in layers:
            found[layer] += [next(bits) for _ in update.kept[layer]]
    return found


def _mean(bits: list[int]) -> float:
    return float(np.mean(bits)) if bits else 0.0
