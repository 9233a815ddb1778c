"""Exactness of aggregation, and what stays on a client, of every method that promises it: a new one adds a line."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from methods import FEDIT, METHODS, clients_of
from torch import Tensor
from torch.utils.data import TensorDataset
from toys import Toy, assert_same, toy_data, toy_federator, updates_of, weights_of

import flt
from flt.data.clients import ClientSpec, JobData
from flt.protocol.entries import Layer
from flt.protocol.messages import JobId, Payload
from flt.server.callback import FedCallback
from flt.server.federator import Federator

EXACT = ["ffa_lora", "rolora", "flora", "fedex_lora"]
"""Methods after each round of which the product is the dense weighted mean of the clients' products."""
INEXACT = ["fedit", "fedprox"]
PRIVATE = {"fedsa_lora": ("B", "head"), "local": ("A", "B", "head")}
"""Method -> roles of the tensors that stay on a client."""
MARKER = 77.0


def distances(name: str) -> Iterator[float]:
    """Round by round, how far the global W0 + s B A is from sum_i p_i (W0 + s B_i A_i), in float64."""
    recipe, settings = METHODS[name]
    federator = toy_federator(recipe, clients_of(3), rounds=4, cohort=2, **{"lr": 0.05, **settings})
    initial = federator.server.base
    while federator.state.rounds < 4:
        state = federator.state
        federator._round()
        view, total = federator.server.view(state), sum(update.examples for update in updates_of(federator))
        for layer in federator.server.layout.layers.values():
            expected = state.base.value(layer.base, initial).double().clone()
            for update in updates_of(federator):
                weights = view.full(update)  # a factor that wasn't sent is the one that the client was sent
                product = weights[layer.b].double() @ weights[layer.a].double()
                expected += update.examples / total * layer.scale * product
            found = federator.state.base.value(layer.base, initial).double()
            weights = weights_of(federator)
            found = found + layer.scale * weights[layer.b].double() @ weights[layer.a].double()
            yield float((found - expected).abs().max())


@pytest.mark.parametrize("name", EXACT)
def test_the_product_is_the_dense_weighted_mean_of_the_clients_products(name: str) -> None:
    assert max(distances(name)) < 1e-6


@pytest.mark.parametrize("name", INEXACT)
def test_the_mean_of_both_factors_is_not(name: str) -> None:
    assert max(distances(name)) > 1e-4


def test_rolora_trains_b_first_and_then_the_factors_in_turn() -> None:
    federator = toy_federator(METHODS["rolora"][0], clients_of(3), rounds=4, lr=0.05)
    layout, moved = federator.server.layout, []
    while federator.state.rounds < 4:
        before = weights_of(federator)
        federator._round()
        after = weights_of(federator)
        names = {name for name in before if not torch.equal(before[name], after[name])}
        assert names == set(updates_of(federator)[0].tensors)
        moved.append({layout.entries[name].role for name in names} - {"head"})
        assert "head.weight" in names
    assert moved == [{"B"}, {"A"}, {"B"}, {"A"}]


def test_ffa_lora_sends_neither_a_up_nor_down() -> None:
    sent = Sent()
    federator = toy_federator(METHODS["ffa_lora"][0], clients_of(3), rounds=2, callbacks=[sent])
    start = weights_of(federator)
    federator.fit()
    roles = {federator.server.layout.entries[name].role for payload in sent.payloads for name in payload.tensors}
    assert roles == {"B", "head"}
    assert {federator.server.layout.entries[name].role for name in updates_of(federator)[0].tensors} == {"B", "head"}
    for layer in federator.server.layout.layers.values():
        assert torch.equal(weights_of(federator)[layer.a], start[layer.a])
        assert torch.equal(federator.engine.local_trainer.initial[layer.a], start[layer.a])  # what each client draws


def test_fedsa_has_fedits_a_after_one_round_and_b_and_head_of_a_client_alone() -> None:
    fedsa, fedit, local = (
        toy_federator(METHODS[name][0], clients_of(3), rounds=1) for name in ("fedsa_lora", "fedit", "local")
    )
    for federator in (fedsa, fedit, local):
        federator.fit()
    layers = fedsa.server.layout.layers.values()
    shared = {layer.a for layer in layers}
    assert_same({name: weights_of(fedsa)[name] for name in shared}, {name: weights_of(fedit)[name] for name in shared})
    for job, own in fedsa.client_states.items():
        alone = local.client_states[job].tensors
        assert_same(dict(own.tensors), {name: alone[name] for name in alone if name not in shared})


