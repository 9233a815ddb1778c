"""What uploads are clustered by, against NumPy."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from made import update_of, view_of

from flt.grouping import features
from flt.grouping.kmeans import KMeansGrouping
from flt.layout import Entry, Layout
from flt.messages import Ids, Update
from flt.view import View

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
    found = features.changes(view, [update_of(view, (0, 0))], LORA)
    assert not found.any()


@pytest.mark.parametrize(("tensors", "expected"), [("all", ["head", *LORA]), ("lora", LORA)])
def test_the_tensors_that_count_are_chosen_by_role(tensors: str, expected: list[str]) -> None:
    assert features.names(view_of(), tensors) == expected


def test_adapters_of_other_kinds_count_as_lora_does() -> None:
    layout = Layout({"head": Entry("head", (2,)), "up": Entry("adapter", (2,)), "W": Entry("base", (2,))}, {})
    assert features.names(view_of_any(layout), "lora") == ["up"]
    assert features.names(view_of_any(layout), "all") == ["head", "up"]


def view_of_any(layout: Layout) -> View:
    return dataclasses.replace(view_of(), layout=layout)


def test_heads_that_differ_are_left_out() -> None:
    entries = {f"head#{n}": Entry("head", (n,), variant=str(n)) for n in (2, 5)}
    layout = Layout({**entries, "up": Entry("adapter", (2,))}, {})
    assert features.names(view_of_any(layout), "all") == ["up"]


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
