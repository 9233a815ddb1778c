"""Scores that a job measured by itself, and the magnitude of pairs: against NumPy."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from made import random_weights, update_of, view_of
from toys import toy_clients, toy_federator

from flt.algorithm.grouping.kmeans import KMeansGrouping
from flt.algorithm.importance import DeltaSensitivity, GradientSensitivity, Magnitude, NoImportance
from flt.algorithm.recipe import Recipe
from flt.algorithm.rule.mean import Mean
from flt.algorithm.rule.stacking import Stacking
from flt.algorithm.selection.freeze import Freeze
from flt.algorithm.selection.truncate import Truncate
from flt.algorithm.view import View
from flt.core.errors import InputError
from flt.protocol.job import Job
from flt.protocol.messages import Update, decode, encode

OWN = Recipe(Mean(), selection=Truncate(scores="client"), importance=GradientSensitivity(beta1=0.6))


def measured(view: View, ids: tuple[int, ...], values: list[float]) -> Update:
    """A job's update that has measured pairs of layer x only."""
    return dataclasses.replace(update_of(view, (0, 0)), scores={"x": (ids, torch.tensor(values))})


@settings(max_examples=30, deadline=None)
@given(st.floats(0, 0.99), st.lists(st.tuples(st.sets(st.integers(0, 3)), st.integers(0, 99)), max_size=4))
def test_own_scores_are_smoothed_over_the_jobs_fits_from_the_groups(
    beta: float, fits: list[tuple[set[int], int]]
) -> None:
    group = [0.5, 1.0, 2.0, 4.0]
    view = view_of(scores={"x": group, "y": group})
    expected = np.full(4, np.nan)
    for ids, seed in fits:
        values = np.random.default_rng(seed).random(len(ids)).astype(np.float32)
        part = GradientSensitivity(beta1=beta)
        own = part.own_scores(view, measured(view, tuple(sorted(ids)), values.tolist()))
        view = dataclasses.replace(view, state=dataclasses.replace(view.state, scores={(0, 0): own}))
        for pair, value in zip(sorted(ids), values, strict=True):
            start = group[pair] if np.isnan(expected[pair]) else expected[pair]
            expected[pair] = beta * start + (1 - beta) * float(value)
        np.testing.assert_allclose(own["x"].numpy(), expected, rtol=1e-6)
        assert bool(own["y"].isnan().all())


def test_a_job_is_served_by_what_it_measured_and_else_by_its_group() -> None:
    view = view_of(scores={"x": [1.0, 2.0, 3.0, 4.0], "y": [4.0, 3.0, 2.0, 1.0]})
    nan = float("nan")
    own = {"x": torch.tensor([9.0, nan, nan, 0.0]), "y": torch.full((4,), nan)}
    view = dataclasses.replace(view, state=dataclasses.replace(view.state, scores={(1, 0): own}))
    kept = {
        part: [part(view, Job(client, 0, 2), [])[1] for client in (0, 1)]
        for part in (Freeze(scores="client"), Freeze())
    }
    assert kept[Freeze()] == [{"x": (2, 3), "y": (0, 1)}] * 2
    assert kept[Freeze(scores="client")] == [{"x": (2, 3), "y": (0, 1)}, {"x": (0, 2), "y": (0, 1)}]


def test_every_job_keeps_scores_of_its_own_and_they_are_written_and_read_back() -> None:
    federator = toy_federator(OWN, toy_clients(3, jobs=2, ranks=[2]), rounds=2, lr=0.05)
    federator.fit()
    scores = federator.state.scores
    assert list(scores) == sorted((client, index) for client in range(3) for index in range(2))
    assert all(bool((own["fc1"].nan_to_num() > 0).sum() >= 2) for own in scores.values())
    assert not torch.equal(scores[0, 0]["fc1"], scores[1, 0]["fc1"])
    assert encode(decode(encode(federator.state))) == encode(federator.state)


