"""Scores of pairs: the clients' moving averages replayed by NumPy, and the server's smoothing by hand."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from made import update_of, view_of
from slowly import slowly
from toys import Toy, toy_clients, toy_federator, weights_of

from flt.algorithm.importance import DEVIATION, MEAN, DeltaSensitivity, GradientSensitivity, NoImportance
from flt.algorithm.plan import AdapterPlan
from flt.algorithm.recipe import Recipe
from flt.algorithm.rule.base import Rule
from flt.algorithm.rule.mean import Mean
from flt.algorithm.rule.scaffold import Scaffold
from flt.algorithm.rule.stacking import Stacking
from flt.algorithm.selection.freeze import Freeze
from flt.algorithm.selection.truncate import Truncate
from flt.core.errors import InputError
from flt.protocol.messages import Ids, Update
from flt.protocol.state import GroupState
from flt.server.federator import Federator

Steps = list[dict[str, np.ndarray]]
"""Per optimiser step: tensor -> |w * dL/dw|."""
Weights = dict[str, np.ndarray]


@pytest.fixture
def fits(monkeypatch: pytest.MonkeyPatch) -> list[Steps]:
    """What every fit's backward passes leave, read where no callback has touched a gradient yet."""
    seen: list[Steps] = []

    def on_after_backward(module: Toy) -> None:
        pairs = {name: p for name, p in module.named_parameters() if "lora" in name}
        seen[-1].append({name: (p.detach() * p.grad).abs().double().numpy() for name, p in pairs.items()})

    monkeypatch.setattr(Toy, "on_after_backward", on_after_backward)
    monkeypatch.setattr(Toy, "on_fit_start", lambda module: seen.append([]))
    return seen


def replayed(steps: Steps, layer: str, beta1: float, beta2: float, uncertainty: bool) -> np.ndarray:
    """AdaLoRA's equations 4-6 from zero, and HAFL's score: the mean over A's row plus that over B's column."""
    score = 0.0
    for part, axis in (("A", 1), ("B", 0)):
        mean = deviation = np.zeros_like(steps[0][f"{layer}.lora_{part}.default.weight"])
        for step in steps:
            sensitivity = step[f"{layer}.lora_{part}.default.weight"]
            mean = beta1 * mean + (1 - beta1) * sensitivity
            deviation = beta2 * deviation + (1 - beta2) * np.abs(sensitivity - mean)
        score = score + (mean * deviation if uncertainty else mean).mean(axis=axis)
    return np.asarray(score)


# ---------------------------------------------------------------------------------------------- measured by clients


@pytest.mark.parametrize("uncertainty", [False, True], ids=["plain", "with uncertainty"])
@pytest.mark.parametrize("selection", [Freeze(), Truncate()], ids=["freeze", "truncate"])
@pytest.mark.parametrize("mu", [0.0, 5.0], ids=["", "proximal"])
def test_scores_are_the_replayed_averages_of_the_losss_own_gradient(
    fits: list[Steps], selection: Freeze | Truncate, uncertainty: bool, mu: float
) -> None:
    meter = GradientSensitivity(beta1=0.7, beta2=0.4, uncertainty=uncertainty)
    recipe = Recipe(Mean(), plan=AdapterPlan(mu=mu), selection=selection, importance=meter)
    federator = toy_federator(recipe, toy_clients(2, ranks=[2, 3]), rounds=2, steps=4, lr=0.05, clip=0.01)
    for _ in range(2):
        fits.clear()
        federator._round()
        for update, steps in zip(federator.updates, fits, strict=True):
            assert len(steps) == 4
            for layer in ("fc1", "fc2"):
                ids, found = update.scores[layer]
                assert ids == (tuple(range(4)) if isinstance(selection, Freeze) else update.kept[layer])
                expected = replayed(steps, layer, 0.7, 0.4, uncertainty)
                np.testing.assert_allclose(found.numpy(), expected, rtol=1e-4, atol=1e-12)
    assert all(bool((scores > 0).any()) for scores in federator.state.groups[0].scores.values())


def test_frozen_pairs_are_measured_and_truncated_ones_are_not() -> None:
    for selection, measured in ((Freeze(), 4), (Truncate(), 2)):
        recipe = Recipe(Mean(), selection=selection, importance=GradientSensitivity())
        federator = toy_federator(recipe, toy_clients(2, ranks=[2]), rounds=2, lr=0.05)  # in round 1, B = 0
        federator.fit()
        ids, values = federator.updates[0].scores["fc1"]
        assert len(ids) == len(values) == measured
        assert bool((values > 0).all())


