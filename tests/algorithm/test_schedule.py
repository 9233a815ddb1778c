"""The annealed rank budget against NumPy, and what it does to a federation."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from commands import in_empty_folder, train
from hypothesis import given, settings
from hypothesis import strategies as st
from methods import clients_of
from toys import toy_federator, updates_of, weights_of

from flt.algorithm.grouping.kmeans import KMeansGrouping
from flt.algorithm.importance import DeltaSensitivity, GradientSensitivity, Magnitude, NoImportance
from flt.algorithm.plan import AdapterPlan, Stages
from flt.algorithm.recipe import Recipe
from flt.algorithm.rule.mean import Mean
from flt.algorithm.rule.scaffold import Scaffold
from flt.algorithm.rule.stacking import Stacking
from flt.algorithm.schedule import SHAPES, Annealed, Constant
from flt.algorithm.selection.freeze import Freeze
from flt.core.errors import InputError
from flt.protocol.messages import decode, encode
from flt.server.federator import Federator

MEASURED = GradientSensitivity()
OWN = Freeze(scores="client")
PRIVATE = AdapterPlan(private=["B"])


def reference(shape: str, start: int, end: int, rounds: int, first: int, heat: int, cool: int) -> list[int]:
    """b(1) .. b(T) by the formulas of the paper's description, over arrays."""
    t = np.arange(1, rounds + 1)
    span = max(1, rounds - first - heat - cool)
    x = np.clip((t - first - heat) / span, 0, 1)
    falls = {"cubic": (1 - x) ** 3, "linear": 1 - x, "cosine": 0.5 + 0.5 * np.cos(np.pi * x)}
    values = np.exp((1 - x) * np.log(start) + x * np.log(end))
    if shape in falls:
        values = end + (start - end) * falls[shape]
    budget = np.floor(np.round(values, 6))
    budget[t <= first + heat] = start
    budget[t > rounds - cool] = end
    return [int(b) for b in budget]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(("start", "end"), [(16, 4), (8, 1), (5, 5)])
@pytest.mark.parametrize(
    ("rounds", "first", "heat", "cool"), [(20, 1, 2, 4), (10, 0, 1, 0), (7, 3, 0, 4), (3, 0, 1, 1)]
)
def test_the_budget_is_the_formulas(
    shape: str, start: int, end: int, rounds: int, first: int, heat: int, cool: int
) -> None:
    schedule = Annealed(end, shape, heat, cool, initiating=first, rounds=rounds)
    found = [schedule.budget(t, start) for t in range(1, rounds + 1)]
    assert found == reference(shape, start, end, rounds, first, heat, cool)


def test_cubic_from_16_to_4_is_written_out() -> None:
    schedule = Annealed(4, heat=2, cool=2, initiating=0, rounds=10)
    # 4 + 12 (1 - x)^3 at x = 1/6 .. 6/6: 10.9, 7.6, 5.5, 4.4, 4.1, 4.0
    assert [schedule.budget(t, 16) for t in range(1, 11)] == [16, 16, 10, 7, 5, 4, 4, 4, 4, 4]


@given(
    st.sampled_from(sorted(SHAPES)), st.integers(1, 60), st.integers(1, 20), st.integers(1, 20),
    st.floats(0, 1), st.floats(0, 1), st.floats(0, 1),
)  # fmt: skip
@settings(max_examples=100, deadline=None)
def test_shares_of_any_run_give_a_budget_that_falls_to_the_end(
    shape: str, rounds: int, end: int, more: int, until: float, heat: float, cool: float
) -> None:
    first = Stages(until=until, rounds=rounds).initiating
    schedule = Annealed(end, shape, heat, cool, initiating=first, rounds=rounds)
    found = [schedule.budget(t, end + more) for t in range(1, rounds + 1)]
    assert found == sorted(found, reverse=True)
    assert set(found) <= set(range(end, end + more + 1))
    assert found[0] == end + more  # something is measured before the first cut
    assert set(found[:first]) <= {end + more}


def test_the_reversed_budget_rises_from_the_end_to_the_start() -> None:
    schedule = Annealed(1, "linear", heat=1, cool=1, reversed=True, initiating=0, rounds=5)
    assert [schedule.budget(t, 4) for t in range(1, 6)] == [1, 2, 3, 4, 4]


def federated(schedule: Annealed, importance: Any = MEASURED, **given: Any) -> Federator:
    recipe = Recipe(Mean(), schedule=schedule, importance=importance, plan=given.pop("plan", Stages(0, rounds=6)))
    federator = toy_federator(recipe, clients_of(3), **{"rounds": 6, "lr": 0.05, **given})
    sizes = []
    while federator.state.rounds < federator.rounds:
        alive = federator.state.alive
        federator._round()
        assert all(update.kept == alive for update in updates_of(federator))
        sizes.append(sum(len(encode(update)) for update in updates_of(federator)))
    federator.metrics["sizes"] = sizes
    return federator


