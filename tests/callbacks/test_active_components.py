"""What is said of the rank budget, against NumPy over the weights of each round."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
from commands import in_empty_folder, metrics, train
from filled import fill_b
from methods import clients_of
from toys import toy_federator, weights_of

from flt.algorithm.importance import Magnitude
from flt.algorithm.recipe import Recipe
from flt.algorithm.rule.mean import Mean
from flt.algorithm.schedule import Annealed
from flt.algorithm.selection.self_pruning import SelfPruning
from flt.callbacks.active_components import RankBudget
from flt.protocol.messages import Ids
from flt.server.callback import FedCallback
from flt.server.federator import Federator

FALLING = Annealed(1, "linear", heat=1, cool=1, initiating=0, rounds=6, allocation="global")


class Watched(FedCallback):
    """Writes down, round by round, which pairs were trained, and what the cut after the round took."""

    def __init__(self) -> None:
        self.alive: list[dict[str, Ids]] = []
        self.errors: list[float] = []

    def on_round_start(self, federator: Federator) -> None:
        self.alive.append(federator.state.alive)

    def on_round_end(self, federator: Federator) -> None:
        weights, whole, lost = weights_of(federator), 0.0, 0.0
        for name, layer in federator.server.layout.layers.items():
            before, after = list(self.alive[-1][name]), list(federator.state.alive[name])
            b, a = weights[layer.b].double().numpy(), weights[layer.a].double().numpy()
            product = b[:, before] @ a[before]
            whole += np.sum(product**2)
            lost += np.sum((product - b[:, after] @ a[after]) ** 2)
        self.errors.append(float(np.sqrt(lost / whole)))


def test_living_pairs_are_those_of_the_round_and_the_error_is_that_of_the_cut_behind_it() -> None:
    watched = Watched()
    recipe = Recipe(Mean(), schedule=FALLING, importance=Magnitude())
    federator = toy_federator(recipe, clients_of(3), rounds=6, lr=0.05, callbacks=[RankBudget(), watched])
    federator.fit()
    for number, figures in enumerate(federator.history):
        assert figures["ranks/living"] == FALLING.budget(number + 1, 4)
        cut = number + 2 <= 6 and FALLING.budget(number + 2, 4) < FALLING.budget(number + 1, 4)
        assert ("ranks/pruning_error" in figures) is cut
        if cut:
            assert figures["ranks/pruning_error"] == pytest.approx(watched.errors[number], rel=1e-6)


def test_layers_of_different_ranks_are_told_by_mean_and_smallest() -> None:
    federator = toy_federator(Recipe(Mean(), schedule=FALLING, importance=Magnitude()), clients_of(3), rounds=6)
    federator.state = dataclasses.replace(federator.state, alive={"fc1": (0,), "fc2": (0, 1, 3)})
    RankBudget().on_round_start(federator)
    assert federator.metrics == {"ranks/living": 2.0, "ranks/smallest": 1}


def test_a_budget_that_stays_is_not_told() -> None:
    federator = toy_federator(Recipe(Mean()), clients_of(3), rounds=1, callbacks=[RankBudget()])
    federator.fit()
    assert not [key for key in federator.history[0] if key.startswith("ranks/")]


@pytest.mark.slow
def test_a_run_of_sa_fedlora_tells_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    in_empty_folder(tmp_path, monkeypatch)
    assert train("algo=sa_fedlora", "rounds=6", "schedule.heat=1", "schedule.cool=1", "name=sa") == 0
    rows = metrics(tmp_path / "lightning_logs" / "sa" / "version_0")
    assert [bool(row["ranks/pruning_error"]) for row in rows][-1] is False
    assert any(row["ranks/pruning_error"] for row in rows)
    assert float(rows[-1]["ranks/living"]) == 4


def test_the_mean_rank_of_the_clients_is_left_once_some_have_given_up_pairs() -> None:
    """Ranks 1, 2 and 4, halved by everyone that can: (1 + 1 + 2) / 3."""
    recipe = Recipe(Mean(), selection=SelfPruning(0.5, 1.0))
    federator = toy_federator(
        recipe, clients_of(3, ranks=[1, 2, 4]), callbacks=[RankBudget()], optimizer="sgd", lr=0.05
    )
    fill_b(weights_of(federator))
    federator.fit()
    assert federator.history[-1]["ranks/clients"] == pytest.approx(4 / 3)
    kept = toy_federator(Recipe(Mean()), clients_of(3), callbacks=[RankBudget()])
    kept.fit()
    assert "ranks/clients" not in kept.history[-1]