def test_one_clients_own_scores_are_those_of_its_group() -> None:
    """The same averages from the same start, bit for bit."""
    recipe = dataclasses.replace(OWN, selection=Freeze(scores="client"))
    federator = toy_federator(recipe, toy_clients(1, ranks=[2]), rounds=3, lr=0.05)
    federator.fit()
    group = federator.state.groups[0].scores
    assert all(torch.equal(federator.state.scores[0, 0][layer], group[layer]) for layer in group)
    assert all(int((scores > 0).sum()) == 2 for scores in group.values())  # a pair that never trained has b_i = 0


@pytest.mark.slow
def test_clients_that_measure_apart_train_apart() -> None:
    """With the group's scores all jobs of a rank have one set; with their own they don't."""
    found = {}
    for source in ("server", "client"):
        recipe = dataclasses.replace(OWN, selection=Freeze(scores=source))
        federator = toy_federator(recipe, toy_clients(4, ranks=[1]), rounds=4, lr=0.05)
        federator.fit()
        found[source] = len({tuple(update.kept.items()) for update in federator.updates})
    assert found["server"] == 1
    assert found["client"] > 1


def test_nothing_is_kept_where_no_selection_reads_it() -> None:
    federator = toy_federator(dataclasses.replace(OWN, selection=Freeze()))
    federator.fit()
    assert federator.state.scores == {}


def test_a_job_in_a_cluster_begins_with_the_scores_of_its_cluster() -> None:
    view = view_of(groups=(0, 2), assignment={(0, 0): 2})
    scores = {name: torch.full((4,), 8.0, dtype=torch.float64) for name in "xy"}
    view.state.groups[2] = dataclasses.replace(view.state.groups[2], scores=scores)
    own = GradientSensitivity(beta1=0.5).own_scores(view, measured(view, (1,), [2.0]))
    assert own["x"][1] == 5.0
    recipe = dataclasses.replace(OWN, grouping=KMeansGrouping(2))
    toy_federator(recipe, toy_clients(3, jobs=2, ranks=[2]), rounds=2).fit()


@pytest.mark.parametrize(
    "importance", [NoImportance(), DeltaSensitivity(), Magnitude()], ids=lambda p: type(p).__name__
)
def test_own_scores_that_no_client_measures_are_refused(importance: Magnitude) -> None:
    with pytest.raises(
        InputError, match="^selection.scores=client: clients measure nothing for .*importance=gradient or ablation$"
    ):
        Recipe(Mean(), selection=Freeze(scores="client"), importance=importance)
    with pytest.raises(InputError, match="^selection.scores=client: allowed is server with selection.by=random$"):
        Freeze("random", scores="client")
    with pytest.raises(InputError, match="^selection.scores=mine: allowed is server, client$"):
        Freeze(scores="mine")


# ---------------------------------------------------------------------------------------------- magnitude


def test_the_magnitude_is_the_frobenius_norm_of_the_pairs_part_of_the_product() -> None:
    view = view_of()
    after = dataclasses.replace(view.group(0), weights=random_weights(view.layout, 3))
    scores = Magnitude()(view, view.group(0), after, []).scores
    for layer in "xy":
        a, b = (after.weights[f"{layer}.{part}"].double().numpy() for part in "AB")
        expected = [np.linalg.norm(2.0 * np.outer(b[:, i], a[i])) for i in range(4)]  # alpha / r = 2
        np.testing.assert_allclose(scores[layer].numpy(), expected, rtol=1e-12)
        assert scores[layer].dtype == torch.float64


def test_pairs_that_nobody_trained_have_the_lowest_magnitude() -> None:
    recipe = Recipe(Mean(), selection=Freeze("random"), importance=Magnitude())
    federator = toy_federator(recipe, toy_clients(2, ranks=[1]))
    federator.fit()
    for layer, scores in federator.state.groups[0].scores.items():
        trained = {pair for update in federator.updates for pair in update.kept[layer]}
        assert set(scores.nonzero().ravel().tolist()) == trained


def test_magnitudes_of_a_fresh_adapter_are_refused() -> None:
    with pytest.raises(InputError, match="^importance Magnitude with rule Stacking: each round begins with a fresh"):
        Recipe(Stacking(), importance=Magnitude())
