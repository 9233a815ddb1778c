"""What uploads are clustered by, against NumPy."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from made import update_of, view_of
from sklearn.metrics import adjusted_rand_score, silhouette_score

from flt.algorithm.grouping import features
from flt.algorithm.grouping.kmeans import KMeansGrouping
from flt.algorithm.view import View
from flt.protocol.entries import Entry
from flt.protocol.layout import Layout
from flt.protocol.messages import Ids, Update
from flt.protocol.state import GroupState, ServerState

LORA = ["x.A", "x.B", "y.A", "y.B"]


def mixed_view(clients: int) -> View:
    """Half of the jobs were sent the weights of group 1, half of group 2."""
    return view_of(groups=(0, 1, 2), assignment={(client, 0): 1 + client % 2 for client in range(clients)})


def change_by_hand(view: View, update: Update) -> np.ndarray:
    """Of the LoRA tensors, pair by pair: zero where nothing was sent."""
    sent_to = view.state.groups[view.state.assignment[update.job]].weights
    rows = []
    for name in LORA:
        start, change = sent_to[name].numpy().astype(np.float64), np.zeros(sent_to[name].shape)
        for at, pair in enumerate(update.kept[name[0]]):
            row = (pair,) if name.endswith("A") else (slice(None), pair)
            part = (at,) if name.endswith("A") else (slice(None), at)
            change[row] = update.tensors[name].numpy()[part] - start[row]
        rows.append(change.ravel())
    return np.concatenate(rows)


@settings(max_examples=15)
@given(kept=st.lists(st.sets(st.integers(0, 3), min_size=1), min_size=2, max_size=6))
def test_changes_are_centred_and_of_unit_length(kept: list[set[int]]) -> None:
    view = mixed_view(len(kept))
    pairs: list[dict[str, Ids]] = [{"x": tuple(sorted(ids)), "y": (0, 3)} for ids in kept]
    updates = [update_of(view, (client, 0), pairs[client]) for client in range(len(kept))]
    by_hand = np.stack([change_by_hand(view, update) for update in updates])
    by_hand -= by_hand.mean(axis=0)
    by_hand /= np.sqrt((by_hand**2).sum(axis=1, keepdims=True))
    found = KMeansGrouping(2, features="changes", tensors="lora").describe(view, updates)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, by_hand, atol=1e-6)


def test_pruned_pairs_tell_no_groups_apart() -> None:
    """What groups had in them when they were cut stays there, and is no part of any model."""
    view = view_of(groups=(0, 1, 2), assignment={(0, 0): 1, (1, 0): 2}, alive={"x": (0, 2), "y": (3,)})
    updates = [update_of(view, (client, 0), view.state.alive) for client in range(2)]
    sent = [np.concatenate([u.tensors[name].numpy().ravel() for name in LORA]) for u in updates]
    assert np.array_equal(features.weights(view, updates, LORA), np.stack(sent))


def test_an_only_upload_has_no_direction() -> None:
    view = mixed_view(1)
    assert not KMeansGrouping(2, features="changes").describe(view, [update_of(view, (0, 0))]).any()


@pytest.mark.parametrize(("tensors", "expected"), [("all", ["head", *LORA]), ("lora", LORA)])
def test_the_tensors_that_count_are_chosen_by_role(tensors: str, expected: list[str]) -> None:
    assert features.names(view_of().layout, tensors) == expected


def test_adapters_of_other_kinds_count_as_lora_does() -> None:
    layout = Layout({"head": Entry("head", (2,)), "up": Entry("adapter", (2,)), "W": Entry("base", (2,))}, {})
    assert features.names(layout, "lora") == ["up"]
    assert features.names(layout, "all") == ["head", "up"]


def view_of_any(layout: Layout) -> View:
    return dataclasses.replace(view_of(), layout=layout)


def test_heads_that_differ_are_left_out() -> None:
    entries = {f"head#{n}": Entry("head", (n,), variant=str(n)) for n in (2, 5)}
    layout = Layout({**entries, "up": Entry("adapter", (2,))}, {})
    assert features.names(layout, "all") == ["up"]


@settings(max_examples=15)
@given(st.integers(1, 6), st.integers(1, 4), st.integers(1, 5))
def test_squared_distances_are_those_of_numpy(points: int, centres: int, size: int) -> None:
    draw = np.random.default_rng(points)
    a, b = draw.normal(size=(points, size)), draw.normal(size=(centres, size))
    expected = np.linalg.norm(a[:, None] - b[None], axis=2) ** 2
    np.testing.assert_allclose(features.squared_distances(a, b), expected, atol=1e-9)


def test_distances_to_groups_leave_home_out_and_follow_the_docstring() -> None:
    view = view_of(groups=(0, 2, 5))
    updates = [update_of(view, (client, 0)) for client in range(3)]
    flat = {gid: np.concatenate([group.weights[n].double().numpy().ravel() for n in LORA])
            for gid, group in view.state.groups.items()}  # fmt: skip
    sent = np.stack([np.concatenate([u.tensors[n].double().numpy().ravel() for n in LORA]) for u in updates])
    gids, squares = features.distances_to_groups(view, updates, LORA, "weights")
    assert gids == [2, 5]
    np.testing.assert_allclose(squares, [[((u - flat[gid]) ** 2).sum() for gid in gids] for u in sent], rtol=1e-6)
    way = {gid: flat[gid] - flat[0] - (flat[2] + flat[5] - 2 * flat[0]) / 2 for gid in gids}
    cosines = [[(u - flat[0]) @ way[g] / np.linalg.norm(u - flat[0]) / np.linalg.norm(way[g]) for g in gids]
               for u in sent]  # fmt: skip
    np.testing.assert_allclose(-features.distances_to_groups(view, updates, LORA, "changes")[1], cosines, rtol=1e-6)


def after_round(view: View, grouping: KMeansGrouping, updates: list[Update]) -> View:
    """The next round's view: what the grouping remembers is kept, no weight moves."""
    found = grouping(view, updates).directions
    state = dataclasses.replace(view.state, rounds=view.state.rounds + 1, directions={**view.state.directions, **found})
    return dataclasses.replace(view, state=state)


