"""The other clusterings against scikit-learn, K by silhouette, the oracle, and the identity of clusters of changes."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
from clusters import around, jobs_in, moved, sets_in
from hypothesis import given, settings
from hypothesis import strategies as st
from made import update_of, view_of
from sklearn.cluster import DBSCAN, HDBSCAN, AgglomerativeClustering, KMeans
from sklearn.metrics import adjusted_rand_score, silhouette_score

from flt.algorithm.grouping.agglomerative import AgglomerativeGrouping
from flt.algorithm.grouping.base import Clustering, Groups, match
from flt.algorithm.grouping.cluster_count import most_separate
from flt.algorithm.grouping.density import DbscanGrouping, HdbscanGrouping, without_noise
from flt.algorithm.grouping.kmeans import KMeansGrouping
from flt.algorithm.grouping.oracle import OracleGrouping
from flt.algorithm.view import View
from flt.core.errors import InputError
from flt.protocol.messages import JobId

JOBS = [(client, index) for client in range(6) for index in range(2)]
IDS = [(client, 0) for client in range(60)]
CHANGES: dict[str, Any] = {"features": "changes", "tensors": "lora"}


def blobs(n: int, k: int, seed: int, spread: float = 0.1) -> np.ndarray:
    draw = np.random.default_rng(seed)
    return (draw.normal(size=(k, 5))[np.arange(n) % k] * 5 + spread * draw.normal(size=(n, 5))).astype(np.float32)


def same_clusters(found: np.ndarray, expected: np.ndarray) -> bool:
    return adjusted_rand_score(expected, found) == 1.0


@settings(max_examples=15)
@given(
    n=st.integers(6, 20),
    k=st.integers(2, 5),
    seed=st.integers(0, 99),
    linkage=st.sampled_from(["average", "complete", "ward"]),
)
def test_agglomerative_clusters_are_those_of_scikit_learn(n: int, k: int, seed: int, linkage: str) -> None:
    features = blobs(n, 3, seed, spread=2.0)
    expected = AgglomerativeClustering(k, linkage=linkage).fit_predict(features)  # type: ignore[arg-type]  # one of its names
    assert same_clusters(AgglomerativeGrouping(k, linkage=linkage).labels(features, IDS[:n], 0), expected)


@settings(max_examples=15)
@given(n=st.integers(3, 20), seed=st.integers(0, 99), eps=st.floats(0.5, 4.0))
def test_dbscan_is_that_of_scikit_learn_but_for_the_noise(n: int, seed: int, eps: float) -> None:
    features = blobs(n, 3, seed, spread=1.0)
    expected = DBSCAN(eps=eps, min_samples=3).fit_predict(features)
    found = DbscanGrouping(eps, 3).labels(features, IDS[:n], 0)
    assert np.array_equal(found[expected >= 0], expected[expected >= 0])
    assert set(found.tolist()) == (set(expected.tolist()) - {-1} or {0})


def test_hdbscan_is_that_of_scikit_learn_but_for_the_noise() -> None:
    features = blobs(30, 3, 0, spread=3.0)
    expected = HDBSCAN(min_cluster_size=4, min_samples=2, copy=True).fit_predict(features)
    found = HdbscanGrouping(4, 2).labels(features, IDS[:30], 0)
    assert np.array_equal(found[expected >= 0], expected[expected >= 0])
    assert (expected < 0).any()
    assert found.min() == 0


@pytest.mark.parametrize(("size", "samples"), [(3, 2), (2, 3)])
def test_too_few_uploads_for_hdbscan_are_one_cluster(size: int, samples: int) -> None:
    assert HdbscanGrouping(size, samples).labels(np.eye(2), IDS[:2], 0).tolist() == [0, 0]


def test_noise_joins_the_nearest_centre_and_nothing_but_noise_is_one_cluster() -> None:
    """The nearest upload of the last one is in cluster 0, whose centre is farther than that of cluster 1."""
    features = np.array([[0.0], [-8.0], [3.0], [3.2], [1.2]])
    assert without_noise(features, np.array([0, 0, 1, 1, -1])).tolist() == [0, 0, 1, 1, 1]
    assert without_noise(features, np.full(5, -1)).tolist() == [0] * 5


# ---------------------------------------------------------------------------------------------- K by silhouette


@pytest.mark.slow
@settings(max_examples=8)
@given(n=st.integers(8, 20), seed=st.integers(0, 99))
def test_k_is_the_one_with_the_highest_silhouette_of_scikit_learn(n: int, seed: int) -> None:
    features = blobs(n, 4, seed, spread=2.0)
    scores = {k: silhouette_score(features, KMeans(k, n_init=10, random_state=5).fit_predict(features))
              for k in range(2, 7)}  # fmt: skip
    found = KMeansGrouping("silhouette", max_k=6).labels(features, IDS[:n], 5)
    assert found.max() + 1 == max(scores, key=lambda k: scores[k])


@pytest.mark.parametrize("kind", [KMeansGrouping, AgglomerativeGrouping])
@pytest.mark.parametrize("k", [2, 3, 5])
def test_separated_clusters_are_found_without_their_number(kind: Any, k: int) -> None:
    assert same_clusters(kind("silhouette").labels(blobs(30, k, 1), IDS[:30], 0), np.arange(30) % k)


def test_where_nothing_separates_there_is_one_cluster() -> None:
    noise = np.random.default_rng(0).normal(size=(30, 2000)).astype(np.float32)
    assert KMeansGrouping("silhouette").labels(noise, IDS[:30], 0).tolist() == [0] * 30
    assert KMeansGrouping("silhouette", min_silhouette=-1).labels(noise, IDS[:30], 0).max() > 0
    assert KMeansGrouping("silhouette").labels(np.eye(2), IDS[:2], 0).tolist() == [0, 0]  # it needs three


def test_of_equal_silhouettes_the_fewest_clusters_count() -> None:
    """A square is cut in halves one way or the other."""
    square, cuts = np.array([[0.0, 0.0], [0.0, 1.0], [1.0, 0.0], [1.0, 1.0]]), {2: [0, 0, 1, 1], 3: [0, 1, 0, 1]}
    assert most_separate(square, lambda k: np.array(cuts[k]), 1, 3, -1.0).tolist() == cuts[2]


def test_max_k_bounds_the_silhouettes_search() -> None:
    assert KMeansGrouping("silhouette", max_k=3).labels(blobs(30, 6, 0), IDS[:30], 0).max() == 2


# ---------------------------------------------------------------------------------------------- perfectly separated

METHODS: dict[str, Clustering] = {
    "k-means": KMeansGrouping(3),
    "k-means apart": KMeansGrouping(3, cannot_link=True, **CHANGES),
    "k-means, silhouette": KMeansGrouping("silhouette", **CHANGES),
    "agglomerative": AgglomerativeGrouping(3, **CHANGES),
    "agglomerative apart": AgglomerativeGrouping("silhouette", cannot_link=True, linkage="ward", **CHANGES),
    "dbscan": DbscanGrouping(0.5, **CHANGES),
    "hdbscan": HdbscanGrouping(**CHANGES),
    "k-means with a memory": KMeansGrouping(3, memory=True, **CHANGES),
    "oracle": OracleGrouping().with_tasks({job: "abc"[sum(job) % 3] for job in JOBS}),
}
methods = pytest.mark.parametrize("name", METHODS)


@methods
def test_separated_tasks_are_told_apart_whatever_the_order(name: str) -> None:
    view = view_of()
    updates = [around(view, job, sum(job) % 3) for job in JOBS]
    expected = {frozenset(job for job in JOBS if sum(job) % 3 == centre) for centre in range(3)}
    assert sets_in(METHODS[name](view, updates)) == expected
    assert sets_in(METHODS[name](view, updates[::-1])) == expected


@methods
def test_nobody_is_in_no_group(name: str) -> None:
    assert METHODS[name](view_of(), []) == Groups({})


def test_the_oracle_groups_by_task_whatever_was_sent() -> None:
    view = view_of()
    tasks = {job: "ab"[job[1]] for job in JOBS} | {(9, 9): "c"}
    grouping = OracleGrouping().with_tasks(tasks)
    assert jobs_in(grouping(view, [update_of(view, job) for job in JOBS])) == {
        1: {job for job in JOBS if job[1] == 0},
        2: {job for job in JOBS if job[1] == 1},
    }
    assert jobs_in(grouping(view, [update_of(view, job) for job in JOBS if job[1]])) == {2: {j for j in JOBS if j[1]}}
    assert not OracleGrouping().with_tasks(dict.fromkeys(JOBS, "a")).several


# ---------------------------------------------------------------------------------------------- identity


def after(view: View, groups: dict[int, list[JobId]]) -> View:
    """The view a round later, with these jobs in these groups."""
    made = view_of(groups=(0, *groups), assignment={job: gid for gid, its in groups.items() for job in its})
    return dataclasses.replace(view, state=dataclasses.replace(made.state, rounds=1))


@pytest.mark.parametrize("cohort", [range(6), range(2, 5), range(5, 6)], ids=["all", "some", "one client"])
def test_clusters_of_changes_continue_the_groups_of_most_of_their_jobs(cohort: range) -> None:
    """One job of each cluster was in another group before; weights lie anywhere."""
    of = {job: (4, 7)[job[1]] for job in JOBS} | {(0, 0): 7, (1, 1): 4}
    view = after(view_of(), {gid: [job for job in JOBS if of[job] == gid] for gid in (4, 7)})
    updates = [moved(view, (client, index), index) for client in cohort for index in range(2)]
    found = jobs_in(KMeansGrouping(2, **CHANGES)(view, updates))
    assert found == {gid: {u.job for u in updates if u.job[1] == (gid == 7)} for gid in (4, 7)}


def test_jobs_that_stay_count_more_than_any_distance_and_equals_go_by_distance() -> None:
    clusters, known = np.array([[0.0], [100.0]]), {1: np.array([100.0]), 2: np.array([0.0])}
    assert match(clusters, known) == {0: 2, 1: 1}
    assert match(clusters, known, np.array([[1.0, 0.0], [0.0, 0.0]])) == {0: 1, 1: 2}
    assert match(clusters, known, np.array([[2.0, 2.0], [3.0, 3.0]])) == {0: 2, 1: 1}


def test_new_clusters_of_changes_get_free_ids() -> None:
    view = after(view_of(), {2: [job for job in JOBS if sum(job) % 3 == 1]})
    updates = [around(view, job, sum(job) % 3) for job in JOBS]
    found = jobs_in(KMeansGrouping(3, **CHANGES)(view, updates))
    assert sorted(found) == [1, 2, 3]
    assert found[2] == {job for job in JOBS if sum(job) % 3 == 1}


@pytest.mark.parametrize(
    ("make", "named"),
    [
        (lambda: KMeansGrouping(2, features="raw"), "grouping.features=raw: allowed is weights, changes"),
        (lambda: DbscanGrouping(tensors="head"), "grouping.tensors=head: allowed is all, lora"),
        (lambda: HdbscanGrouping(newcomers="no"), "grouping.newcomers=no: allowed is home, nearest"),
        (lambda: KMeansGrouping(2, max_k=1), "grouping.max_k=1"),
        (lambda: KMeansGrouping(2, min_silhouette=1.0), "grouping.min_silhouette=1.0"),
        (lambda: AgglomerativeGrouping(2, linkage="single"), "grouping.linkage=single: allowed is average"),
        (lambda: DbscanGrouping(eps=0.0), "grouping.eps=0.0"),
        (lambda: DbscanGrouping(min_samples=0), "grouping.min_samples=0"),
        (lambda: HdbscanGrouping(min_cluster_size=1), "grouping.min_cluster_size=1"),
        (lambda: HdbscanGrouping(min_samples=0), "grouping.min_samples=0"),
        (
            lambda: KMeansGrouping(2, memory=True),
            "grouping.memory=true: allowed is false with",
        ),
    ],
)
def test_settings_without_meaning_are_refused(make: Any, named: str) -> None:
    with pytest.raises(InputError, match=f"^{named}"):
        make()


def test_where_their_number_is_found_one_cluster_is_home_and_a_given_number_keeps_v0() -> None:
    view = view_of()
    updates = [update_of(view, (0, 0)), update_of(view, (1, 0))]
    assert list(DbscanGrouping(1e9)(view, updates).members) == [view.state.home]
    assert list(KMeansGrouping(2)(view, updates[:1]).members) == [1]
    known = view_of(groups=(0, 1), assignment={(0, 0): 1})
    assert list(DbscanGrouping(1e9)(known, updates).members) == [1]
