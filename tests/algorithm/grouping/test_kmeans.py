"""FL-TAC's k-means against scikit-learn, and the identity of clusters over rounds."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from clusters import around, jobs_in, sets_in
from made import layout_of, update_of, view_of
from sklearn.cluster import KMeans
from toys import toy_clients, toy_federator

from flt.algorithm.grouping.base import Everyone, Groups, match
from flt.algorithm.grouping.kmeans import KMeansGrouping
from flt.algorithm.recipe import Recipe
from flt.algorithm.rule.mean import Mean
from flt.algorithm.view import View
from flt.core.errors import InputError
from flt.protocol.messages import JobId, Update, encode

JOBS = [(client, index) for client in range(6) for index in range(2)]


def features_by_hand(view: View, update: Update) -> np.ndarray:
    """All tensors in name order at the initial rank; what wasn't sent is what the job's group has."""
    sent_to = view.state.groups[view.state.assignment.get(update.job, 0)].weights
    rows = []
    for name in ("head", "x.A", "x.B", "y.A", "y.B"):
        full, kept = sent_to[name].numpy().copy(), list(update.kept.get(name[0], ()))
        if name == "head":
            full = update.tensors[name].numpy()
        elif name.endswith("A"):
            full[kept] = update.tensors[name].numpy()
        else:
            full[:, kept] = update.tensors[name].numpy()
        rows.append(full.ravel().astype(np.float32))
    return np.concatenate(rows)


def sets_by_sklearn(view: View, updates: list[Update], k: int) -> set[frozenset[JobId]]:
    features = np.stack([features_by_hand(view, update) for update in updates])
    labels = KMeans(k, n_init=200, random_state=0).fit_predict(features)
    return {frozenset(u.job for u, at in zip(updates, labels, strict=True) if at == label) for label in set(labels)}


# ---------------------------------------------------------------------------------------------- the clusters


@pytest.mark.parametrize("k", [2, 3])
@pytest.mark.parametrize("spread", [0.05, 0.4], ids=["tight", "loose"])
def test_clusters_are_those_of_scikit_learn(k: int, spread: float) -> None:
    view = view_of()
    updates = [around(view, job, sum(job) % k, spread) for job in JOBS]
    assert sets_in(KMeansGrouping(k, n_init=50)(view, updates)) == sets_by_sklearn(view, updates, k)


def test_partial_uploads_are_clustered_at_the_initial_rank_on_what_each_job_was_sent() -> None:
    view = view_of(groups=(0, 1, 2), assignment={(client, 0): 1 + client % 2 for client in range(6)})
    kept = [{"x": (0, 1), "y": (3,)}, {"x": (2,), "y": (0, 1, 2, 3)}]
    updates = [update_of(view, (client, 0), kept[client // 3]) for client in range(6)]
    assert sets_in(KMeansGrouping(2, n_init=50)(view, updates)) == sets_by_sklearn(view, updates, 2)


def test_features_are_neither_normalised_nor_limited_to_some_tensors() -> None:
    """The head alone tells the two apart, by its size."""
    view = view_of()
    first = update_of(view, (0, 0))
    updates = [dataclasses.replace(first, job=job, tensors=dict(first.tensors)) for job in JOBS]
    for update in updates:
        update.tensors["head"] = update.tensors["head"] * (2.0 if update.job[1] else 1.0)
    assert sets_in(KMeansGrouping(2)(view, updates)) == {frozenset(j for j in JOBS if j[1] == i) for i in (0, 1)}


@pytest.mark.parametrize("count", [1, 2, 4])
def test_at_most_k_uploads_are_a_cluster_each(count: int) -> None:
    view = view_of()
    updates = [around(view, job, 0, spread=0.0) for job in JOBS[:count]]  # k-means would put them together
    members = KMeansGrouping(4)(view, updates)
    assert sets_in(members) == {frozenset([job]) for job in JOBS[:count]}
    assert sorted(members.members) == list(range(1, count + 1))


def test_fewer_distinct_uploads_than_clusters_leave_no_cluster_empty() -> None:
    view = view_of()
    same = [dataclasses.replace(update_of(view, (0, 0)), job=job) for job in JOBS]
    with pytest.warns(match="Number of distinct clusters"):
        members = KMeansGrouping(3)(view, same)
    assert sets_in(members) == {frozenset(JOBS)}


def test_every_update_is_in_one_group_and_in_its_order() -> None:
    view = view_of()
    members = KMeansGrouping(3)(view, [update_of(view, job) for job in JOBS]).members
    assert sorted(update.job for its in members.values() for update in its) == JOBS
    assert all([u.job for u in its] == sorted(u.job for u in its) for its in members.values())


# ---------------------------------------------------------------------------------------------- their identity


def known(view: View, centres: dict[int, int]) -> View:
    """The view of a state whose groups lie at these centres; group 0 is home."""
    groups = dict(view.state.groups)
    for gid, centre in centres.items():
        groups[gid] = dataclasses.replace(groups[0], weights=update_of(view, (900 + centre, 0)).tensors)
    return dataclasses.replace(view, state=dataclasses.replace(view.state, groups=groups, rounds=view.state.rounds + 1))


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 0, 1), (1, 0, 2)], ids=str)
@pytest.mark.parametrize("rounds", range(3))
def test_a_cluster_keeps_its_group_whatever_label_k_means_gives_it(order: tuple[int, ...], rounds: int) -> None:
    gids = (1, 2, 7)
    view = known(view_of(rounds=rounds), dict(zip(gids, order, strict=True)))
    updates = [around(view, job, sum(job) % 3) for job in JOBS]
    expected = {gid: {j for j in JOBS if sum(j) % 3 == centre} for gid, centre in zip(gids, order, strict=True)}
    assert jobs_in(KMeansGrouping(3)(view, updates)) == expected


def test_clusters_without_a_group_of_before_get_the_lowest_free_ids() -> None:
    view = known(view_of(), {2: 1})
    updates = [around(view, job, sum(job) % 3) for job in JOBS]
    members = jobs_in(KMeansGrouping(3)(view, updates))
    assert members[2] == {job for job in JOBS if sum(job) % 3 == 1}
    assert sorted(members) == [1, 2, 3]


def test_a_cluster_that_lies_at_home_is_not_taken_for_home() -> None:
    """Home holds v0 for jobs that no grouping has met."""
    view = view_of()
    home = dataclasses.replace(update_of(view, (0, 0)), tensors=view.state.groups[0].weights)
    updates = [
        *(dataclasses.replace(home, job=(client, 0)) for client in range(3)),
        *(around(view, (9, i), 1) for i in range(3)),
    ]
    assert sorted(KMeansGrouping(2)(view, updates).members) == [1, 2]


def test_matching_is_the_best_in_all_and_not_greedy() -> None:
    """Groups at 0 and 3, clusters at 1 and -4: taking 1 to 0 first costs 1 + 49 in squares, the best 4 + 16."""
    assert match(np.array([[1.0], [-4.0]]), {1: np.array([0.0]), 2: np.array([3.0])}) == {0: 2, 1: 1}


def test_matching_is_by_squared_distance() -> None:
    """The second cluster is 7 from group 1 and 4 from group 2: 4 + 4 > 0 + 7 as distances, 16 + 16 < 49 as squares."""
    clusters = np.array([[4.0, 0.0], [6.125, (49 - 6.125**2) ** 0.5]])
    assert match(clusters, {1: np.array([0.0, 0.0]), 2: np.array([4.0, 0.0])}) == {0: 1, 1: 2}


def test_more_groups_than_clusters_leave_the_far_ones_alone() -> None:
    known_at = {gid: np.array([float(at)]) for gid, at in ((1, 0), (2, 50), (3, 9))}
    assert match(np.array([[8.0]]), known_at) == {0: 3}


# ---------------------------------------------------------------------------------------------- federations


def separated(rounds: int, cohort: int | None = None, k: int = 2, clients: int = 4) -> tuple[Recipe, dict[str, object]]:
    recipe = Recipe(Mean(weights="uniform"), grouping=KMeansGrouping(k))
    return recipe, {"clients": toy_clients(clients, jobs=2), "rounds": rounds, "cohort": cohort, "lr": 0.1, "steps": 6}


@pytest.mark.slow
def test_home_keeps_v0_and_members_get_the_weights_of_their_group() -> None:
    recipe, given = separated(3)
    federator = toy_federator(recipe, **given)  # type: ignore[arg-type]
    v0 = {name: tensor.clone() for name, tensor in federator.state.groups[0].weights.items()}
    federator.fit()
    state = federator.state
    assert sorted(state.groups) == [0, 1, 2]
    assert all(torch.equal(state.groups[0].weights[name], tensor) for name, tensor in v0.items())
    for job in federator.cohort:
        payload = federator.server.broadcast(state, job, federator.cohort)
        gid = state.assignment[job.id]
        assert all(torch.equal(t, state.groups[gid].weights[name]) for name, t in payload.tensors.items())


def test_a_job_that_was_not_sampled_keeps_its_group_and_never_more_than_k_arise() -> None:
    recipe, given = separated(6, cohort=1, clients=5)
    federator = toy_federator(recipe, **given)  # type: ignore[arg-type]
    while federator.state.rounds < 6:
        before = dict(federator.state.assignment)
        federator._round()
        absent = set(before) - {update.job for update in federator.updates}
        assert {job: federator.state.assignment[job] for job in absent} == {job: before[job] for job in absent}
        assert sorted(federator.state.groups) == [0, 1, 2]


def test_a_group_without_members_this_round_keeps_its_weights() -> None:
    view = known(view_of(), {1: 0, 2: 1})
    members = KMeansGrouping(2)(view, [around(view, (0, 0), 1)])
    assert jobs_in(members) == {2: {(0, 0)}}


def test_nothing_of_an_update_tells_its_task() -> None:
    federator = toy_federator(*separated(1)[:1], clients=toy_clients(2, jobs=2))
    federator.fit()
    assert {spec.task for client in federator.clients.values() for spec in client.data} == {"task0", "task1"}
    for update in federator.updates:
        assert b"task" not in encode(update)
    assert not any("task" in field.name or "label" in field.name for field in dataclasses.fields(Update))


@pytest.mark.parametrize("grouping", [Everyone(), KMeansGrouping(1)], ids=["everyone", "k = 1"])
def test_one_group_is_home(grouping: Everyone | KMeansGrouping) -> None:
    view = view_of()
    updates = [update_of(view, job) for job in JOBS]
    assert jobs_in(grouping(view, updates)) == {0: set(JOBS)}
    assert not grouping.several
    assert grouping(view, []) == Groups({})


def test_nobody_in_the_cohort_is_in_no_group() -> None:
    assert KMeansGrouping(3)(view_of(), []) == Groups({})


def test_the_global_generator_is_neither_read_nor_moved() -> None:
    view = view_of(layout_of(2))
    updates = [update_of(view, job) for job in JOBS]
    np.random.seed(0)
    before = np.random.get_state()[1].tolist()
    first = jobs_in(KMeansGrouping(3)(view, updates))
    assert np.random.get_state()[1].tolist() == before
    np.random.seed(1)
    assert jobs_in(KMeansGrouping(3)(view, updates)) == first


@pytest.mark.parametrize("k", [0, -1, "many", 1.5])
def test_a_number_of_clusters_that_makes_no_sense_is_refused(k: int | str) -> None:
    with pytest.raises(InputError, match=f"^grouping.k={k}: allowed is an integer >= 1, tasks, or silhouette$"):
        KMeansGrouping(k)
    with pytest.raises(InputError, match="^grouping.n_init=0"):
        KMeansGrouping(2, n_init=0)