LINEAR = Annealed(1, "linear", heat=1, cool=1, initiating=0, rounds=6)


def test_tensors_and_bytes_shrink_with_the_budget() -> None:
    federator = federated(LINEAR)
    assert [LINEAR.budget(t, 4) for t in range(1, 7)] == [4, 3, 2, 1, 1, 1]
    sizes = federator.metrics["sizes"]
    assert sizes[0] > sizes[1] > sizes[2] > sizes[3]
    # what goes is 4 bytes for each number of a pair, (6 + 8) in fc1 and (8 + 10) in fc2, of three clients
    assert sizes[0] - sizes[1] == pytest.approx(3 * 4 * (14 + 18), rel=0.25)
    tensors = updates_of(federator)[0].tensors
    assert tensors["fc1.lora_A.default.weight"].shape == (1, 6)
    assert tensors["fc2.lora_B.default.weight"].shape == (10, 1)


@pytest.mark.parametrize(
    "importance", [MEASURED, DeltaSensitivity(), Magnitude()], ids=["gradient", "delta", "magnitude"]
)
def test_a_cut_changes_the_product_by_the_removed_pairs_and_nothing_else(importance: Any) -> None:
    federator = toy_federator(Recipe(Mean(), schedule=LINEAR, importance=importance), clients_of(3), rounds=6, lr=0.05)
    federator._round()  # b(1) = 4, then the cut to b(2) = 3
    layout, state = federator.server.layout, federator.state
    weights, whole, lost = weights_of(federator), 0.0, 0.0
    for name, layer in layout.layers.items():
        b, a = weights[layer.b].double(), weights[layer.a].double()
        kept = list(state.alive[name])
        (gone,) = set(range(4)) - set(kept)
        scores = state.groups[0].scores[name]
        assert gone == int(scores.argmin())
        assert layer.scale == 2.0
        before, after = 2.0 * b @ a, 2.0 * b[:, kept] @ a[kept]
        torch.testing.assert_close(before - after, 2.0 * torch.outer(b[:, gone], a[gone]))
        whole, lost = whole + float((before**2).sum()), lost + float(((before - after) ** 2).sum())
        payload = federator.server.broadcast(state, *_first(federator))
        torch.testing.assert_close(2.0 * payload.tensors[layer.b].double() @ payload.tensors[layer.a].double(), after)
    assert state.pruned == pytest.approx((lost / whole) ** 0.5, rel=1e-9)
    assert federator.engine.local_trainer.module.fc1.scaling["default"] == 2.0


def _first(federator: Federator) -> tuple[Any, Any]:
    cohort = federator.draw_cohort()
    return cohort[0], cohort


def test_global_allocation_keeps_the_best_pairs_of_all_layers() -> None:
    schedule = Annealed(2, "linear", heat=1, cool=0, allocation="global", initiating=0, rounds=2)
    federator = toy_federator(Recipe(Mean(), schedule=schedule, importance=MEASURED), clients_of(3), rounds=2, lr=0.05)
    federator._round()
    scores = federator.state.groups[0].scores
    flat = np.concatenate([scores[name].numpy() for name in scores])
    best = {divmod(int(i), 4) for i in np.argsort(-flat, kind="stable")[:4]}
    names = list(scores)
    assert {(names.index(n), i) for n, ids in federator.state.alive.items() for i in ids} == best
    federator._round()
    assert {len(u.tensors["fc1.lora_A.default.weight"]) for u in updates_of(federator)} == {
        len(updates_of(federator)[0].kept["fc1"])
    }


def test_a_reversed_run_begins_with_few_pairs_and_what_it_adds_does_not_move_the_product() -> None:
    schedule = Annealed(1, "linear", heat=1, cool=1, reversed=True, initiating=0, rounds=4)
    federator = toy_federator(Recipe(Mean(), schedule=schedule, importance=MEASURED), clients_of(3), rounds=4, lr=0.05)
    assert set(federator.state.alive.values()) == {(0,)}
    federator._round()
    added = [i for i in federator.state.alive["fc1"] if i]
    assert added
    b = weights_of(federator)["fc1.lora_B.default.weight"]
    assert not b[:, added].any()
    assert b[:, 0].any()
    federator.fit()
    assert set(federator.state.alive.values()) == {(0, 1, 2, 3)}


