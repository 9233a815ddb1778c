"""Averages of the sensitivity that clients carry from fit to fit: replayed by NumPy over all steps of all rounds."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from stacks import compared, federator_of
from toys import Toy, toy_clients, toy_federator, updates_of

from flt.algorithm.importance import GradientSensitivity
from flt.algorithm.recipe import Recipe
from flt.algorithm.rule.mean import Mean
from flt.algorithm.rule.stacking import Stacking
from flt.algorithm.schedule import Annealed
from flt.algorithm.selection.freeze import Freeze
from flt.algorithm.selection.truncate import Truncate
from flt.core.errors import InputError

RANK = 4


@pytest.mark.parametrize("uncertainty", [False, True], ids=["plain", "with uncertainty"])
@pytest.mark.parametrize("selection", [Freeze(by="random"), Truncate(by="random")], ids=["freeze", "truncate"])
def test_averages_go_on_where_the_jobs_last_fit_left_them(
    monkeypatch: pytest.MonkeyPatch, selection: Freeze | Truncate, uncertainty: bool
) -> None:
    """Components that a client lacks in a round keep their averages of earlier rounds."""
    seen: list[list[dict[str, np.ndarray]]] = []

    def on_after_backward(module: Toy) -> None:
        pairs = {name: p for name, p in module.named_parameters() if "lora" in name}
        seen[-1].append({name: (p.detach() * p.grad).abs().double().numpy() for name, p in pairs.items()})

    monkeypatch.setattr(Toy, "on_after_backward", on_after_backward)
    monkeypatch.setattr(Toy, "on_fit_start", lambda module: seen.append([]))
    meter = GradientSensitivity(beta1=0.7, beta2=0.4, uncertainty=uncertainty, carry=True)
    recipe = Recipe(Mean(), selection=selection, importance=meter)
    federator = toy_federator(recipe, toy_clients(2, ranks=[2, 3]), rounds=4, steps=3, lr=0.05)
    shapes = {name: entry.shape for name, entry in federator.server.layout.entries.items() if entry.axis is not None}
    means = [{name: np.zeros(shape) for name, shape in shapes.items()} for _ in range(2)]
    deviations = [{name: np.zeros(shape) for name, shape in shapes.items()} for _ in range(2)]
    for _ in range(4):
        seen.clear()
        federator._round()
        for update, steps in zip(updates_of(federator), seen, strict=True):
            expected = {"fc1": 0.0, "fc2": 0.0}
            for name in shapes:
                layer, axis = name.split(".")[0], 0 if "lora_A" in name else 1
                held = list(update.scores[layer][0])
                mean, deviation = (np.take(of[update.job[0]][name], held, axis) for of in (means, deviations))
                for step in steps:
                    mean = 0.7 * mean + 0.3 * step[name]
                    deviation = 0.4 * deviation + 0.6 * np.abs(step[name] - mean)
                at = (held,) if axis == 0 else (slice(None), held)
                means[update.job[0]][name][at], deviations[update.job[0]][name][at] = mean, deviation
                expected[layer] += (mean * deviation if uncertainty else mean).mean(axis=1 - axis)
            for layer, (_, scores) in update.scores.items():
                np.testing.assert_allclose(scores.numpy(), expected[layer], rtol=1e-3, atol=1e-10)


def test_only_the_client_has_the_averages_and_only_with_carry() -> None:
    for carry, slots in ((True, {"sensitivity"}), (False, set())):
        recipe = Recipe(Mean(), selection=Freeze(), importance=GradientSensitivity(carry=carry))
        federator = toy_federator(recipe, toy_clients(2, ranks=[2]), rounds=2)
        federator.fit()
        kept = {slot for state in federator.client_states.values() for slot in state.slots}
        assert kept == slots
        assert not federator.state.groups[0].slots


def test_the_first_round_is_that_of_averages_that_start_afresh() -> None:
    scores = []
    for carry in (True, False):
        recipe = Recipe(Mean(), selection=Freeze(), importance=GradientSensitivity(carry=carry))
        federator = toy_federator(recipe, toy_clients(2, ranks=[2]), rounds=2)
        federator._round()
        first = updates_of(federator)
        federator._round()
        scores.append(
            [torch.cat([v for u in of for _, v in u.scores.values()]) for of in (first, updates_of(federator))]
        )
    (carried, later), (afresh, anew) = scores
    assert torch.equal(carried, afresh)
    assert later.sum() > anew.sum()


def test_stacked_jobs_carry_what_single_ones_carry() -> None:
    federator = federator_of("hafl", "importance.carry=true", "selection=truncate", ranks=[2, 2, 3, 3])
    compared(federator, rounds=2)


def test_carried_averages_are_refused_where_components_do_not_stay_the_same() -> None:
    meter = GradientSensitivity(carry=True)
    with pytest.raises(InputError, match="importance.carry=true: .*fresh adapter"):
        Recipe(Stacking(), selection=Freeze(), importance=meter)
    with pytest.raises(InputError, match="schedule.by=svd: .*carried averages"):
        Recipe(Mean(), schedule=Annealed(by="svd", rounds=10), importance=meter)
    Recipe(Mean(), schedule=Annealed(rounds=10), importance=meter)
