"""Figures of clusters, against NumPy, and what they read of a federation."""

from __future__ import annotations

import dataclasses
import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from methods import CHANGES, GROUPINGS, METHODS, TASKS, clients_of
from sklearn.metrics import adjusted_rand_score
from toys import toy_federator

from flt.algorithm.grouping.density import DbscanGrouping
from flt.algorithm.grouping.kmeans import KMeansGrouping
from flt.algorithm.recipe import Recipe
from flt.algorithm.rule.mean import Mean
from flt.callbacks.clusters import Clusters, clustering_accuracy, cosines, rand, separation
from flt.callbacks.figures import cluster_pictures
from flt.protocol.state import GroupState, ServerState
from flt.server.federator import Federator


@settings(max_examples=15)
@given(groups=st.lists(st.integers(1, 3), min_size=2, max_size=9), seed=st.integers(0, 99))
def test_distances_are_means_over_pairs(groups: list[int], seed: int) -> None:
    features = np.random.default_rng(seed).normal(size=(len(groups), 4)).astype(np.float32)
    within, between = [], []
    for a in range(len(groups)):
        for b in range(a):
            apart = float(np.sqrt(((features[a].astype(float) - features[b]) ** 2).sum()))
            (within if groups[a] == groups[b] else between).append(apart)
    expected = {key: np.mean(its) for key, its in (("within", within), ("between", between)) if its}
    if len(expected) == 2:
        expected["ratio"] = expected["between"] / expected["within"]
    assert separation(features, groups) == pytest.approx(expected)


def test_equal_uploads_have_no_ratio() -> None:
    assert separation(np.zeros((3, 2)), [1, 1, 2]) == {"within": 0.0, "between": 0.0}


def test_rand_is_that_of_scikit_learn_over_the_jobs_that_have_a_group() -> None:
    tasks = {(client, index): f"task{index}" for client in range(5) for index in range(2)}
    assignment = {(client, index): 1 + (client + index) % 2 for client in range(4) for index in range(2)}
    assignment[0, 1] = 1
    state = ServerState(1, {gid: GroupState({}, {}) for gid in range(3)}, {}, assignment)
    jobs = sorted(assignment)
    assert rand(state, tasks) == adjusted_rand_score([tasks[j] for j in jobs], [assignment[j] for j in jobs])


@settings(max_examples=40)
@given(st.lists(st.tuples(st.sampled_from("abc"), st.integers(0, 3)), min_size=1, max_size=9))
def test_clustering_accuracy_is_that_of_the_best_naming_of_the_groups(jobs: list[tuple[str, int]]) -> None:
    tasks = {(client, 0): task for client, (task, _) in enumerate(jobs)}
    assignment = {(client, 0): gid for client, (_, gid) in enumerate(jobs)}
    right = []
    for names in itertools.permutations([*"abc", "none"]):  # of the groups 0 to 3; 0 is home
        right.append(sum(names[gid] == task for task, gid in jobs))
    state = ServerState(1, {gid: GroupState({}, {}) for gid in range(4)}, {}, assignment)
    assert clustering_accuracy(state, tasks) == pytest.approx(max(right) / len(jobs))


def test_clustering_accuracy_counts_jobs_that_are_still_at_home_and_none_that_were_never_met() -> None:
    tasks = {(client, index): "ab"[index] for client in range(4) for index in range(2)}
    at_home = {(client, index): 0 for client in range(3) for index in range(2)}
    state = ServerState(2, {gid: GroupState({}, {}) for gid in range(3)}, {}, {**at_home, (0, 0): 1, (0, 1): 2})
    assert clustering_accuracy(state, tasks) == (2 + 1) / 6
    assert clustering_accuracy(dataclasses.replace(state, assignment=at_home), tasks) == 3 / 6


@pytest.mark.parametrize("name", ["fl_tac", "fl_tac, oracle"])
def test_clustering_accuracy_is_logged_in_every_round_also_without_a_global_evaluation(name: str) -> None:
    federator, _ = watched(name, rounds=0)
    federator.rounds = 3
    while federator.state.rounds < 3:
        federator._round()
        assert federator.history[-1]["round/clustering_acc"] == clustering_accuracy(federator.state, TASKS)
    assert clustering_accuracy(federator.state, TASKS) > 0


def test_one_cluster_for_all_is_as_right_as_its_largest_task() -> None:
    grouping = DbscanGrouping(eps=100.0)
    federator = toy_federator(
        Recipe(Mean(), grouping=grouping), clients_of(3, jobs=2), callbacks=[Clusters(TASKS)], rounds=1
    )
    federator.fit()
    assert federator.history[0]["round/clustering_acc"] == 0.5


def test_one_group_by_intent_has_no_clustering_accuracy() -> None:
    federator, _ = watched("fedit")
    assert "round/clustering_acc" not in federator.history[-1]


