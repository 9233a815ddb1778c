"""What a clustering remembers of the changes of earlier rounds, against NumPy."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.distance import pdist
from sklearn.metrics import adjusted_rand_score, silhouette_score

from flt.algorithm.grouping.kmeans import KMeansGrouping
from flt.algorithm.grouping.memory import projected
from flt.algorithm.view import View
from flt.core.errors import InputError
from flt.protocol.entries import Entry
from flt.protocol.layout import Layout
from flt.protocol.messages import Update
from flt.protocol.state import GroupState, ServerState

SIZE = 60
Cohort = Sequence[int]


def view_of_one_tensor(size: int = SIZE) -> View:
    """Three groups of one tensor of zeros."""
    state = ServerState(0, {gid: GroupState({"up": torch.zeros(size)}, {}) for gid in (0, 1, 2)}, {})
    return View(Layout({"up": Entry("adapter", (size,))}, {}), state, 12, 0)


def remembering(**given: Any) -> KMeansGrouping:
    return KMeansGrouping(2, features="changes", tensors="lora", **{"memory": "side_by_side", **given})


def updates_of(values: np.ndarray, cohort: Cohort) -> list[Update]:
    return [
        Update((client, 0), 0, {"up": torch.from_numpy(values[client]).float()}, {}, 0, 10, steps=1)
        for client in cohort
    ]


def after_round(view: View, grouping: KMeansGrouping, updates: list[Update]) -> View:
    """The next round's view: what the grouping remembers is kept, no weight moves."""
    kept = {**view.state.directions, **grouping(view, updates).directions}
    return dataclasses.replace(
        view, state=dataclasses.replace(view.state, rounds=view.state.rounds + 1, directions=kept)
    )


def parts_by_hand(values: np.ndarray, cohort: Cohort, view: View) -> np.ndarray:
    """Of each client its centred change of length 1, times the round's silhouette; zeros of who is absent."""
    plain = KMeansGrouping(2, features="changes", tensors="lora")
    updates = updates_of(values, cohort)
    rows = values[list(cohort)] - values[list(cohort)].mean(axis=0)
    rows = rows / np.sqrt((rows**2).sum(axis=1, keepdims=True))
    groups = {u.job[0]: gid for gid, its in plain(view, updates).members.items() for u in its}
    parts = np.zeros(values.shape)
    parts[list(cohort)] = rows * max(silhouette_score(rows, [groups[client] for client in cohort]), 0.01)
    return parts


@settings(max_examples=10)
@given(first=st.integers(3, 5), last=st.sampled_from([1, 2, 9]))
def test_the_rounds_stand_side_by_side_by_their_silhouettes_and_who_is_absent_has_zeros(first: int, last: int) -> None:
    view, grouping, draw = (
        view_of_one_tensor(),
        remembering(memory_rounds=last, memory_width=None),
        np.random.default_rng(first),
    )
    cohorts: list[Cohort] = [range(first), range(2, 7), [0, 3, 5, 6]]
    blocks: list[np.ndarray] = []
    for cohort in cohorts:
        values = draw.normal(size=(7, SIZE))
        blocks.append(parts_by_hand(values, cohort, view))
        by_hand = np.concatenate(blocks[-last:], axis=1)[list(cohort)]
        by_hand /= np.sqrt((by_hand**2).sum(axis=1, keepdims=True))
        updates = updates_of(values, cohort)
        np.testing.assert_allclose(pdist(grouping.describe(view, updates)), pdist(by_hand), atol=1e-5)
        view = after_round(view, grouping, updates)
        sizes = {tuple(kept.shape) for kept in view.state.directions.values()}
        assert sizes == {(SIZE * min(last, len(blocks)),)}
    assert set(view.state.directions) == {(client, 0) for client in range(7)}


def test_a_projection_keeps_the_cosines_between_jobs_and_its_width_over_rounds() -> None:
    """No job comes nearer to another than six standard deviations, 1 / sqrt(width), of what it is with all changes."""
    width, size = 2000, 5000
    draw, pull = np.random.default_rng(0), np.random.default_rng(1).normal(size=(2, size))
    full, narrow = remembering(memory_rounds=6, memory_width=None), remembering(memory_width=width)
    views = [view_of_one_tensor(size), view_of_one_tensor(size)]
    for _ in range(6):
        values = np.repeat(pull, 4, axis=0) + draw.normal(size=(8, size))
        updates = updates_of(values, [0, 1, 2, 4, 5, 7])
        a, b = (grouping.describe(view, updates) for grouping, view in zip((full, narrow), views, strict=True))
        assert b.shape == (6, width)
        np.testing.assert_allclose(b @ b.T, a @ a.T, atol=6 / np.sqrt(width))
        views = [after_round(view, grouping, updates) for grouping, view in zip((full, narrow), views, strict=True)]
    assert {len(kept) for kept in views[0].state.directions.values()} == {6 * size}
    assert {len(kept) for kept in views[1].state.directions.values()} == {width}