def test_local_is_a_client_that_trains_alone_for_all_rounds() -> None:
    together = toy_federator(METHODS["local"][0], clients_of(3), rounds=3)
    together.fit()
    alone = toy_federator(FEDIT, {1: clients_of(3)[1]}, rounds=3)
    alone.fit()
    assert_same(dict(together.client_states[1, 0].tensors), weights_of(alone))


def test_fedex_with_one_client_is_fedit_and_leaves_the_base_alone() -> None:
    fedex, fedit = (toy_federator(METHODS[name][0], clients_of(1), rounds=3) for name in ("fedex_lora", "fedit"))
    fedex.fit()
    fedit.fit()
    assert_same(weights_of(fedex), weights_of(fedit))
    assert fedex.state.base.version == 0


def test_fedexs_adapter_of_one_round_is_fedits_and_its_residual_has_rank_k_minus_1_times_r() -> None:
    fedex, fedit = (toy_federator(METHODS[name][0], clients_of(3), rounds=1) for name in ("fedex_lora", "fedit"))
    fedex.fit()
    fedit.fit()
    assert_same(weights_of(fedex), weights_of(fedit))
    view = fedex.server.view(toy_federator(METHODS["fedex_lora"][0], clients_of(3)).state)
    for clients in (2, 3):
        for left, right in fedex.server.recipe.rule.combine(view, 0, updates_of(fedex)[:clients]).base.values():
            assert left.shape[1] == right.shape[0] == (clients - 1) * 4


# ---------------------------------------------------------------------------------------------- FlexLoRA


def product(weights: Mapping[str, Tensor], layer: Layer, pairs: int | None = None) -> np.ndarray:
    """B A of the first pairs, float64, without the scale."""
    return weights[layer.b].double().numpy()[:, :pairs] @ weights[layer.a].double().numpy()[:pairs]


@pytest.mark.parametrize("ranks", [[1, 1, 2], [4, 4, 4], [1, 2, 4]], ids=str)
def test_flexlora_is_the_best_approximation_of_the_mean_product_in_every_round(ranks: list[int]) -> None:
    federator = toy_federator(METHODS["flexlora"][0], clients_of(3, ranks=ranks), rounds=3, lr=0.05)
    while federator.state.rounds < 3:
        federator._round()
        total = sum(update.examples for update in updates_of(federator))
        for layer in federator.server.layout.layers.values():
            mean = sum(update.examples / total * product(update.tensors, layer) for update in updates_of(federator))
            u, s, v = np.linalg.svd(mean)
            for pairs in (1, 2, 4):  # what a client of that rank is sent
                best = (u[:, :pairs] * s[:pairs]) @ v[:pairs]
                np.testing.assert_allclose(product(weights_of(federator), layer, pairs), best, atol=1e-6)
            if sum(ranks) <= 4:
                np.testing.assert_allclose(product(weights_of(federator), layer), mean, atol=1e-6)


def test_flexlora_averages_the_head_alone() -> None:
    federator = toy_federator(METHODS["flexlora"][0], clients_of(3), rounds=1)
    federator.fit()
    fedit = toy_federator(FEDIT, clients_of(3), rounds=1)
    fedit.fit()
    assert torch.equal(weights_of(federator)["head.weight"], weights_of(fedit)["head.weight"])


# ---------------------------------------------------------------------------------------------- privacy


class Sent(FedCallback):
    """Keeps what was sent down."""

    def __init__(self) -> None:
        self.payloads: list[Payload] = []

    def on_job_start(self, federator: Federator, payload: Payload) -> None:
        self.payloads.append(payload)


def marked(tensors: dict[str, Tensor]) -> set[str]:
    """Names of the tensors that hold the marker, or what a few small steps made of it."""
    return {name for name, tensor in tensors.items() if ((tensor - MARKER).abs() < 5).any()}


