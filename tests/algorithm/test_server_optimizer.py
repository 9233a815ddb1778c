"""Server optimisers against NumPy, over whole federations."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
import torch
from methods import FEDIT, clients_of
from toys import assert_same, toy_federator, updates_of, weights_of

from flt.algorithm.grouping.kmeans import KMeansGrouping
from flt.algorithm.recipe import Recipe
from flt.algorithm.rule.mean import Mean
from flt.algorithm.rule.residual import Residual
from flt.algorithm.rule.stacking import Stacking
from flt.algorithm.rule.svd import Svd
from flt.algorithm.selection.freeze import Freeze
from flt.algorithm.server_optimizer import FIRST, SECOND, Adagrad, Adam, Momentum, Yogi
from flt.core.errors import InputError
from flt.protocol.messages import decode, encode
from flt.protocol.state import GroupState

KINDS: dict[str, Any] = {
    "momentum": Momentum(0.7, beta=0.6),
    "adagrad": Adagrad(0.02, tau=1e-2),
    "adam": Adam(0.03, beta1=0.8, beta2=0.9, tau=1e-2),
    "yogi": Yogi(0.03, beta1=0.8, beta2=0.9, tau=1e-2),
}
kinds = pytest.mark.parametrize("name", KINDS)
Array = np.ndarray


def by_hand(name: str, d: Array, m: Array, v: Array) -> tuple[Array, Array, Array]:
    """(step, m, v) of the paper's algorithm 2, and of FedAvgM."""
    if name == "momentum":
        m = 0.6 * m + d
        return 0.7 * m, m, v
    lr, beta1 = (0.02, 0.0) if name == "adagrad" else (0.03, 0.8)
    m = beta1 * m + (1 - beta1) * d
    v = {
        "adagrad": v + d**2,
        "adam": 0.9 * v + 0.1 * d**2,
        "yogi": v - 0.1 * d**2 * np.sign(v - d**2),
    }[name]
    return lr * m / (np.sqrt(v) + 1e-2), m, v


@kinds
def test_steps_are_those_of_the_paper(name: str) -> None:
    federator = toy_federator(Recipe(Mean(), server_optimizer=KINDS[name]), clients_of(3), rounds=4, lr=0.05)
    w = {key: tensor.double().numpy() for key, tensor in weights_of(federator).items()}
    m, v = {key: np.zeros_like(value) for key, value in w.items()}, {key: np.full_like(w[key], 1e-4) for key in w}
    while federator.state.rounds < 4:
        federator._round()
        total = sum(update.examples for update in updates_of(federator))
        for key in w:
            mean = sum(
                update.examples / total * update.tensors[key].double().numpy() for update in updates_of(federator)
            )
            step, m[key], v[key] = by_hand(name, mean - w[key], m[key], v[key])
            w[key] = w[key] + step
            np.testing.assert_allclose(weights_of(federator)[key], w[key], rtol=1e-4, atol=2e-6, err_msg=key)
            w[key] = weights_of(federator)[key].double().numpy()  # rounding doesn't add up
    slots = federator.state.groups[0].slots
    assert set(slots) == ({FIRST} if name == "momentum" else {FIRST, SECOND})
    np.testing.assert_allclose(slots[FIRST]["head.weight"], m["head.weight"], rtol=1e-3, atol=1e-6)


def test_yogis_second_moment_stays_where_it_is_the_squared_change() -> None:
    moments = Yogi(beta2=0.75).second_moment(torch.tensor([2.0, 0.0, 1.0]), torch.tensor([4.0, 0.0, 9.0]))
    assert moments.tolist() == [4.0, 0.0, 8.75]


def test_momentum_without_memory_is_fedit() -> None:
    plain, stepped = (
        toy_federator(recipe, clients_of(3), rounds=3, cohort=2)
        for recipe in (FEDIT, Recipe(Mean(), server_optimizer=Momentum(1.0, beta=0.0)))
    )
    plain.fit()
    stepped.fit()
    assert_same(weights_of(stepped), weights_of(plain), tolerance=1e-6)


