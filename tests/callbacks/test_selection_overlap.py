"""How much the sets of trained pairs change, against sets that are written down."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from toys import toy_clients, toy_federator

from flt.algorithm.importance import GradientSensitivity
from flt.algorithm.recipe import Recipe
from flt.algorithm.rule.mean import Mean
from flt.algorithm.schedule import Constant
from flt.algorithm.selection.all import All
from flt.algorithm.selection.freeze import Freeze
from flt.algorithm.selection.truncate import Truncate
from flt.callbacks.selection_overlap import SelectionOverlap
from flt.protocol.layout import LORA_FACTORS, Layout
from flt.protocol.messages import Ids, JobId
from flt.protocol.state import ServerState
from flt.server.callback import FedCallback
from flt.server.federator import Federator


class Sets(FedCallback):
    """Writes down what each job trained in each round."""

    def __init__(self) -> None:
        self.kept: list[dict[JobId, dict[str, Ids]]] = []

    def on_round_end(self, federator: Federator) -> None:
        self.kept.append({update.job: update.kept for update in federator.updates})


def changed(kept: list[dict[JobId, dict[str, Ids]]]) -> list[float | None]:
    """By hand: a job's last sets are searched backwards through the rounds."""
    found: list[float | None] = []
    for round, now in enumerate(kept):
        counts = []
        for job, layers in now.items():
            before = next((of[job] for of in reversed(kept[:round]) if job in of), None)
            for layer in layers if before else ():
                counts.append(sum(pair not in before[layer] for pair in layers[layer]))
        found.append(np.mean(counts) if counts else None)
    return found


def logged(federator: Federator) -> list[float | None]:
    return [metrics.get("ranks/changed") for metrics in federator.history]


@pytest.mark.slow
@pytest.mark.parametrize("cohort", [None, 2], ids=["all", "partial cohorts"])
@pytest.mark.parametrize("selection", [Freeze("random"), Truncate("random"), Truncate("score", 0.5)], ids=str)
def test_new_pairs_are_counted_against_the_last_round_in_which_the_job_took_part(
    selection: Freeze | Truncate, cohort: int | None
) -> None:
    sets, recipe = Sets(), Recipe(Mean(), selection=selection, importance=GradientSensitivity())
    clients = toy_clients(4, jobs=2, ranks=[1, 2, 4])
    federator = toy_federator(recipe, clients, rounds=5, cohort=cohort, steps=1, callbacks=[SelectionOverlap(), sets])
    federator.fit()
    assert logged(federator) == changed(sets.kept)
    assert logged(federator)[0] is None
    assert any(logged(federator))


def test_sets_that_stay_leave_zero_and_a_round_of_newcomers_leaves_nothing() -> None:
    recipe = Recipe(Mean(), selection=Freeze("first"))
    federator = toy_federator(recipe, toy_clients(2, ranks=[2, 3]), rounds=3, steps=1, callbacks=[SelectionOverlap()])
    federator.sampler = lambda clients, seed, round: [round % 2]
    federator.fit()
    assert logged(federator) == [None, None, 0.0]


class HalfFromRound2(Constant):
    """A budget: four pairs live in round 1, the first two after it."""

    needs = LORA_FACTORS

    def __call__(self, state: ServerState, layout: Layout) -> ServerState:
        if not state.rounds:
            return state
        return dataclasses.replace(state, alive={layer: ids[:2] for layer, ids in state.alive.items()})


@pytest.mark.parametrize("schedule", [None, HalfFromRound2()], ids=["constant", "cut"])
def test_where_nothing_is_selected_there_is_no_such_figure(schedule: HalfFromRound2 | None) -> None:
    recipe = Recipe(Mean(), **({"schedule": schedule} if schedule else {}))
    for selection in (All(), Freeze()):
        chosen = dataclasses.replace(recipe, selection=selection)
        federator = toy_federator(chosen, rounds=3, steps=1, callbacks=[SelectionOverlap()])
        federator.fit()
        assert logged(federator) == [None] * 3


def test_a_resume_goes_on_with_what_each_job_trained_last() -> None:
    recipe = Recipe(Mean(), selection=Freeze("random"))
    given = {"clients": toy_clients(4, ranks=[2]), "cohort": 2, "steps": 1}
    whole = toy_federator(recipe, rounds=4, callbacks=[SelectionOverlap()], **given)
    whole.fit()
    half = toy_federator(recipe, rounds=2, callbacks=[SelectionOverlap()], **given)
    half.fit()
    rest = toy_federator(recipe, rounds=4, callbacks=[SelectionOverlap()], **given)
    rest.state, rest.history = half.state, half.history
    rest.callbacks[0].load_state_dict(half.callbacks[0].state_dict())
    rest.fit()
    assert logged(rest) == logged(whole)
    assert logged(whole)[2] is not None
