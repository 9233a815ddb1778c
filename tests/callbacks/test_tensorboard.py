"""Names of TensorBoard's tags, and the sections of its tab CUSTOM SCALARS."""

from __future__ import annotations

import pytest

from flt.callbacks.tensorboard import layout, scalars

TAGS = {
    "round/val_acc": ("round/val_acc", "Global model"),
    "train/acc": ("round.train/acc", "Training examples"),
    "gap/loss": ("round.gap/loss", "Gap between training and validation"),
    "client_test/acc_uniform": ("round.client_test/acc_uniform", "Each client's own test"),
    "clients/divergence": ("round.clients/divergence", "Clients"),
    "clients/divergence_head": ("round.clients/divergence_head", "Clients"),
    "clients/drift": ("round.clients/drift", "Clients"),
    "cluster/delay": ("round.cluster/delay", "Clusters"),
    "transfer/share": ("round.transfer/share", "Transfer between clusters"),
    "fleet/late": ("round.fleet/late", "Simulated devices"),
    "time/simulated_hours": ("round.time/simulated_hours", "Time"),
    "own/x": ("own/x", None),
    "clients/val_acc": (None, None),
    "bits/a": (None, None),
}


@pytest.mark.parametrize("key", TAGS)
def test_metrics_have_the_tags_and_sections_of_the_documentation(key: str) -> None:
    tag, section = TAGS[key]
    found = scalars({"round": 1, key: 0.5})
    assert found == ({tag: 0.5} if tag else {})
    assert list(layout(found)) == ([section] if section else [])