def test_rounds_are_projected_apart() -> None:
    """With one projection for all rounds, changes of different rounds would add up as in a sum."""
    first, second = (projected(np.eye(1, 3000), 4096, np.random.default_rng([7, n])) for n in range(2))
    assert not np.array_equal(first, second)
    view, grouping = view_of_one_tensor(3000), remembering(memory_width=4096)
    values = np.random.default_rng(0).normal(size=(4, 3000))
    for _ in range(2):
        view = after_round(view, grouping, updates_of(values, range(4)))
    once = after_round(view_of_one_tensor(3000), grouping, updates_of(values, range(4))).state.directions
    twice = view.state.directions
    for job, kept in once.items():  # equal changes: as long as two that are orthogonal, not as two that are parallel
        assert float(twice[job].norm() / kept.norm()) == pytest.approx(np.sqrt(2), abs=0.15)


def test_a_count_sketch_keeps_inner_products_on_average() -> None:
    rows = np.random.default_rng(0).normal(size=(2, 30))
    found = [projected(rows, 16, np.random.default_rng(seed)) for seed in range(3000)]
    products = np.array([a @ b for a, b in found])
    assert products.mean() == pytest.approx(rows[0] @ rows[1], abs=4 * products.std() / np.sqrt(len(products)))


def test_tasks_whose_directions_turn_round_are_kept_side_by_side_and_cancel_in_a_sum() -> None:
    draw, truth = np.random.default_rng(2), np.repeat([0, 1], 4)
    pull = np.outer(np.repeat([1, -1], 4), draw.normal(size=400))
    rounds = [sign * pull + draw.normal(size=(8, 400)) for sign in (1, -1)]

    def agreement(**given: Any) -> float:
        view, grouping = view_of_one_tensor(400), remembering(**given)
        for values in rounds:
            updates = updates_of(values, range(8))
            labels = grouping.labels(grouping.describe(view, updates), [u.job for u in updates], 0)
            view = after_round(view, grouping, updates)
        return float(adjusted_rand_score(truth, labels))

    assert agreement() == 1.0
    assert agreement(memory=True) < 0.5


@pytest.mark.parametrize("word", [True, "true", "on", "Yes", 1, "1"])
def test_true_is_the_sum_in_all_words_of_a_switch(word: bool | int | str) -> None:
    updates = updates_of(np.random.default_rng(0).normal(size=(5, SIZE)), range(5))
    kept = remembering(memory=word)(view_of_one_tensor(), updates).directions
    expected = remembering(memory=True)(view_of_one_tensor(), updates).directions
    assert all(torch.equal(kept[job], expected[job]) for job in expected)
    assert len(kept) == 5


@pytest.mark.parametrize("word", [False, "off", "no", 0, "FALSE"])
def test_false_remembers_nothing_in_all_words_of_a_switch(word: bool | int | str) -> None:
    updates = updates_of(np.random.default_rng(0).normal(size=(5, SIZE)), range(5))
    assert not remembering(memory=word)(view_of_one_tensor(), updates).directions


@pytest.mark.parametrize(
    ("given", "line"),
    [
        ({"memory": "both"}, "grouping.memory=both: allowed is false, true, side_by_side"),
        ({"memory": 2}, "grouping.memory=2: allowed is false, true, side_by_side"),
        ({"memory": True, "memory_rounds": 3}, "grouping.memory_rounds=3: allowed is null, or grouping.memory=side_by"),
        ({"memory_rounds": 0}, "grouping.memory_rounds=0: allowed is an integer >= 1"),
        ({"memory_width": 0}, "grouping.memory_width=0: allowed is an integer from 1 to"),
        ({"memory_width": 1 << 21}, "grouping.memory_width=2097152: allowed is an integer from 1 to"),
        (
            {"memory_width": None},
            "grouping.memory_width=null: the memory would grow with every round; allowed is an integer, unless",
        ),
        ({"features": "weights"}, "grouping.memory=side_by_side: allowed is false with grouping.features=weights"),
    ],
)
def test_memories_without_meaning_or_bound_are_refused(given: dict[str, Any], line: str) -> None:
    with pytest.raises(InputError, match=f"^{re.escape(line)}"):
        KMeansGrouping(2, **{"features": "changes", "tensors": "lora", "memory": "side_by_side", **given})