@settings(max_examples=15)
@given(first=st.integers(2, 5))
def test_directions_are_the_sum_of_the_rounds_changes_by_their_squared_silhouettes(first: int) -> None:
    view, grouping = mixed_view(6), KMeansGrouping(2, features="changes", tensors="lora", memory=True)
    plain = KMeansGrouping(2, features="changes", tensors="lora")
    cohorts = [range(first), range(1, 6), range(6)]
    by_hand = np.zeros((6, len(change_by_hand(view, update_of(view, (0, 0))))))
    for cohort in cohorts:
        updates = [update_of(view, (client, 0)) for client in cohort]
        changed = np.stack([change_by_hand(view, update) for update in updates])
        changed -= changed.mean(axis=0)
        described = plain.describe(view, updates)
        groups = {u.job: gid for gid, its in plain(view, updates).members.items() for u in its}
        clear = silhouette_score(described, [groups[u.job] for u in updates]) if len(cohort) > 2 else 0
        for row, client in zip(changed, cohort, strict=True):
            by_hand[client] += row * max(clear, 0.01) ** 2
        expected = by_hand[cohort] / np.sqrt((by_hand[cohort] ** 2).sum(axis=1, keepdims=True))
        np.testing.assert_allclose(grouping.describe(view, updates), expected, atol=1e-5)
        view = after_round(view, grouping, updates)
    assert set(view.state.directions) == {(client, 0) for client in range(6)}
    assert not plain(view, updates).directions


def test_what_one_clear_round_shows_outlasts_rounds_of_noise() -> None:
    """Two tasks that pull apart once, and then nothing but noise that is as large."""
    generator = np.random.default_rng(0)
    pull = generator.normal(size=(2, 200))
    noise = [generator.normal(size=(8, 200)) for _ in range(9)]
    rounds = [*noise[:2], np.repeat(pull, 4, axis=0) + noise[2] / 2, *noise[3:]]
    layout = Layout({"up": Entry("adapter", (200,))}, {})
    truth = np.repeat([0, 1], 4)

    def agreement(memory: bool) -> float:
        state = ServerState(0, {gid: GroupState({"up": torch.zeros(200)}, {}) for gid in (0, 1, 2)}, {})
        view = View(layout, state, 8, 0)
        grouping = KMeansGrouping(2, features="changes", tensors="lora", memory=memory)
        for values in rounds:
            updates = [
                Update((client, 0), 0, {"up": torch.from_numpy(row).float()}, {}, 0, 10, steps=1)
                for client, row in enumerate(values)
            ]
            labels = grouping.labels(grouping.describe(view, updates), [u.job for u in updates], 0)
            view = after_round(view, grouping, updates)
        return float(adjusted_rand_score(truth, labels))

    assert agreement(memory=True) == 1.0
    assert agreement(memory=False) < 0.5
