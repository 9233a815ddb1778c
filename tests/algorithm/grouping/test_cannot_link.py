"""One client's jobs in different clusters: k-means and agglomerative."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flt.algorithm.grouping.agglomerative import AgglomerativeGrouping, merged
from flt.algorithm.grouping.cluster_count import KClustering
from flt.algorithm.grouping.kmeans import KMeansGrouping, _descended, assigned_apart, kmeans_apart
from flt.core.errors import InputError

KINDS = [KMeansGrouping, AgglomerativeGrouping]


def violations(labels: np.ndarray, clients: Sequence[int]) -> int:
    pairs = itertools.combinations(range(len(clients)), 2)
    return sum(clients[a] == clients[b] and labels[a] == labels[b] for a, b in pairs)


def inertia(features: np.ndarray, labels: Sequence[int] | np.ndarray) -> float:
    at = np.asarray(labels)
    return sum(((features[at == k] - features[at == k].mean(axis=0)) ** 2).sum() for k in set(at.tolist()))


federations = st.lists(st.integers(1, 3), min_size=2, max_size=6)  # jobs of each client


@settings(max_examples=25)
@given(jobs=federations, k=st.integers(3, 5), kind=st.sampled_from(KINDS), seed=st.integers(0, 99))
def test_no_two_jobs_of_a_client_are_ever_together(jobs: list[int], k: int, kind: type[KClustering], seed: int) -> None:
    ids = [(client, index) for client, count in enumerate(jobs) for index in range(count)]
    features = np.random.default_rng(seed).normal(size=(len(ids), 3)).astype(np.float32)
    features[::2] = features[0]  # most alike are those that must not be together
    labels = kind(k, cannot_link=True).labels(features, ids, seed)
    assert violations(labels, [client for client, _ in ids]) == 0
    assert sorted(set(labels.tolist())) == list(range(labels.max() + 1))
    chosen = kind("silhouette", max_k=5, cannot_link=True).labels(features, ids, seed)
    assert violations(chosen, [client for client, _ in ids]) == 0


def test_the_inertia_is_mostly_the_lowest_of_all_clusterings_that_are_allowed() -> None:
    """By brute force, with two clusters of three clients' jobs; like all k-means it may end in another minimum."""
    clients, hits = [0, 0, 1, 1, 2], 0
    every = map(np.array, itertools.product((0, 1), repeat=5))
    allowed = [labels for labels in every if not violations(labels, clients)]
    for seed in range(30):
        features = np.random.default_rng(seed).normal(size=(5, 2))
        best, found = min(inertia(features, at) for at in allowed), kmeans_apart(features, clients, 2, 10, seed)
        assert violations(found, clients) == 0
        assert inertia(features, found) >= best - 1e-9
        hits += inertia(features, found) == pytest.approx(best)
    assert hits >= 28


@settings(max_examples=15)
@given(seed=st.integers(0, 999))
def test_a_clients_jobs_take_the_distinct_clusters_with_the_smallest_sum(seed: int) -> None:
    distances = np.random.default_rng(seed).random((4, 4))
    (first, second, third) = assigned_apart(distances, [7, 3, 7, 7])[[0, 2, 3]]
    best = min(itertools.permutations(range(4), 3), key=lambda at: sum(distances[[0, 2, 3], at]))
    assert (first, second, third) == best
    assert assigned_apart(distances, [7, 3, 7, 7])[1] == distances[1].argmin()


def test_one_job_a_client_is_plain_k_means() -> None:
    """Well separated, so that both find the one optimum."""
    features = np.random.default_rng(0).normal(size=(30, 4)) + 20 * np.eye(4)[np.arange(30) % 3]
    ids = [(client, 0) for client in range(30)]
    plain, apart = (KMeansGrouping(3, cannot_link=way).labels(features, ids, 0) for way in (False, True))
    assert all(len(set(apart[plain == k].tolist())) == 1 for k in range(3))
    assert set(apart.tolist()) == {0, 1, 2}