@pytest.mark.parametrize("name", PRIVATE)
def test_a_marker_in_a_clients_private_tensors_shows_nowhere_else(name: str) -> None:
    sent, owner = Sent(), (1, 0)
    federator = toy_federator(METHODS[name][0], clients_of(3), rounds=3, lr=1e-3, callbacks=[sent])
    federator._round()
    own: dict[JobId, dict[str, Tensor]] = {job: dict(kept.tensors) for job, kept in federator.client_states.items()}
    roles = {federator.server.layout.entries[key].role for key in own[owner]}
    assert roles == set(PRIVATE[name])
    for tensor in federator.client_states[owner].tensors.values():
        tensor.fill_(MARKER)
    sent.payloads.clear()
    federator.fit()
    assert marked(dict(federator.client_states[owner].tensors)) == set(own[owner])  # it is there, and trained on
    for payload in sent.payloads:
        assert not marked(dict(payload.tensors))
    for update in updates_of(federator):
        assert not marked(dict(update.tensors))
    assert not marked(weights_of(federator))
    for job, kept in federator.client_states.items():
        assert job == owner or not marked(dict(kept.tensors))


def test_a_marker_in_a_clients_control_variate_stays_there_while_it_is_absent_and_is_never_sent_itself() -> None:
    """SCAFFOLD's c_i; in a round of its own the client replaces it, and the server derives the difference."""
    sent, owner = Sent(), (1, 0)
    recipe, settings = METHODS["scaffold"]
    federator = toy_federator(recipe, clients_of(3), rounds=4, callbacks=[sent], **{**settings, "lr": 1e-3})
    federator._round()
    own = federator.client_states[owner].slots["c_i"]
    for tensor in own.values():
        tensor.fill_(MARKER)
    everyone, absent = federator.sampler, [client for client in range(3) if client != owner[0]]
    for sampler in (lambda *_: absent, lambda *_: absent, everyone):
        federator.sampler = sampler
        sent.payloads.clear()
        federator._round()
        for payload in sent.payloads:
            assert not marked({**payload.tensors, **payload.slots.get("c", {})})
        for update in updates_of(federator):
            assert not marked(dict(update.tensors))
            assert set(update.scalars) == {"lr"}
        assert not marked({**weights_of(federator), **federator.state.groups[0].slots["c"]})
        for job, kept in federator.client_states.items():
            assert job == owner or not marked(dict(kept.slots["c_i"]))
        if sampler is not everyone:
            assert marked(dict(federator.client_states[owner].slots["c_i"])) == set(own)


class Counting(Toy):
    """A user's module that keeps figures of its data: in a buffer, and in the statistics of a norm."""

    def __init__(self) -> None:
        super().__init__(lr=1e-3)
        self.norm = torch.nn.BatchNorm1d(6, affine=False)
        self.register_buffer("largest", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        self.largest = torch.maximum(self.largest, x.max().detach())
        return super().forward(self.norm(x))


@pytest.mark.slow
def test_a_marker_in_a_clients_examples_shows_in_nothing_that_another_client_of_a_users_module_gets(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With everything private, clients beside one whose examples are marked train as they do beside any other."""
    monkeypatch.chdir(tmp_path)

    def others(value: float) -> list[dict[str, Tensor]]:
        data = [TensorDataset(toy_data(24, seed=client).tensors[0], toy_data(24, seed=client).tensors[1])
                for client in range(3)]  # fmt: skip
        data[1] = TensorDataset(torch.full_like(data[1].tensors[0], value), data[1].tensors[1])
        clients = [
            ClientSpec(number, (JobData(found, np.arange(20), np.arange(20, 24)),)) for number, found in enumerate(data)
        ]
        with torch.random.fork_rng():
            torch.manual_seed(0)
            module = Counting()
        result = flt.fit(module, clients, "local", 2, progress=False, overrides=["name=run", "local.steps=3"])
        assert 0 < float(module.largest) < 10, "the buffer of the first client, which is the module's at the end"
        assert not marked({name: tensor.float() for name, tensor in module.named_buffers()})
        files = [result.exported / f"client_{client}" / "adapter_model.safetensors" for client in (0, 2)]
        return [safetensors.torch.load_file(file) for file in files]

    for marked_run, plain_run in zip(others(MARKER), others(0.0), strict=True):
        assert_same(marked_run, plain_run)
