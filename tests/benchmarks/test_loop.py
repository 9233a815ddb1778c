"""The hand-written loop that the engines are timed against trains what they train."""

from __future__ import annotations

from benchmarks import loop

SMALL = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}


def test_the_loop_and_the_serial_engine_have_updates_of_equal_bits() -> None:
    found = loop.federated(clients=2, encoder=SMALL)
    by_hand = found.by_hand()
    assert loop.furthest(found.serial(), by_hand) == 0
    sent = {client: dict(task.payload.tensors) for client, task in enumerate(found.tasks)}
    assert loop.furthest(by_hand, sent) > 1e-3
    assert loop.furthest(by_hand, {0: by_hand[1], 1: by_hand[0]}) > 1e-3  # the clients have examples of their own


def test_the_loop_and_the_batched_engine_agree_up_to_rounding() -> None:
    found = loop.federated(clients=2, encoder=SMALL)
    found.stacking.jobs = 2
    assert 0 < loop.furthest(found.batched(), found.by_hand()) < 1e-5