def test_without_importance_nothing_is_measured_sent_or_changed() -> None:
    federator = toy_federator(Recipe(Mean(), importance=NoImportance()))
    federator.fit()
    assert all(update.scores == {} for update in federator.updates)
    assert all(not scores.any() for scores in federator.state.groups[0].scores.values())


# ---------------------------------------------------------------------------------------------- smoothed by the server

OLD = [0.5, 1.0, 2.0, 4.0]
MEASURED: list[tuple[int, dict[str, tuple[Ids, list[float]]]]] = [
    (10, {"x": ((0, 1, 2), [1.0, 2.0, 3.0]), "y": ((3,), [8.0])}),
    (30, {"x": ((1, 2), [6.0, 0.0])}),
    (60, {}),
]
"""Of each client: examples, layer -> (pairs, scores)."""


def smoothed(part: GradientSensitivity | NoImportance, group: GroupState, updates: list[Update]) -> GroupState:
    return part(view_of(), group, group, updates)


def measured(sign: int = 1) -> tuple[GroupState, list[Update]]:
    view = view_of(scores={"x": OLD, "y": OLD})
    updates = [
        dataclasses.replace(
            update_of(view, (client, 0), examples=examples),
            scores={layer: (ids, torch.tensor(values)) for layer, (ids, values) in scores.items()},
        )
        for client, (examples, scores) in enumerate(MEASURED)
    ]
    return view.state.groups[0], updates[::sign]


@pytest.mark.parametrize("beta1", [0.0, 0.6])
@pytest.mark.parametrize("sign", [1, -1], ids=["in order", "reversed"])
def test_scores_are_averaged_by_examples_and_smoothed_by_beta1(beta1: float, sign: int) -> None:
    """Pair 0: 1; pair 1: (10 * 2 + 30 * 6) / 40 = 5; pair 2: 10 * 3 / 40 = 0.75; of y, pair 3: 8."""
    group, updates = measured(sign)
    found = smoothed(GradientSensitivity(beta1=beta1), group, updates).scores
    fresh = {"x": [1.0, 5.0, 0.75, None], "y": [None, None, None, 8.0]}
    for layer, values in fresh.items():
        expected = [o if v is None else beta1 * o + (1 - beta1) * v for o, v in zip(OLD, values, strict=True)]
        np.testing.assert_allclose(found[layer].numpy(), expected, rtol=1e-12)


def test_a_score_that_one_example_measured_counts_in_full() -> None:
    view = view_of(scores={"x": OLD, "y": OLD})
    update = dataclasses.replace(update_of(view, (0, 0), examples=1), scores={"x": ((1,), torch.tensor([6.0]))})
    found = smoothed(GradientSensitivity(beta1=0.5), view.state.groups[0], [update]).scores
    assert found["x"][1].item() == (OLD[1] + 6.0) / 2


def test_pairs_that_nobody_measured_keep_their_scores_bit_for_bit() -> None:
    group, updates = measured()
    found = smoothed(GradientSensitivity(), group, updates).scores
    assert found["x"][3].item() == OLD[3]
    assert found["y"][:3].tolist() == OLD[:3]
    assert smoothed(GradientSensitivity(), group, []).scores["x"].tolist() == OLD


def test_smoothing_leaves_weights_slots_and_the_group_of_before_alone() -> None:
    group, updates = measured()
    found = smoothed(GradientSensitivity(), group, updates)
    assert found.weights is group.weights
    assert found.slots is group.slots
    assert group.scores["x"].tolist() == OLD
    assert smoothed(NoImportance(), group, updates) is group


@pytest.mark.parametrize("part", [GradientSensitivity, DeltaSensitivity])
@pytest.mark.parametrize("key", ["beta1", "beta2"])
@pytest.mark.parametrize("value", [-0.1, 1.0, float("nan")])
def test_a_decay_outside_of_0_to_1_is_refused_by_name(
    part: type[GradientSensitivity | DeltaSensitivity], key: str, value: float
) -> None:
    with pytest.raises(InputError, match=rf"^importance.{key}={value}: allowed is a number in \[0, 1\)$"):
        part(**{key: value})


# ---------------------------------------------------------------------------------------------- seen by the server