@kinds
def test_pairs_that_nobody_sent_keep_value_and_moments(name: str) -> None:
    recipe = Recipe(Mean(), selection=Freeze("random"), server_optimizer=KINDS[name])
    federator = toy_federator(recipe, clients_of(3, ranks=[1]), rounds=6, cohort=2, lr=0.05)
    still = 0
    while federator.state.rounds < 6:
        before = federator.state.groups[0]
        federator._round()
        after = federator.state.groups[0]
        for layer_name, layer in federator.server.layout.layers.items():
            sent = {pair for update in updates_of(federator) for pair in update.kept[layer_name]}
            for pair in set(range(4)) - sent:
                assert torch.equal(after.weights[layer.a][pair], before.weights[layer.a][pair])
                assert torch.equal(after.weights[layer.b][:, pair], before.weights[layer.b][:, pair])
                if layer.b in before.slots.get(FIRST, {}):
                    kept = before.slots[FIRST][layer.b][:, pair]
                    assert torch.equal(after.slots[FIRST][layer.b][:, pair], kept)
                    still += bool(kept.any())
            for pair in sent:
                assert not torch.equal(after.weights[layer.b][:, pair], before.weights[layer.b][:, pair])
    assert still  # moments that would have moved a pair


@kinds
def test_each_cluster_has_moments_of_its_own_and_a_state_on_disk_has_them_all(name: str) -> None:
    recipe = Recipe(Mean("uniform"), grouping=KMeansGrouping(2), server_optimizer=KINDS[name])
    federator = toy_federator(recipe, clients_of(3, jobs=2), rounds=3, lr=0.05)
    federator.fit()
    one, other = (federator.state.groups[gid].slots[FIRST]["head.weight"] for gid in federator.state.clusters)
    assert not torch.equal(one, other)
    assert encode(decode(encode(federator.state))) == encode(federator.state)


@kinds
def test_members_from_several_groups_that_trained_nothing_move_nothing(name: str) -> None:
    """Each echoes another pair of another group: the mean of the broadcasts is not what the rule makes of them."""
    recipe = Recipe(Mean("uniform"), server_optimizer=KINDS[name])
    federator = toy_federator(recipe, clients_of(2), lr=0.05)
    federator.fit()
    (first, second), layout, state = updates_of(federator), federator.server.layout, federator.state
    other = {key: tensor + 1 for key, tensor in state.groups[0].weights.items()}
    groups = {0: state.groups[0], 1: dataclasses.replace(state.groups[0], slots={}), 2: GroupState(other, {}, {})}
    view = federator.server.view(dataclasses.replace(state, groups=groups, assignment={(0, 0): 1, (1, 0): 2}))
    members = [
        view.untrained_update(dataclasses.replace(update, kept=dict.fromkeys(layout.layers, pairs)))
        for update, pairs in ((first, (0, 1)), (second, (1, 2)))
    ]
    moved = federator.server._combined(view.with_group_starts({1: members}, lambda update: 1), 1, members, None)
    plain = Mean("uniform").combine(view.with_group_starts({1: members}, lambda update: 1), 1, members)
    assert_same(moved.new, plain.new, tolerance=1e-6)
    assert all(not moment.any() for moment in moved.slots[FIRST].values())


@pytest.mark.parametrize("rule", [Stacking(), Residual(), Svd()], ids=lambda rule: type(rule).__name__)
def test_rules_whose_answer_is_not_the_adapters_change_alone_are_refused(rule: Any) -> None:
    message = f"^server_optimizer Adam with rule {type(rule).__name__}: .*; allowed is none$"
    with pytest.raises(InputError, match=message):
        Recipe(rule, server_optimizer=Adam())


@pytest.mark.parametrize(
    ("make", "named"),
    [
        (lambda: Momentum(lr=0.0), "server_optimizer.lr=0.0"),
        (lambda: Momentum(beta=1.0), "server_optimizer.beta=1.0"),
        (lambda: Adam(beta1=-0.1), "server_optimizer.beta1=-0.1"),
        (lambda: Yogi(beta2=float("nan")), "server_optimizer.beta2=nan"),
        (lambda: Adagrad(tau=0.0), "server_optimizer.tau=0.0"),
    ],
)
def test_wrong_settings_are_refused(make: Any, named: str) -> None:
    with pytest.raises(InputError, match=f"^{named}"):
        make()
