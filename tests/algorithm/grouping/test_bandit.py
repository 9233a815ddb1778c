"""The bandit over clusterings: its choices by hand, its rewards, and a resume."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import pytest
from made import update_of, view_of
from methods import METHODS, clients_of
from toys import toy_clients, toy_federator

from flt.algorithm.grouping.bandit import BanditGrouping, rewarded
from flt.algorithm.recipe import Recipe
from flt.algorithm.rule.mean import Mean
from flt.algorithm.transfer import CosineTransfer
from flt.callbacks.bandit_choices import BanditChoices
from flt.core.errors import InputError
from flt.protocol.messages import encode

LOSS = "distributed/val_loss"


def test_every_arm_is_chosen_once_and_then_the_largest_bound() -> None:
    bandit = BanditGrouping(ks=(2, 3), kinds=("changes",), weights=(0.0,), explore=0.5)
    assert bandit.arms == [(2, "changes", 0.0), (3, "changes", 0.0)]
    assert bandit.chosen({"choices": (1.0, 0.0), "rewards": (0.9, 0.0)}) == 1
    for choices, rewards in (((3.0, 1.0), (0.9, 0.1)), ((3.0, 9.0), (0.9, 2.6)), ((1.0, 9.0), (0.2, 3.6))):
        bounds = [
            r / n + 0.5 * math.sqrt(2 * math.log(sum(choices)) / n) for n, r in zip(choices, rewards, strict=True)
        ]
        assert bandit.chosen({"choices": choices, "rewards": rewards}) == bounds.index(max(bounds))


def test_the_latest_arm_is_rewarded_by_the_relative_fall_of_the_loss() -> None:
    view = view_of()
    updates = [dataclasses.replace(update_of(view, (c, 0)), metrics={LOSS: loss}) for c, loss in enumerate((0.2, 0.4))]
    before = {"choices": (2.0, 1.0), "rewards": (0.5, 0.1), "latest": (1.0, 0.4)}
    assert rewarded(before, updates, 2)["rewards"] == pytest.approx((0.5, 0.1 + (0.4 - 0.3) / 0.4))
    silent = [dataclasses.replace(update, metrics={}) for update in updates]
    assert rewarded(before, silent, 2) == {"choices": (2.0, 1.0), "rewards": (0.5, 0.1)}
    broken = [dataclasses.replace(updates[0], metrics={LOSS: loss}) for loss in (math.nan, math.inf)]
    assert rewarded(before, broken, 2) == rewarded(before, silent, 2)
    assert rewarded(before, [*broken, *updates], 2) == rewarded(before, updates, 2)


def test_a_loss_of_another_name_rewards_too() -> None:
    view, before = view_of(), {"choices": (1.0,), "rewards": (0.0,), "latest": (0.0, 0.4)}
    update = dataclasses.replace(update_of(view, (0, 0)), metrics={"distributed/test_loss": 0.3, "fit/train_loss": 9.0})
    assert rewarded(before, [update], 1)["rewards"] == pytest.approx((0.25,))


def test_the_chosen_transfer_is_applied_and_another_is_refused() -> None:
    found = {}
    for weight in (0.0, 0.5):
        recipe = dataclasses.replace(METHODS["fl_tac"][0], grouping=BanditGrouping(ks=(2,), weights=(weight,)))
        federator = toy_federator(recipe, clients_of(3, jobs=2))
        federator.fit()
        found[weight] = encode(federator.state)
    assert found[0.0] != found[0.5]
    with pytest.raises(InputError, match=r"^grouping BanditGrouping with transfer CosineTransfer: .* allowed is none$"):
        Recipe(Mean(), grouping=BanditGrouping(), transfer=CosineTransfer())


def test_a_run_tries_all_arms_and_a_resume_goes_on_with_the_same_bits() -> None:
    recipe = dataclasses.replace(METHODS["fl_tac"][0], grouping=BanditGrouping(ks=(2,), weights=(0.0, 0.2)))
    whole, half, rest = (toy_federator(recipe, toy_clients(3, jobs=2), rounds=n) for n in (6, 3, 6))
    whole.fit()
    half.fit()
    assert sum(whole.state.bandit["choices"]) == 6
    assert min(whole.state.bandit["choices"]) >= 1
    assert any(whole.state.bandit["rewards"])
    rest.state, rest.client_states = half.state, half.client_states
    rest.fit()
    assert encode(rest.state) == encode(whole.state)


def test_each_round_logs_the_combination_that_it_has_chosen() -> None:
    recipe = dataclasses.replace(METHODS["fl_tac"][0], grouping=BanditGrouping(ks=(2,), weights=(0.0, 0.2)))
    federator = toy_federator(recipe, toy_clients(3, jobs=2), rounds=5, callbacks=[BanditChoices()])
    federator.fit()
    chosen = [(row["bandit/changes"], row["bandit/transfer"]) for row in federator.history]
    assert chosen[:4] == [(0.0, 0.0), (0.0, 0.2), (1.0, 0.0), (1.0, 0.2)]
    assert all(row["bandit/k"] == 2 for row in federator.history)
    assert ["bandit/reward" in row for row in federator.history] == [False] * 4 + [True]
    again = chosen[:4].index(chosen[4])
    rewards, latest = federator.state.bandit["rewards"], federator.state.bandit["latest"]
    assert (latest[0], federator.history[4]["bandit/reward"]) == (again, rewards[again])


def test_other_groupings_have_no_bandit_in_their_state() -> None:
    federator = toy_federator(METHODS["fl_tac"][0], clients_of(3, jobs=2))
    federator.fit()
    assert federator.state.bandit == {}
    assert b"bandit" not in encode(federator.state)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("ks", ()),
        ("ks", (1,)),
        ("ks", (2, 2)),
        ("weights", (0.1, 0.1)),
        ("kinds", ("x",)),
        ("weights", (1.5,)),
        ("explore", -1.0),
        ("memory", True),
    ],
)
def test_settings_without_meaning_are_refused(key: str, value: Any) -> None:
    with pytest.raises(InputError, match=f"^grouping.{key}="):
        BanditGrouping(**{"features": "changes", key: value})
