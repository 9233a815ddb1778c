"""The annealing that ends when the validation loss stalls, against budgets written out by hand."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from benchmarks.pages.toy_federation import toy
from commands import metrics
from launched import ForkedFlt, ended
from methods import clients_of
from toys import toy_federator

from flt.algorithm.buffers import Local
from flt.algorithm.importance import GradientSensitivity
from flt.algorithm.plan import AdapterPlan, Stages
from flt.algorithm.recipe import Recipe
from flt.algorithm.rule.mean import Mean
from flt.algorithm.schedule import Annealed, Stalling
from flt.core.errors import InputError
from flt.protocol.messages import decode, encode
from flt.run.assembly import refusal
from flt.run.compose import load_config
from flt.server.callback import FedCallback
from flt.server.federator import Federator
from flt.server.state_validation import check_states

ROUNDS = 8
CURVE = [8, 8, 6, 5, 3, 2, 1, 1]
"""b(1) .. b(8) of the annealing below: 1 + 7 (1 - (t - 2) / 5), rounded down, after two rounds of heating."""
FALLING = [1.0, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3]
SETTINGS: dict[str, Any] = {
    "end": 1, "shape": "linear", "heat": 2, "cool": 1, "initiating": 0, "rounds": ROUNDS,
}  # fmt: skip


class Measured(FedCallback):
    """Logs losses that are given, and remembers how many components each round had."""

    def __init__(self, losses: Sequence[float | None], key: str = "round/val_loss") -> None:
        self.losses, self.key, self.budgets = losses, key, list[int]()

    def on_round_start(self, federator: Federator) -> None:
        (budget,) = set(map(len, federator.state.active.values()))
        self.budgets.append(budget)

    def on_round_end(self, federator: Federator) -> None:
        if (loss := self.losses[federator.round - 1]) is not None:
            federator.log({self.key: loss})


def federation(losses: Sequence[float | None], key: str = "round/val_loss", **given: Any) -> tuple[Federator, Measured]:
    schedule, seen = Stalling(**{**SETTINGS, **given}), Measured(losses, key)
    recipe = Recipe(Mean(), plan=Stages(0, rounds=ROUNDS), schedule=schedule, importance=GradientSensitivity())
    return toy_federator(recipe, clients_of(2), rounds=ROUNDS, callbacks=[seen], steps=1, rank=8), seen


def budgets(losses: Sequence[float | None], key: str = "round/val_loss", **given: Any) -> list[int]:
    federator, seen = federation(losses, key, **given)
    federator.fit()
    return seen.budgets


def test_the_curve_is_the_one_written_above() -> None:
    assert [Annealed(**SETTINGS).budget(t, 8) for t in range(1, ROUNDS + 1)] == CURVE


@pytest.mark.parametrize(
    ("losses", "given", "expected"),
    [
        (FALLING, {}, CURVE),
        # the losses of rounds 3 and 4 aren't better than round 2's: s = 4, and b stays at b(5)
        ([1.0, 0.9, 0.9, 0.95, 0.1, 0.1, 0.1, 0.1], {}, [8, 8, 6, 5, 3, 3, 3, 3]),
        ([1.0, 0.9, 0.9, 0.95, 0.1, 0.1, 0.1, 0.1], {"then": "cool"}, [8, 8, 6, 5, 3, 1, 1, 1]),
        ([1.0, 0.9, 0.95, 0.8, 0.85, 0.7, 0.75, 0.6], {}, CURVE),  # never two in a row
        ([1.0, 0.9, 0.95, 0.8, 0.85, 0.7, 0.75, 0.6], {"patience": 1}, [8, 8, 6, 5, 5, 5, 5, 5]),  # s = 3: b(4)
        # a gain of 0.1 isn't enough: s = 4
        (FALLING, {"min_delta": 0.25}, [8, 8, 6, 5, 3, 3, 3, 3]),
        # rounds before the end of heating don't count, although the loss of round 1 is never reached again
        ([0.0, *FALLING[1:]], {}, CURVE),
        # rounds without an evaluation don't count: the second evaluation without a gain is that of round 6
        ([None, 0.9, None, 0.9, None, 0.9, None, 0.9], {}, CURVE),
        ([None, 0.9, None, 0.9, None, 0.9, None, 0.9], {"patience": 1}, [8, 8, 6, 5, 3, 3, 3, 3]),
        ([math.nan] * 8, {}, [8, 8, 6, 5, 5, 5, 5, 5]),  # s = 3: nan is never better
    ],
    ids=["falling", "hold", "cool", "up and down", "patience 1", "min_delta", "heating", "every 2", "both", "nan"],
)  # fmt: skip
def test_the_budget_falls_until_the_validation_loss_stalls(
    losses: list[float | None], given: dict[str, Any], expected: list[int]
) -> None:
    assert budgets(losses, **given) == expected


def test_a_module_without_a_loss_is_watched_by_its_score() -> None:
    rising = [0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8]
    assert budgets(rising, "round/val_acc") == CURVE
    assert budgets(rising[::-1], "round/val_acc") == [8, 8, 6, 5, 3, 3, 3, 3]
    assert budgets(rising, "round/val_perplexity") == [8, 8, 6, 5, 3, 3, 3, 3]


def test_an_annealed_budget_keeps_no_losses_and_its_state_has_the_bytes_of_before() -> None:
    recipe = Recipe(Mean(), schedule=Annealed(**SETTINGS), importance=GradientSensitivity())
    federator = toy_federator(recipe, clients_of(2), rounds=ROUNDS, callbacks=[Measured(FALLING)], steps=1, rank=8)
    federator._round()
    assert federator.state.validation == {}
    assert b"validation" not in encode(federator.state)


@pytest.mark.parametrize("by", ["score", "svd"])
def test_a_resumed_run_has_the_same_bits(by: str) -> None:
    stalls = [1.0, 0.9, 0.95, 0.95, 0.1, 0.1, 0.1, 0.1]
    (straight, _), (stopped, _), (resumed, seen) = (federation(stalls, by=by) for _ in range(3))
    straight.fit()
    stopped.rounds = 4
    stopped.fit()
    resumed.state, resumed.client_states = decode(encode(stopped.state)), stopped.client_states
    resumed.fit()
    assert resumed.state.validation == dict(enumerate(stalls, 1))
    assert seen.budgets == [3, 3, 3, 3]
    assert encode(resumed.state) == encode(straight.state)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"patience": 0}, "schedule.patience=0: allowed is an integer >= 1"),
        ({"min_delta": -0.1}, "schedule.min_delta=-0.1: allowed is a number >= 0"),
        ({"min_delta": math.nan}, "schedule.min_delta=nan: allowed is a number >= 0"),
        ({"then": "stop"}, "schedule.then=stop: allowed is hold, cool"),
    ],
    ids=str,
)
def test_a_wrong_setting_is_refused(given: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=f"^{message}$"):
        Stalling(**given)


def test_a_recipe_without_a_global_model_is_refused() -> None:
    layout = toy_federator().server.layout
    private = AdapterPlan(private=["B", "head"])
    recipe = Recipe(Mean(), plan=private, schedule=Stalling(), importance=GradientSensitivity())
    with pytest.raises(InputError, match=r"^schedule Stalling with plan AdapterPlan: .*; allowed is annealed$"):
        recipe.check(layout)
    dataclasses.replace(recipe, plan=AdapterPlan(), buffers=Local()).check(layout)  # the toy has no buffers


def test_a_checkpoint_with_a_loss_of_a_later_round_is_refused() -> None:
    federator, _ = federation(FALLING)
    federator._round()
    forged = dataclasses.replace(federator.state, validation={2: 0.5})
    with pytest.raises(InputError, match=r"^resume=validation loss of round 2: .*rounds 1 to 1"):
        check_states(forged, {}, federator)


STALLING = ["algo=sa_fedlora", "schedule=stalling", "schedule.min_delta=100", "schedule.patience=1", "schedule.heat=1"]


def test_a_run_without_validation_examples_is_refused() -> None:
    cfg = load_config(["algo=fedit", "schedule=stalling", "importance=gradient", "rounds=4", "clients=2"])
    assert refusal(cfg, toy("image", "per_client")) is None
    assert refusal(cfg, dataclasses.replace(toy("image", "per_client"), validation={})) == (
        "schedule=stalling: there are no validation examples (see data.validation); allowed is annealed"
    )


@pytest.mark.slow
def test_a_run_in_two_processes_has_the_bits_of_one_although_only_the_first_evaluates(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    more = ["rounds=6", "clients=2", "plan.until=1", "schedule.shape=linear"]
    ended(ForkedFlt(tmp_path, *STALLING, *more, "name=two", "engine=distributed", "devices=2"))
    ended(ForkedFlt(tmp_path, *STALLING, *more, "name=one"))
    one, two = (tmp_path / "lightning_logs" / name / "version_0" for name in ("one", "two"))
    assert metrics(one) == metrics(two)
    assert (one / "model" / "model.safetensors").read_bytes() == (two / "model" / "model.safetensors").read_bytes()
    living = [float(row["ranks/living"]) for row in metrics(one)]
    assert living[-1] == living[-3] > 4  # it stalled long before b_T