def test_more_restarts_never_raise_the_inertia_and_the_seed_decides() -> None:
    features = np.random.default_rng(1).normal(size=(24, 2))
    clients = [number // 2 for number in range(24)]
    one, many = (inertia(features, kmeans_apart(features, clients, 5, n, 3)) for n in (1, 30))
    assert many < one
    again = kmeans_apart(features, clients, 5, 3, 3)
    assert np.array_equal(again, kmeans_apart(features, clients, 5, 3, 3))
    assert not all(np.array_equal(again, kmeans_apart(features, clients, 5, 3, seed)) for seed in range(5))


def test_a_centre_that_loses_its_uploads_stays_where_it_is() -> None:
    """At the origin, for one, it would win the first upload back."""
    labels, left = _descended(np.array([[0.0], [1.0]]), [0, 1], np.array([[0.5], [100.0]]))
    assert labels.tolist() == [0, 0]
    assert left == pytest.approx(0.5)


def merged_by_hand(features: np.ndarray, clients: Sequence[int], k: int, kind: str) -> list[set[int]]:
    """The nearest two clusters that share no client, again and again."""

    def apart(a: set[int], b: set[int]) -> float:
        one, other = features[sorted(a)], features[sorted(b)]
        if kind == "ward":
            size = 2 * len(a) * len(b) / (len(a) + len(b))
            return float(np.sqrt(size) * np.linalg.norm(one.mean(axis=0) - other.mean(axis=0)))
        pairs = np.linalg.norm(one[:, None] - other[None], axis=2)
        return float(pairs.mean() if kind == "average" else pairs.max())

    clusters = [{n} for n in range(len(features))]
    while len(clusters) > k:
        allowed = [
            (apart(a, b), i, j)
            for (i, a), (j, b) in itertools.combinations(enumerate(clusters), 2)
            if not {clients[n] for n in a} & {clients[n] for n in b}
        ]
        if not allowed:
            break
        _, i, j = min(allowed)
        clusters[i] |= clusters.pop(j)
    return clusters


@settings(max_examples=60)
@given(
    jobs=federations,
    k=st.integers(1, 5),
    kind=st.sampled_from(["average", "complete", "ward"]),
    seed=st.integers(0, 99),
)
def test_merges_are_those_of_the_nearest_clusters_that_share_no_client(
    jobs: list[int], k: int, kind: str, seed: int
) -> None:
    clients = [client for client, count in enumerate(jobs) for _ in range(count)]
    features = np.random.default_rng(seed).normal(size=(len(clients), 3))
    k = min(k, len(clients))
    labels = merged(features, clients, k, kind)
    found = {frozenset(np.flatnonzero(labels == label).tolist()) for label in set(labels.tolist())}
    assert found == {frozenset(cluster) for cluster in merged_by_hand(features, clients, k, kind)}


@pytest.mark.parametrize("kind", ["average", "complete", "ward"])
def test_merges_that_would_join_a_clients_jobs_are_passed_over(kind: str) -> None:
    """The first two are nearest, and of one client."""
    features = np.array([[0.0], [0.1], [5.0], [5.2]])
    assert violations(merged(features, [0, 0, 1, 2], 2, kind), [0, 0, 1, 2]) == 0
    assert len(set(merged(features, [0, 0, 1, 1], 2, kind).tolist())) == 2


def test_where_no_merge_is_allowed_any_more_clusters_stay() -> None:
    """Three clients with two jobs; after three merges each two clusters share a client."""
    features = np.array([[0.0], [0.1], [5.0], [5.1], [9.0], [9.1]])
    clients = [1, 2, 2, 3, 1, 3]
    labels = merged(features, clients, 2, "average")
    assert {frozenset(features[labels == k, 0].tolist()) for k in range(3)} == {
        frozenset({0.0, 0.1}), frozenset({5.0, 5.1}), frozenset({9.0, 9.1}),
    }  # fmt: skip
    assert len(set(kmeans_apart(features, clients, 2, 10, 0).tolist())) == 2


@pytest.mark.parametrize("kind", KINDS)
def test_a_client_with_more_jobs_than_clusters_is_refused_at_start(kind: type[KClustering]) -> None:
    kind(3, cannot_link=True).check(3)
    kind(2).check(3)
    with pytest.raises(InputError, match="^grouping.k=2: cannot_link puts the 3 jobs .* allowed is an integer >= 3$"):
        kind(2, cannot_link=True).check(3)
    with pytest.raises(InputError, match="^grouping.max_k=2: "):
        kind("silhouette", max_k=2, cannot_link=True).check(3)


def test_clients_with_several_jobs_are_never_one_cluster_whatever_the_silhouette() -> None:
    same = np.zeros((4, 2))
    for n in (2, 4):
        ids = [(client, index) for client in range(n // 2) for index in range(2)]
        labels = KMeansGrouping("silhouette", min_silhouette=0.9, cannot_link=True).labels(same[:n], ids, 0)
        assert violations(labels, [client for client, _ in ids]) == 0