class DeltaByHand:
    """|w * dw / f| of the global models, entry by entry, in NumPy."""

    def __init__(self, beta1: float, beta2: float, uncertainty: bool) -> None:
        self.beta1, self.beta2, self.uncertainty = beta1, beta2, uncertainty
        self.mean: dict[str, np.ndarray] = {}
        self.deviation: dict[str, np.ndarray] = {}
        self.scores = {layer: np.zeros(4) for layer in ("fc1", "fc2")}

    def round(self, before: Weights, after: Weights, kept: list[dict[str, Ids]], factor: float) -> None:
        for layer, scores in self.scores.items():
            trained = sorted({pair for of_job in kept for pair in of_job[layer]})
            found = np.zeros(4)
            for part in "AB":
                name = f"{layer}.lora_{part}.default.weight"
                now = np.abs(after[name] * (after[name] - before[name]) / factor)
                now = now if part == "A" else now.T  # a row per pair
                mean, deviation = (of.setdefault(name, np.zeros_like(now)) for of in (self.mean, self.deviation))
                mean[trained] = self.beta1 * mean[trained] + (1 - self.beta1) * now[trained]
                apart = np.abs(now[trained] - mean[trained])
                deviation[trained] = self.beta2 * deviation[trained] + (1 - self.beta2) * apart
                found += (mean * deviation if self.uncertainty else mean).mean(axis=1)
            scores[trained] = found[trained]


def copied(federator: Federator) -> Weights:
    return {name: tensor.double().numpy().copy() for name, tensor in weights_of(federator).items()}


@pytest.mark.parametrize("uncertainty", [False, True], ids=["plain", "with uncertainty"])
@pytest.mark.parametrize("selection", [Freeze("random"), Truncate("random")], ids=["freeze", "truncate"])
@pytest.mark.parametrize(
    "rule", [Mean(), *slowly(Mean(pad="parameter"), Scaffold())], ids=["mean", "zero-pad", "scaffold"]
)
def test_the_servers_own_scores_are_those_of_the_aggregates_changes(
    rule: Rule, selection: Freeze | Truncate, uncertainty: bool
) -> None:
    """The rate decays, and padding shrinks pairs that nobody trained: neither may be seen."""
    part, hand = DeltaSensitivity(0.7, 0.4, uncertainty), DeltaByHand(0.7, 0.4, uncertainty)
    recipe = Recipe(rule, AdapterPlan(lr_decay=0.5), selection=selection, importance=part)
    federator = toy_federator(
        recipe, toy_clients(3, ranks=[1, 2]), rounds=5, cohort=2, steps=2, optimizer="sgd", lr=0.1
    )
    for number in range(5):
        before = copied(federator)
        federator._round()
        hand.round(before, copied(federator), [update.kept for update in federator.updates], 0.5**number)
        assert all(not update.scores for update in federator.updates)
        for layer, expected in hand.scores.items():
            found = federator.state.groups[0].scores[layer].numpy()
            np.testing.assert_allclose(found, expected, rtol=1e-9, atol=1e-15)
    assert all((scores > 0).any() for scores in hand.scores.values())


def test_pairs_that_nobody_trained_keep_their_scores_and_averages_bit_for_bit() -> None:
    recipe = Recipe(Mean(pad="parameter"), selection=Freeze("first"), importance=DeltaSensitivity(uncertainty=True))
    federator = toy_federator(recipe, toy_clients(2, ranks=[2, 4]), rounds=3, lr=0.05)
    federator.sampler = lambda clients, seed, round: [0] if round == 2 else clients
    found = []
    for _ in range(3):
        federator._round()
        found.append(federator.state.groups[0])
    for layer in ("fc1", "fc2"):
        assert found[1].scores[layer][2:].all()
        assert torch.equal(found[2].scores[layer][2:], found[1].scores[layer][2:])
        assert not torch.equal(found[2].scores[layer][:2], found[1].scores[layer][:2])
        for slot in (MEAN, DEVIATION):
            before, after = (group.slots[slot][f"{layer}.lora_B.default.weight"] for group in found[1:])
            assert torch.equal(after[:, 2:], before[:, 2:])
            assert not torch.equal(after[:, :2], before[:, :2])


def test_slots_of_the_rule_and_of_the_importance_stay_beside_each_other_and_never_travel() -> None:
    recipe = Recipe(Scaffold(), selection=Freeze(), importance=DeltaSensitivity(uncertainty=True))
    federator = toy_federator(recipe, toy_clients(2, ranks=[2]), rounds=2, optimizer="sgd", lr=0.1)
    federator.fit()
    assert sorted(federator.state.groups[0].slots) == ["c", DEVIATION, MEAN]
    payload = federator.server.broadcast(federator.state, federator.cohort[0], federator.cohort)
    assert sorted(payload.slots) == ["c"]


def test_without_uncertainty_the_scores_are_all_that_is_kept() -> None:
    federator = toy_federator(Recipe(Mean(), importance=DeltaSensitivity()), rounds=2)
    federator.fit()
    assert federator.state.groups[0].slots == {}
    assert all(scores.all() for scores in federator.state.groups[0].scores.values())


def test_a_fresh_adapter_in_each_round_has_no_change_to_score() -> None:
    with pytest.raises(InputError, match="^importance DeltaSensitivity with rule Stacking: each round begins"):
        Recipe(Stacking(), importance=DeltaSensitivity())
