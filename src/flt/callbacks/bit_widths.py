"""Measures how precisely pairs travel."""

from __future__ import annotations

from collections import Counter
from typing import ClassVar

from flt.protocol.codec import encoded_size
from flt.protocol.messages import PackedUpdate, Payload, Update
from flt.server.callback import FedCallback
from flt.server.federator import Federator


class BitWidths(FedCallback):
    """Leaves how precisely the pairs of a round went up; nothing where updates aren't packed.

    ``comm/bits_mean`` is the mean precision, in bits, of the pairs that were sent, each of them counting once, and
    ``bits/<layer>`` that of a layer, 0 where none was; ``comm/pairs_dropped`` is how many pairs were trained and not
    sent; ``comm/bytes_up_most`` the bytes of the client that sent most, which its budget bounds.
    """

    state_key: ClassVar[str] = "Precision"

    def on_job_start(self, federator: Federator, payload: Payload) -> None:
        """Called when a job is sent its payload."""
        federator.counts["trained"] += sum(map(len, payload.kept.values()))

    def on_update(self, federator: Federator, update: Update) -> None:
        """Called when a client sends an update."""
        if not isinstance(update, PackedUpdate):
            return
        federator.counts["packed"] += 1
        federator.counts[f"bytes_up of {update.job[0]}"] += encoded_size(update)
        bits = iter(update.packed.bits.tolist())
        for layer in federator.server.layout.layers:
            its = [next(bits) for _ in update.kept[layer]]
            federator.counts[f"bits of {layer}"] += sum(its)
            federator.counts[f"pairs of {layer}"] += len(its)

    def on_round_end(self, federator: Federator) -> None:
        """Called when a round has been aggregated."""
        counts = federator.counts
        if not counts["packed"]:
            return
        layers = list(federator.server.layout.layers)
        sent, bits = (sum(counts[f"{what} of {layer}"] for layer in layers) for what in ("pairs", "bits"))
        by_layer = {f"bits/{layer}": _mean(counts, layer) for layer in layers}
        most = max(counts[f"bytes_up of {client}"] for client in {update.job[0] for update in federator.updates})
        federator.log({"comm/bits_mean": bits / sent if sent else 0.0, **by_layer})
        federator.log({"comm/pairs_dropped": counts["trained"] - sent, "comm/bytes_up_most": most})


def _mean(counts: Counter[str], layer: str) -> float:
    components = counts[f"pairs of {layer}"]
    return counts[f"bits of {layer}"] / components if components else 0.0
