"""Measures the bits per number of the rank-1 components that clients send."""

from __future__ import annotations

from collections import Counter
from typing import ClassVar

from flt.protocol.messages import PackedUpdate, Payload, Update, encoded_size
from flt.server.callback import FedCallback
from flt.server.federator import Federator


class BitWidths(FedCallback):
    """Logs the bits per number of the components that clients sent in a round.

    Logs nothing if the clients don't send packed updates.

    - ``comm/bits_mean``: mean bits per number over all components that were sent. Every component has the same weight.
    - ``bits/<layer>``: the same mean over the components of one layer; 0 if no component of the layer was sent.
    - ``comm/pairs_dropped``: number of components that jobs had to train but didn't send.
    - ``comm/bytes_up_most``: largest number of bytes that one client sent. ``compression.budget`` limits this number.
    """

    state_key: ClassVar[str] = "Precision"

    def on_job_start(self, federator: Federator, payload: Payload) -> None:
        """Counts the components that the job is going to train."""
        federator.counts["trained"] += sum(map(len, payload.kept.values()))

    def on_update(self, federator: Federator, update: Update) -> None:
        """Counts the bits of the components in a packed update."""
        if not isinstance(update, PackedUpdate):
            return
        federator.counts["packed"] += 1
        federator.counts[f"bytes_up of {update.job[0]}"] += encoded_size(update)
        bits = iter(update.packed.bits.tolist())
        for layer in federator.server.layout.layers:
            layer_bits = [next(bits) for _ in update.kept[layer]]
            federator.counts[f"bits of {layer}"] += sum(layer_bits)
            federator.counts[f"components of {layer}"] += len(layer_bits)

    def on_round_end(self, federator: Federator) -> None:
        """Logs the metrics if the clients sent packed updates."""
        counts = federator.counts
        if not counts["packed"]:
            return
        layers = list(federator.server.layout.layers)
        sent, bits = (sum(counts[f"{what} of {layer}"] for layer in layers) for what in ("components", "bits"))
        by_layer = {f"bits/{layer}": _mean(counts, layer) for layer in layers}
        most = max(counts[f"bytes_up of {client}"] for client in {update.job[0] for update in federator.updates})
        federator.log({"comm/bits_mean": bits / sent if sent else 0.0, **by_layer})
        federator.log({"comm/pairs_dropped": counts["trained"] - sent, "comm/bytes_up_most": most})


def _mean(counts: Counter[str], layer: str) -> float:
    components = counts[f"components of {layer}"]
    return counts[f"bits of {layer}"] / components if components else 0.0
