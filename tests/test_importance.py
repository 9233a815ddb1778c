"""Scores of pairs: the clients' moving averages replayed by NumPy, and the server's smoothing by hand."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from made import update_of, view_of
from toys import Toy, toy_clients, toy_federator

from flt.callbacks.server import Recipe
from flt.errors import InputError
from flt.messages import Ids, Update
from flt.plans import AdapterPlan
from flt.ranks.importance import GradientSensitivity, NoImportance
from flt.ranks.selection import Freeze, Truncate
from flt.rules.mean import Mean
from flt.state import GroupState

Steps = list[dict[str, np.ndarray]]
"""Per optimiser step: tensor -> |w * dL/dw|."""


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
    found = GradientSensitivity(beta1=beta1)(group, updates).scores
    fresh = {"x": [1.0, 5.0, 0.75, None], "y": [None, None, None, 8.0]}
    for layer, values in fresh.items():
        expected = [o if v is None else beta1 * o + (1 - beta1) * v for o, v in zip(OLD, values, strict=True)]
        np.testing.assert_allclose(found[layer].numpy(), expected, rtol=1e-12)


def test_pairs_that_nobody_measured_keep_their_scores_bit_for_bit() -> None:
    group, updates = measured()
    found = GradientSensitivity()(group, updates).scores
    assert found["x"][3].item() == OLD[3]
    assert found["y"][:3].tolist() == OLD[:3]
    assert GradientSensitivity()(group, []).scores["x"].tolist() == OLD


def test_smoothing_leaves_weights_slots_and_the_group_of_before_alone() -> None:
    group, updates = measured()
    found = GradientSensitivity()(group, updates)
    assert found.weights is group.weights
    assert found.slots is group.slots
    assert group.scores["x"].tolist() == OLD
    assert NoImportance()(group, updates) is group


@pytest.mark.parametrize("key", ["beta1", "beta2"])
@pytest.mark.parametrize("value", [-0.1, 1.0, float("nan")])
def test_a_decay_outside_of_0_to_1_is_refused_by_name(key: str, value: float) -> None:
    with pytest.raises(InputError, match=rf"^importance.{key}={value}: allowed is a number in \[0, 1\)$"):
        GradientSensitivity(**{key: value})