def watched(name: str, rounds: int = 2, **given: object) -> tuple[Federator, Clusters]:
    clusters = Clusters(TASKS)
    recipe, settings = METHODS[name]
    federator = toy_federator(
        recipe,
        clients_of(3, jobs=2),
        callbacks=[clusters],
        rounds=rounds,
        **{**settings, **given},  # type: ignore[arg-type]  # of several types, by name
    )
    federator.fit()
    return federator, clusters


@pytest.mark.parametrize("name", [f"fl_tac{name}" for name in GROUPINGS])
@pytest.mark.slow
def test_a_round_is_measured_in_the_features_that_were_clustered(name: str) -> None:
    """Not in those of the groups that the round has made: the updates began with the state before."""
    federator, clusters = watched(name)
    assert clusters.found is not None
    before = watched(name, rounds=1)[0].state
    accumulator = federator.server.accumulator(before, federator.cohort)
    for update in federator.updates:
        accumulator.add(update)
    updates, _ = accumulator.compute()
    described = federator.server.recipe.grouping.describe(federator.server.view(before), updates)  # type: ignore[attr-defined]  # a Clustering
    assert np.array_equal(clusters.found.features, described)
    assert clusters.found.jobs == tuple(update.job for update in updates)
    assert clusters.found.groups == tuple(federator.state.assignment[update.job] for update in updates)
    figures = federator.history[-1]
    expected = separation(described, clusters.found.groups)
    assert {key: figures[f"cluster/{key}"] for key in expected} == expected
    assert figures["cluster/count"] == len(set(clusters.found.groups))
    assert figures["cluster/rand"] == rand(federator.state, TASKS)


def test_newcomers_that_only_join_are_no_part_of_the_figures() -> None:
    """Client 4 comes in round 2: the centre of the changes is that of the others, as it was for the clustering."""
    made = clients_of(5, jobs=2)
    late = tuple(dataclasses.replace(data, rounds=(2, None)) for data in made[4].data)
    made[4] = dataclasses.replace(made[4], data=late)
    clusters = Clusters(TASKS)
    grouping = KMeansGrouping(2, newcomers="nearest", **CHANGES)
    federator = toy_federator(Recipe(Mean(), grouping=grouping), made, callbacks=[clusters], rounds=2)
    federator._round()
    federator._round()
    assert clusters.found is not None
    assert {job[0] for job in clusters.found.jobs} == {0, 1, 2, 3}
    assert {update.job[0] for update in federator.updates} == {0, 1, 2, 3, 4}


@pytest.mark.parametrize("grouping", [None, KMeansGrouping(1)], ids=["everyone", "k = 1"])
def test_one_group_has_no_figures(grouping: KMeansGrouping | None) -> None:
    clusters = Clusters(TASKS)
    recipe = Recipe(Mean(), grouping=grouping) if grouping else Recipe(Mean())
    federator = toy_federator(recipe, clients_of(2), callbacks=[clusters])
    federator.fit()
    assert clusters.found is None
    assert not any(key.startswith("cluster/") for key in federator.history[-1])


def test_an_empty_cohort_has_no_figures() -> None:
    clusters = Clusters(TASKS)
    federator = toy_federator(METHODS["fl_tac"][0], clients_of(2, jobs=2), callbacks=[clusters])
    federator.sampler = lambda ids, seed, round: []
    federator.fit()
    assert clusters.found is None


def test_cosines_are_those_of_the_ways_from_v0_over_the_adapter() -> None:
    federator, _ = watched("fl_tac")
    groups = federator.state.groups
    names = [name for name in sorted(groups[0].weights) if "lora" in name]
    flat = [np.concatenate([groups[gid].weights[n].double().numpy().ravel() for n in names]) for gid in range(3)]
    ways = [flat[gid] - flat[0] for gid in (1, 2)]
    expected = ways[0] @ ways[1] / np.linalg.norm(ways[0]) / np.linalg.norm(ways[1])
    gids, found = cosines(federator)
    assert gids == [1, 2]
    np.testing.assert_allclose(found, [[1, expected], [expected, 1]], rtol=1e-5)


def test_an_only_cluster_that_was_found_is_home_and_has_no_way_from_itself() -> None:
    recipe = Recipe(Mean(), grouping=DbscanGrouping(1e9, **CHANGES))
    clusters = Clusters(TASKS)
    federator = toy_federator(recipe, clients_of(3, jobs=2), callbacks=[clusters], rounds=1)
    federator.fit()
    gids, values = cosines(federator)
    assert (gids, values.shape) == ([], (0, 0))
    assert clusters.found is not None
    assert set(clusters.found.groups) == {federator.state.home}
    assert cluster_pictures.task_map(clusters.found, TASKS, 1).axes
