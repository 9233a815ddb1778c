"""Partitioners: everybody's examples, once each, the same for the same seed."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flt.core.errors import InputError
from flt.data import random_splits as draws
from flt.data.held_out import split
from flt.data.partition import (
    BY_COLUMN,
    PARTITIONERS,
    by_column,
    by_column_dirichlet,
    dirichlet,
    iid,
    partition,
    quantity,
    shards,
)
from flt.data.partition import settings as settings_of

LABELS = np.random.default_rng(0).integers(0, 5, 200)
SETTINGS = {
    "dirichlet": {"alpha": 0.5},
    "quantity": {"alpha": 0.5},
    "shards": {"shards_per_client": 2},
    "by_column_dirichlet": {"alpha": 0.5},
}


def make(kind: str, labels: np.ndarray, clients: int | None, seed: int = 0) -> list[np.ndarray]:
    column = labels // 3 if kind == "by_column_dirichlet" else labels  # two values, in which the labels still differ
    return partition(kind, labels=labels, column=column, clients=clients, seed=seed, **SETTINGS.get(kind, {}))


def assert_one_line_naming(error: pytest.ExceptionInfo[InputError], *words: str) -> None:
    line = str(error.value)
    assert "\n" not in line
    assert all(word in line for word in words), line


# ---------------------------------------------------------------------------------------------- what holds for all


@given(
    st.sampled_from(sorted(PARTITIONERS)),
    st.lists(st.integers(0, 4), min_size=60, max_size=120),
    st.integers(1, 6),
    st.integers(0, 2**32),
)
@settings(max_examples=80, deadline=None)
def test_parts_are_disjoint_complete_sorted_int64(kind: str, labels: list[int], clients: int, seed: int) -> None:
    try:
        parts = make(kind, np.array(labels), clients, seed)
    except InputError:  # a column's value with fewer examples than clients
        assert kind in (*BY_COLUMN, "by_task")
        column = np.array(labels) // 3 if kind == "by_column_dirichlet" else labels
        values, sizes = np.unique(column, return_counts=True)
        assert clients < max(len(values) * (kind == "by_column_dirichlet"), 1) or min(sizes) < clients
        return
    assert len(parts) == clients
    assert sorted(np.concatenate(parts).tolist()) == list(range(len(labels)))
    assert all(part.dtype == np.int64 and (np.diff(part) > 0).all() and len(part) for part in parts)


@pytest.mark.parametrize("kind", PARTITIONERS)
def test_same_seed_same_parts_other_seed_other_parts(kind: str) -> None:
    first, again, other = (make(kind, LABELS, 4, seed) for seed in (7, 7, 8))
    assert [part.tolist() for part in first] == [part.tolist() for part in again]
    assert [part.tolist() for part in first] != [part.tolist() for part in other]


@pytest.mark.parametrize("kind", PARTITIONERS)
def test_global_generator_is_neither_read_nor_moved(kind: str) -> None:
    np.random.seed(0)
    before = np.random.get_state()[1].copy()
    first = make(kind, LABELS, 4)
    assert (np.random.get_state()[1] == before).all()
    np.random.seed(1)
    assert [part.tolist() for part in first] == [part.tolist() for part in make(kind, LABELS, 4)]


@pytest.mark.parametrize("kind", [kind for kind in PARTITIONERS if kind != "by_column_dirichlet"])
def test_one_client_holds_everything(kind: str) -> None:
    assert make(kind, LABELS, 1)[0].tolist() == list(range(200))


def test_partitioners_with_one_seed_draw_unrelated_numbers() -> None:
    assert draws.generator("iid", 0).random() != draws.generator("shards", 0).random()
    assert draws.generator("iid", (0, 1)).random() != draws.generator("iid", (0, 2)).random()


# ---------------------------------------------------------------------------------------------- each of them


def test_iid_sizes_differ_by_at_most_one_and_order_is_shuffled() -> None:
    parts = iid(101, 4, seed=0)
    assert sorted(len(part) for part in parts) == [25, 25, 25, 26]
    assert parts[0].tolist() != list(range(26))


def test_dirichlet_counts_follow_the_hand_computed_draw() -> None:
    labels = np.array([0] * 40 + [1] * 60)
    rng = draws.generator("dirichlet", 3)
    expected = []
    for size in (40, 60):  # the class's own shares, rounded where its examples are cut
        cuts = [round(share * size) for share in np.cumsum(rng.dirichlet([2.0, 2.0, 2.0]))]
        expected.append([cuts[0], cuts[1] - cuts[0], size - cuts[1]])
    parts = dirichlet(labels, 3, alpha=2.0, seed=3)
    assert np.array([np.bincount(labels[part], minlength=2) for part in parts]).T.tolist() == expected


@pytest.mark.parametrize(("alpha", "low", "high"), [(0.05, 0.6, 1.0), (1000.0, 0.2, 0.3)])
def test_small_alpha_skews_labels_and_large_alpha_does_not(alpha: float, low: float, high: float) -> None:
    labels = np.repeat(np.arange(5), 400)
    largest = [np.bincount(labels[part]).max() / len(part) for part in dirichlet(labels, 8, alpha, seed=0)]
    assert low <= np.mean(largest) <= high


def test_dirichlet_redraws_until_every_client_has_the_minimum() -> None:
    without = dirichlet(LABELS, 8, 0.3, seed=1, min_examples=0)
    assert min(map(len, without)) < 15
    assert min(map(len, dirichlet(LABELS, 8, 0.3, seed=1, min_examples=15))) >= 15


def test_quantity_drops_small_shares_and_scales_the_rest_up() -> None:
    shares = draws.generator("quantity", 5).dirichlet(np.full(10, 0.5))
    kept = np.where(shares < 0.05, 0, shares)
    assert 0 < np.count_nonzero(kept) < 10  # else the test shows nothing
    sizes = np.array([len(part) for part in quantity(10_000, 10, 0.5, seed=5, min_share=0.05)])
    assert (sizes == 0).tolist() == (kept == 0).tolist()
    np.testing.assert_allclose(sizes / 10_000, kept / kept.sum(), atol=1e-4)


def test_quantity_without_minimum_share_leaves_no_client_empty() -> None:
    drawn = [quantity(100, 10, 0.5, seed) for seed in range(20)]
    assert all(len(part) for parts in drawn for part in parts)
    assert any(not len(part) for seed in range(20) for part in quantity(100, 10, 0.5, seed, min_share=0.01))


def test_shards_give_each_client_as_many_pieces_of_the_sorted_labels() -> None:
    labels = np.tile(np.arange(10), 20)
    parts = shards(labels, 5, 2, seed=0)
    assert all(len(part) == 40 and len(np.unique(labels[part])) == 2 for part in parts)


def test_column_without_clients_makes_one_client_per_value_in_sorted_order() -> None:
    values = np.array(["de", "en", "de", "fr", "en"])
    assert [part.tolist() for part in by_column(values, None, seed=0)] == [[0, 2], [1, 4], [3]]


def test_column_with_more_clients_than_values_splits_values_evenly() -> None:
    values = np.array(["a"] * 30 + ["b"] * 50 + ["c"] * 40)
    held = [np.unique(values[part]).tolist() for part in by_column(values, 7, seed=0)]
    assert held == [["a"], ["a"], ["b"], ["b"], ["b"], ["c"], ["c"]]  # the spare client goes to the largest value
    sizes = [len(part) for part in by_column(values, 7, seed=0)]
    assert sizes == [15, 15, 17, 17, 16, 20, 20]


def test_column_with_fewer_clients_than_values_deals_whole_values() -> None:
    values = np.repeat(np.arange(7), 3)
    held = [set(values[part].tolist()) for part in by_column(values, 3, seed=0)]
    assert sorted(map(len, held)) == [2, 2, 3]
    assert set.union(*held) == set(range(7))
    assert sum(map(len, held)) == 7


def test_two_keys_give_each_client_one_value_and_dirichlet_shares_of_the_labels_within_it() -> None:
    values, labels = np.tile(["ru", "de", "fr"], 200), np.random.default_rng(1).integers(0, 4, 600)
    parts = by_column_dirichlet(labels, values, clients=12, alpha=0.1, seed=(3, 0), min_examples=2)
    assert [set(values[part].tolist()) for part in parts] == [{"de"}] * 4 + [{"fr"}] * 4 + [{"ru"}] * 4
    for number, value in enumerate(["de", "fr", "ru"]):  # the same as the data of this value divided by themselves
        own = np.flatnonzero(values == value)
        alone = dirichlet(labels[own], 4, 0.1, (3, 0, number), 2)
        assert [part.tolist() for part in parts[4 * number : 4 * number + 4]] == [own[part].tolist() for part in alone]
    shares = [np.bincount(labels[part], minlength=4) / len(part) for part in parts]
    assert np.mean([share.max() for share in shares]) > 0.6  # iid shares would be near 0.25


def test_two_keys_with_a_large_alpha_give_each_client_the_shares_of_its_value() -> None:
    values, labels = np.repeat(["a", "b"], 400), np.repeat([0, 1, 0, 1], [300, 100, 100, 300])
    for client, part in enumerate(by_column_dirichlet(labels, values, clients=4, alpha=1e6, seed=0)):
        assert np.bincount(labels[part]).tolist() == ([150, 50] if client < 2 else [50, 150])


# ---------------------------------------------------------------------------------------------- hold-out


@given(
    st.lists(st.integers(0, 3), min_size=1, max_size=60),
    st.floats(0, 1, exclude_max=True),
    st.integers(0, 100),
)
@settings(max_examples=100, deadline=None)
def test_split_keeps_train_filled_and_holds_out_when_it_can(labels: list[int], fraction: float, seed: int) -> None:
    positions = np.arange(len(labels)) * 2
    train, held = split(positions, np.repeat(labels, 2), fraction, seed)
    assert sorted([*train, *held]) == positions.tolist()
    assert len(train) >= 1
    assert (len(held) >= 1) == (len(labels) >= 2 and fraction > 0)
    assert abs(len(held) - fraction * len(labels)) <= 1


@given(st.lists(st.integers(0, 3), min_size=2, max_size=80), st.integers(0, 100), st.floats(0.1, 0.9))
@settings(max_examples=100, deadline=None)
def test_split_gives_every_class_its_share_within_one_example(labels: list[int], seed: int, fraction: float) -> None:
    positions, codes = np.arange(len(labels)), np.array(labels)
    _, held = split(positions, codes, fraction, seed)
    share = len(held) / len(codes)
    for label in np.unique(codes):
        assert abs((codes[held] == label).sum() - share * (codes == label).sum()) <= 1.5


def test_split_of_nothing_is_nothing() -> None:
    train, held = split([], LABELS, 0.5, seed=0)
    assert len(train) == len(held) == 0


# ---------------------------------------------------------------------------------------------- mistakes


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: iid(10, 0, 0), ["clients=0"]),
        (lambda: iid(10, True, 0), ["clients=True"]),
        (lambda: iid(3, 4, 0), ["clients=4", "at most 3"]),
        (lambda: iid(3, 2, -1), ["seed=-1"]),
        (lambda: dirichlet(LABELS, 4, 0.0, 0), ["partition.alpha=0.0"]),
        (lambda: dirichlet(LABELS, 4, float("nan"), 0), ["partition.alpha=nan"]),
        (lambda: dirichlet(LABELS, 4, float("inf"), 0), ["partition.alpha=inf"]),
        (lambda: dirichlet(LABELS, 100, 0.01, 0), ["partition.alpha=0.01", "clients=100"]),
        (lambda: dirichlet(LABELS, 10, 1.0, 0, min_examples=21), ["partition.min_examples=21", "20"]),
        (lambda: quantity(100, 4, -1.0, 0), ["partition.alpha=-1"]),
        (lambda: quantity(100, 90, 0.1, 0), ["partition.alpha=0.1", "clients=90"]),
        (lambda: quantity(100, 50, 1000.0, 0, min_share=0.5), ["partition.alpha=1000", "clients=50"]),
        (lambda: quantity(100, 4, 1.0, 0, min_share=1.0), ["partition.min_share=1.0"]),
        (lambda: shards(LABELS, 4, 51, 0), ["partition.shards_per_client=51", "50"]),
        (lambda: shards(LABELS, 4, 0, 0), ["partition.shards_per_client=0"]),
        (lambda: by_column(["a", "a", "b"], 4, 0), ["clients=4", "at most 3"]),
        (lambda: by_column(["a", "b", "b", "b"], 4, 0), ["clients=4", "fewer"]),
        (lambda: by_column_dirichlet([0] * 4, ["a", "b", "c", "c"], 2, 0.5, 0), ["clients=2", "at least 3"]),
        (lambda: by_column_dirichlet([0] * 4, ["a", "b", "b", "b"], 4, 0.5, 0), ["clients=4", "fewer"]),
        (lambda: by_column_dirichlet([0] * 4, ["a", "a", "b", "b"], 2, 0, 0), ["partition.alpha=0"]),
        (lambda: by_column_dirichlet([0] * 4, ["a", "a", "b", "b"], 2, 1.0, 0, 3), ["partition.min_examples=3"]),
        (lambda: by_column_dirichlet([0] * 2, np.array(["a", None], dtype=object), 1, 1.0, 0), ["data.column=None"]),
        (lambda: by_column(np.array(["a", None], dtype=object), None, 0), ["data.column=None", "example 1"]),
        (lambda: by_column([0.5, float("nan")], None, 0), ["data.column=nan"]),
        (lambda: split([0, 1], [0, 0], 1.0, 0), ["partition.held_out=1.0"]),
        (lambda: partition("dirichlett", labels=LABELS, clients=2, seed=0), ["partition.kind=dirichlett", "iid, "]),
        (lambda: partition("iid", labels=LABELS, clients=2, seed=0, alpha=1.0), ["partition.alpha=1.0", "iid"]),
        (lambda: partition("dirichlet", labels=LABELS, clients=2, seed=0), ["partition.alpha=None", "dirichlet"]),
        (lambda: partition("iid", labels=LABELS, clients=None, seed=0), ["clients=None"]),
        (lambda: partition("by_column_dirichlet", labels=LABELS, clients=2, seed=0, alpha=1.0), ["data.column=None"]),
        (lambda: partition("by_column", labels=LABELS, clients=2, seed=0), ["data.column=None", "by_column"]),
    ],
)
def test_mistakes_are_one_line_that_names_the_key(call: Callable[[], object], words: list[str]) -> None:
    with pytest.raises(InputError) as error:
        call()
    assert_one_line_naming(error, *words)


def test_dispatch_equals_the_function_and_ignores_settings_left_empty() -> None:
    by_name = partition("dirichlet", labels=LABELS, clients=4, seed=2, alpha=0.5, min_share=None)
    assert [part.tolist() for part in by_name] == [part.tolist() for part in dirichlet(LABELS, 4, 0.5, 2)]
    assert settings_of("quantity") == {"alpha": True, "min_share": False}