@pytest.mark.parametrize("by", ["score", "svd"])
def test_a_resumed_run_has_the_same_bits(by: str) -> None:
    plan = Stages(1, rounds=4)
    schedule = Annealed(1, heat=1, cool=1, by=by, initiating=1, rounds=4)

    def made() -> Federator:
        return toy_federator(Recipe(Mean(), plan=plan, schedule=schedule, importance=MEASURED), clients_of(3), rounds=4)

    straight, stopped, resumed = made(), made(), made()
    straight.fit()
    stopped.rounds = 2
    stopped.fit()
    resumed.state = decode(encode(stopped.state))
    resumed.client_states = stopped.client_states
    resumed.fit()
    assert encode(resumed.state) == encode(straight.state)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"end": 0}, "schedule.end=0"),
        ({"shape": "round"}, "schedule.shape=round: allowed is cubic, linear, cosine, exponential"),
        ({"by": "magnitude"}, "schedule.by=magnitude: allowed is score, svd"),
        ({"allocation": "some"}, "schedule.allocation=some: allowed is layer, global"),
        (
            {"heat": 3, "cool": 3, "rounds": 5},
            "schedule.heat=3: 0 initiating, 3 heating, 3 cooling; allowed",
        ),
        ({"heat": 0, "rounds": 5}, "schedule.heat=0: 0 initiating, 0 heating, 1 cooling; allowed is at least one"),
        ({"cool": 1.5, "rounds": 5}, "schedule.cool=1.5: allowed is rounds from 0 to 5, or a share"),
        ({"allocation": "global", "reversed": True}, "schedule.allocation=global: a budget that rises wakes"),
        ({"by": "svd", "reversed": True}, "schedule.by=svd: a budget that rises cuts nothing; allowed is score"),
    ],
    ids=str,
)
def test_a_wrong_setting_is_refused(given: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=f"^{message}"):
        Annealed(**given)


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ({"rule": Mean(), "importance": NoImportance()}, "importance=none: Annealed cuts by it; allowed is gradient"),
        ({"rule": Stacking(), "importance": MEASURED}, "schedule Annealed with rule Stacking"),
        ({"rule": Scaffold(), "schedule": Annealed(by="svd")}, "schedule.by=svd"),
        ({"rule": Mean(), "grouping": KMeansGrouping(2), "schedule": Annealed(by="svd")}, "schedule.by=svd"),
        ({"rule": Mean(), "selection": OWN, "importance": MEASURED, "schedule": Annealed(by="svd")}, "schedule.by=svd"),
        (
            {"rule": Mean(), "plan": AdapterPlan(private=["B"]), "schedule": Annealed(by="svd")},
            "schedule.by=svd: the server",
        ),
        (
            {"rule": Mean(), "plan": AdapterPlan(private=["B"]), "importance": Magnitude()},
            "schedule.by=score: the server",
        ),
        (
            {
                "rule": Mean(),
                "plan": Stages(1, rounds=4),
                "importance": MEASURED,
                "schedule": Annealed(heat=0, initiating=1, rounds=4),
            },
            "schedule Annealed with plan Stages: no round before the first cut trains the components",
        ),
    ],
    ids=["unmeasured", "stacking", "slots", "groups", "own scores", "private, svd", "private, magnitude", "unheated"],
)
def test_a_mix_without_meaning_is_refused(parts: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=f"^{message}"):
        Recipe(**{"schedule": Annealed(), **parts})


def test_a_share_of_heating_is_a_round_at_least_so_that_pairs_train_at_full_rank() -> None:
    schedule = Annealed(1, initiating=1, rounds=4)
    assert [schedule.budget(t, 16) for t in range(1, 5)][:2] == [16, 16]
    assert Annealed(reversed=True, rounds=4).falls is False
    Recipe(Mean(), schedule=Annealed(reversed=True, rounds=4))  # what only rises needs no importance


def test_what_a_cut_takes_from_private_factors_is_not_known() -> None:
    plan, schedule = PRIVATE, Annealed(2, heat=1, cool=0, initiating=0, rounds=2)
    recipe = Recipe(Mean(), plan=plan, schedule=schedule, importance=MEASURED)
    federator = toy_federator(recipe, clients_of(3), rounds=2)
    federator._round()
    assert set(map(len, federator.state.alive.values())) == {2}
    assert federator.state.pruned is None


def test_an_end_above_the_adapters_rank_is_refused() -> None:
    with pytest.raises(InputError, match=r"^schedule.end=5: allowed is 1 to 4"):
        Annealed(5).check(4)
    Constant().check(1)


@pytest.mark.slow
def test_a_longer_run_of_a_schedule_is_refused(
    tmp_path: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    in_empty_folder(tmp_path, monkeypatch)
    assert train("algo=sa_fedlora", "rounds=2", "plan.until=1") == 0
    assert train("algo=sa_fedlora", "rounds=3", "resume=last") == 2
    assert "allowed is 2" in capsys.readouterr().err
