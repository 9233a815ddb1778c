"""Whole federations under a budget: what is counted, what is averaged, and what clients begin with."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
import torch
from haflq import HAFLQ, bits, size
from methods import clients_of
from several_heads import several, toy_heads
from torch import Tensor
from toys import assert_same, toy_clients, toy_federator, updates_of, weights_of

from flt.algorithm.compression.methods import NoCompression, Quantised
from flt.algorithm.plan import AdapterPlan
from flt.algorithm.recipe import Recipe
from flt.algorithm.rule.mean import Mean
from flt.algorithm.selection.freeze import Freeze
from flt.algorithm.selection.truncate import Truncate
from flt.callbacks.bit_widths import BitWidths
from flt.callbacks.communication import Communication
from flt.data.clients import ClientSpec
from flt.protocol.messages import PackedPayload, Payload, Update, encode
from flt.protocol.quantise import dequantise, quantise
from flt.protocol.quantised_components import unpack_payload
from flt.server.callback import FedCallback
from flt.server.federator import Federator


class Sent(FedCallback):
    """Keeps what was sent down, and what came of the fits before it was packed."""

    def __init__(self) -> None:
        self.payloads: list[Payload] = []
        self.unpacked: list[Update] = []

    def on_job_end(self, federator: Federator, update: Update) -> None:
        self.unpacked.append(update)

    def on_job_start(self, federator: Federator, payload: Payload) -> None:
        self.payloads.append(payload)


def fitted(
    recipe: Recipe, clients: dict[int, ClientSpec] | None = None, **given: Any
) -> tuple[Federator, list[Payload]]:
    """A federation that has run, and all payloads that were sent."""
    sent = Sent()
    callbacks = [sent, Communication(), BitWidths()]
    federator = toy_federator(recipe, clients or clients_of(3, ranks=[1, 2, 4]), callbacks=callbacks, **given)
    federator.fit()
    return federator, sent.payloads


def test_a_round_in_which_no_pair_travels_is_left_alone() -> None:
    recipe = dataclasses.replace(HAFLQ, plan=AdapterPlan(train=["head"]), compression=Quantised(budget=1))
    federator, _ = fitted(recipe)
    assert all(type(update) is Update and update.kept for update in updates_of(federator))
    assert "comm/bits_mean" not in federator.history[0]


@pytest.mark.parametrize("budget", [1160, 1250, 1400])
def test_what_is_counted_stays_within_the_budget_of_each_client_both_ways(budget: int) -> None:
    recipe = dataclasses.replace(HAFLQ, compression=Quantised(budget=budget, down=True))
    federator, payloads = fitted(recipe, rounds=2)
    sizes = [len(encode(update)) for update in updates_of(federator)]
    assert max(sizes) <= budget
    assert max(len(encode(payload)) for payload in payloads) <= budget
    last = federator.history[-1]
    assert last["comm/bytes_up"] == sum(sizes)
    assert last["comm/bytes_up_most"] == max(sizes)
    assert last["comm/params_up"] > 33  # the numbers of the head: those of the pairs are counted too
    assert last["comm/bytes_down"] == sum(len(encode(payload)) for payload in payloads[3:])


def test_a_clients_jobs_share_its_budget_both_ways() -> None:
    recipe = dataclasses.replace(HAFLQ, compression=Quantised(budget=2400, down=True))
    federator, payloads = fitted(recipe, clients_of(2, jobs=2))
    for messages in (updates_of(federator), payloads):
        for client in (0, 1):
            assert 2300 < size([m for m in messages if m.job[0] == client]) <= 2400


def test_the_aggregate_is_the_mean_of_the_dequantised_vectors() -> None:
    recipe = dataclasses.replace(HAFLQ, selection=Truncate("first"), compression=Quantised(budget=1270))
    federator = toy_federator(recipe, clients_of(3, ranks=[4]))
    exact: list[Update] = []
    federator.transforms = [lambda updates: exact.extend(updates) or updates]
    before = {name: tensor.clone() for name, tensor in weights_of(federator).items()}
    federator.fit()
    layer = federator.server.layout.layers["fc2"]
    total, weight = np.zeros((4, 8)), np.zeros(4)
    for update, packed in zip(exact, updates_of(federator), strict=True):
        chosen = iter(bits(packed))
        known = {(name, pair): next(chosen) for name in federator.server.layout.layers for pair in packed.kept[name]}
        for pair in packed.kept["fc2"]:
            vector = update.tensors[layer.a][pair].numpy()
            q = known["fc2", pair]
            total[pair] += update.examples * (vector if q == 32 else dequantise(*quantise(vector, q)))
            weight[pair] += update.examples
    assert len({q for update in updates_of(federator) for q in bits(update)}) > 1
    expected = np.where(weight[:, None] > 0, total / np.maximum(weight, 1)[:, None], before[layer.a].numpy())
    np.testing.assert_allclose(weights_of(federator)[layer.a].numpy(), expected, rtol=1e-6)


def logits_by_hand(federator: Federator, opened: Payload, x: Tensor) -> Tensor:
    """The toy with the weights of a payload, and nothing else of the module that trained."""
    module, sent = federator.engine.local_trainer.module, opened.tensors
    for name in ("fc1", "fc2"):
        base = getattr(module, name).base_layer
        a, b = (sent[f"{name}.lora_{side}.default.weight"] for side in "AB")
        x = torch.relu(x @ (base.weight + 2.0 * b @ a).T + base.bias)
    return x @ sent["head.weight"].T + sent["head.bias"]


def test_a_client_trains_and_is_evaluated_from_what_it_was_sent() -> None:
    recipe = dataclasses.replace(HAFLQ, compression=Quantised(budget=1500, down=True))
    clients, sent = toy_clients(3, ranks=[1, 2, 4]), Sent()
    warm = toy_federator(recipe, clients, rounds=1, lr=0.1)
    warm.fit()  # so that B isn't 0
    federator = toy_federator(recipe, clients, rounds=2, lr=0.0, weight_decay=0.0, callbacks=[sent])
    federator.state = warm.state
    federator.fit()
    layout, exact, rounded = federator.server.layout, weights_of(warm), 0
    for payload, update in zip(sent.payloads, sent.unpacked, strict=True):
        assert isinstance(payload, PackedPayload)
        opened = unpack_payload(payload, layout)
        for name, tensor in update.tensors.items():  # nothing moved: what goes up is what was sent down
            full = layout.put(name, torch.zeros_like(exact[name]), opened.held, opened.tensors[name])
            assert torch.equal(tensor, layout.take(name, full, update.kept))
            rounded += not torch.equal(tensor, layout.take(name, exact[name], update.kept))
        data = clients[update.job[0]].data[0]
        x, y = (column[data.held_out] for column in data.dataset.tensors)  # type: ignore[attr-defined]  # a TensorDataset
        loss = torch.nn.functional.cross_entropy(logits_by_hand(federator, opened, x), y)
        assert update.metrics["distributed/val_loss"] == pytest.approx(float(loss), rel=1e-5)
    assert rounded


def test_nothing_is_quantised_for_good_where_nothing_moves_up() -> None:
    """Down at few bits, with a learning rate of 0 and pad=update: what isn't sent counts as the server's own."""
    recipe = Recipe(Mean(pad="update"), selection=Freeze("first"), compression=Quantised(budget=1250, down=True))
    federator, _ = fitted(recipe, clients_of(1, ranks=[1]), lr=0.0, weight_decay=0.0)
    before = weights_of(toy_federator(recipe))
    for layer in federator.server.layout.layers.values():
        assert torch.equal(weights_of(federator)[layer.a][1:], before[layer.a][1:])


def test_without_a_budget_every_bit_is_that_of_no_compression() -> None:
    unbounded = Quantised(down=True, budget=None, ratio=None)
    states = []
    for compression in (NoCompression(), unbounded):
        federator, payloads = fitted(dataclasses.replace(HAFLQ, compression=compression), rounds=2)
        states.append(federator)
    assert_same(weights_of(states[1]), weights_of(states[0]))
    assert encode(states[1].state) == encode(states[0].state)
    assert isinstance(payloads[0], PackedPayload)
    assert {q for update in updates_of(states[1]) for q in bits(update)} == {32}


# ---------------------------------------------------------------------------------------------- figures


def test_the_figures_are_those_of_the_updates() -> None:
    recipe = dataclasses.replace(HAFLQ, compression=Quantised(budget=1200))
    federator, payloads = fitted(recipe)
    last, layers = federator.history[-1], list(federator.server.layout.layers)
    by_layer: dict[str, list[int]] = {layer: [] for layer in layers}
    for update in updates_of(federator):
        at = 0
        for layer in layers:
            by_layer[layer] += bits(update)[at : at + len(update.kept[layer])]
            at += len(update.kept[layer])
    every = sum(by_layer.values(), [])
    assert last["comm/bits_mean"] == pytest.approx(np.mean(every))
    assert {layer: last[f"bits/{layer}"] for layer in layers} == {
        layer: pytest.approx(np.mean(its) if its else 0) for layer, its in by_layer.items()
    }
    trained = sum(len(ids) for payload in payloads for ids in payload.kept.values())
    assert last["comm/pairs_dropped"] == trained - len(every)
    assert last["comm/pairs_dropped"] > 0


def test_without_compression_there_are_no_such_figures() -> None:
    federator, _ = fitted(dataclasses.replace(HAFLQ, compression=NoCompression()))
    assert not [key for key in federator.history[-1] if "bits" in key or "most" in key or "dropped" in key]


def test_jobs_with_heads_of_different_shapes_share_a_budget_and_get_their_heads_exactly() -> None:
    names = ["sst2", "sst4"]
    heads = toy_heads({"sst2": 2, "sst4": 4})
    recipe = dataclasses.replace(HAFLQ, compression=Quantised(budget=3300, down=True))
    federator, payloads = fitted(recipe, several(2, [2, 4], names), heads=heads)
    assert {q for update in updates_of(federator) for q in bits(update)} - {32}
    for messages in (updates_of(federator), payloads):
        assert all(size([m for m in messages if m.job[0] == client]) <= 3300 for client in (0, 1))
    for head in (payload.tensors["head.weight"] for payload in payloads):
        assert torch.equal(head, heads[f"sst{len(head)}"]["head.weight"])
    assert {tuple(update.tensors["head.weight"].shape) for update in updates_of(federator)} == {(2, 10), (4, 10)}
