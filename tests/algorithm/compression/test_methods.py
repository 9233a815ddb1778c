"""Budgets that hold for exactly what is counted, by importance; the channel; what is refused."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np
import pytest
import torch
from haflq import bits, size
from hypothesis import given, settings
from hypothesis import strategies as st
from made import layout_of, update_of, view_of

from flt.algorithm.compression.methods import Channel, Quantised
from flt.algorithm.grouping.kmeans import KMeansGrouping
from flt.algorithm.importance import DeltaSensitivity
from flt.algorithm.recipe import Recipe
from flt.algorithm.rule.mean import Mean
from flt.algorithm.rule.scaffold import Scaffold
from flt.core.errors import InputError
from flt.protocol.layout import Layout
from flt.protocol.messages import Plan, Update
from flt.protocol.quantised_components import unpack_update

frugal = settings(max_examples=25, deadline=None)


def wide(rank: int, size: int = 64) -> Layout:
    """Layers that are large enough for precisions to matter beside the framing."""
    layout = layout_of(rank)
    entries = dict(layout.entries)
    for name, entry in layout.entries.items():
        if entry.axis is not None:
            entries[name] = dataclasses.replace(entry, shape=(rank, size) if entry.axis == 0 else (size, rank))
    return Layout(entries, layout.layers)


def sent(
    layout: Layout, kept: dict[str, tuple[int, ...]], job: tuple[int, int] = (0, 0), scored: bool = True
) -> Update:
    made = update_of(view_of(layout), job, kept)
    generator = torch.Generator().manual_seed(job[1])
    scores = {layer: (ids, torch.rand(len(ids), generator=generator)) for layer, ids in kept.items()}
    return dataclasses.replace(made, scores=scores if scored else {})


# ---------------------------------------------------------------------------------------------- the budget


@frugal
@given(st.integers(1, 6), st.integers(1, 3), st.floats(0, 1.2), st.booleans())
def test_a_clients_messages_together_never_exceed_its_budget(rank: int, jobs: int, share: float, scored: bool) -> None:
    """For exactly the bytes that are counted; and unless all travels at 32 bits, less than one step is left over."""
    layout = wide(rank)
    updates = [sent(layout, layout.all_components(), (0, index), scored) for index in range(jobs)]
    unlimited = Quantised(budget=1 << 40)
    least = size(unlimited.compress_updates(layout, [dataclasses.replace(u, kept={"x": (), "y": ()}, tensors={
        name: layout.take(name, torch.zeros(layout.entries[name].shape), {"x": (), "y": ()}) for name in u.tensors
    }) for u in updates]))  # fmt: skip
    budget = least + int(share * (size(updates) - least))
    made = Quantised(budget=budget).compress_updates(layout, updates)
    assert size(made) <= budget
    found = [q for update in made for q in bits(update)]
    if set(found) - {32} and found:
        assert size(made) > budget - 2 * (64 + 4) * 2 - 80


def test_more_important_pairs_travel_more_precisely_over_layers_and_jobs() -> None:
    layout = wide(4)
    updates = [sent(layout, layout.all_components(), (0, index)) for index in range(2)]
    made = Quantised(ratio=0.45).compress_updates(layout, updates)
    scores = np.concatenate([values for u in updates for _, values in u.scores.values()])
    found = np.array([q for update in made for q in bits(update)])
    assert len(set(found)) > 1
    assert (np.diff(found[np.argsort(scores)]) >= 0).all()


def test_without_measured_scores_the_magnitudes_of_what_is_sent_decide() -> None:
    layout = wide(4)
    update = sent(layout, layout.all_components(), scored=False)
    found = bits(Quantised(ratio=0.45).compress_updates(layout, [update])[0])
    norms = [
        update.tensors[f"{layer}.A"][i].norm() * update.tensors[f"{layer}.B"][:, i].norm()
        for layer in "xy"
        for i in range(4)
    ]
    assert len(set(found)) > 1
    assert (np.diff(np.array(found)[np.argsort(norms)]) >= 0).all()


def test_where_all_scores_tie_the_layers_get_the_same() -> None:
    layout = wide(4)
    update = dataclasses.replace(sent(layout, layout.all_components()), scores={"x": (tuple(range(4)), torch.zeros(4))})
    found = bits(Quantised(ratio=0.3).compress_updates(layout, [update])[0])
    assert len(set(found)) == 2
    assert found[:4] == sorted(found[:4], reverse=True)
    assert abs(sum(found[:4]) - sum(found[4:])) <= max(found) - min(found)


def test_pairs_that_do_not_fit_stay_away_the_least_important_first() -> None:
    layout = wide(4)
    update = sent(layout, {"x": (0, 1, 3), "y": (2,)})
    everything = Quantised(budget=None, ratio=None).compress_updates(layout, [update])[0]
    counts = set()
    for budget in range(700, size([everything]), 20):
        try:
            (made,) = Quantised(budget=budget).compress_updates(layout, [update])
        except InputError:
            continue
        kept = {(layer, pair) for layer, ids in made.kept.items() for pair in ids}
        known = {
            (layer, i): float(s) for layer, (ids, its) in update.scores.items() for i, s in zip(ids, its, strict=True)
        }
        assert kept == set(sorted(known, key=known.__getitem__)[4 - len(kept) :])
        assert made.scores is update.scores
        counts.add(len(kept))
    assert counts == {0, 1, 2, 3, 4}


def test_a_budget_below_the_head_and_the_scalars_is_refused_in_one_line() -> None:
    layout = wide(4)
    with pytest.raises(
        InputError, match=r"^compression=100 bytes for client 0: allowed is at least the \d+ besides its"
    ):
        Quantised(budget=100).compress_updates(layout, [sent(layout, layout.all_components())])


def test_a_ratio_is_of_what_the_clients_pairs_would_have_been() -> None:
    layout = wide(6)
    updates = [sent(layout, layout.all_components(), (0, index)) for index in range(2)]
    pairs = sum(4 * tensor.numel() for u in updates for name, tensor in u.tensors.items() if name != "head")
    besides = size(updates) - pairs
    for ratio in (0.3, 0.5, 0.8):
        made = size(Quantised(ratio=ratio).compress_updates(layout, updates))
        assert made - besides == pytest.approx(ratio * pairs, abs=700)


@pytest.mark.parametrize("kept", [(0,), (0, 1, 2), tuple(range(6))])
def test_a_ratio_leaves_room_for_the_head_however_few_pairs_live(kept: tuple[int, ...]) -> None:
    """Ranks that fall under a schedule make the pairs' part small, and no round may fail for it."""
    layout = wide(6)
    update = sent(layout, {"x": kept, "y": ()})
    made = Quantised(ratio=0.01).compress_updates(layout, [update])
    assert torch.equal(unpack_update(made[0], layout, Plan()).tensors["head"], update.tensors["head"])


# ---------------------------------------------------------------------------------------------- the channel


@frugal
@given(st.floats(0.1, 5), st.floats(1e3, 1e7), st.floats(0.01, 2), st.floats(100, 5000))
def test_a_channel_carries_what_shannon_says(tau: float, bandwidth: float, power: float, distance: float) -> None:
    """In decibels throughout, another way than the code's."""
    part = Channel(tau=tau, bandwidth=bandwidth, power=power, noise=-170.0, distances=[distance])
    received = 10 * math.log10(power * 1000) - (128.1 + 37.6 * math.log10(distance / 1000))  # dBm
    ratio = received - (-170.0 + 10 * math.log10(bandwidth))
    expected = tau * bandwidth * math.log1p(10 ** (ratio / 10)) / math.log(2) / 8
    assert abs(part.limit(3, [], 0) - expected) <= 1 + 1e-9 * expected  # type: ignore[operator]  # never None


def test_distances_are_dealt_to_the_clients_and_the_far_ones_get_less() -> None:
    limits = [Channel().limit(client, [], 0) for client in range(20)]
    assert limits[:10] == sorted(limits[:10], reverse=True)  # type: ignore[type-var]  # never None
    assert limits[10:] == limits[:10]
    assert len(set(limits)) == 10


# ---------------------------------------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("kind", "wrong", "message"),
    [
        (Quantised, {"budget": 0}, "compression.budget=0: allowed is an integer >= 1, or null"),
        (Quantised, {"ratio": 0.0}, "compression.ratio=0.0: allowed is a number in"),
        (Quantised, {"ratio": 1.5}, "compression.ratio=1.5: allowed is a number in"),
        (Channel, {"tau": 0.0}, "compression.tau=0.0: allowed is a number > 0"),
        (Channel, {"power": math.inf}, "compression.power=inf: allowed is a number > 0"),
        (Channel, {"noise": math.nan}, "compression.noise=nan: allowed is a number"),
        (Channel, {"noise": 1001.0}, "compression.noise=1001.0: allowed is a number from -1000 to 1000"),
        (Channel, {"distances": []}, "compression.distances=.*: allowed is a list of numbers > 0"),
        (Channel, {"distances": [1.0, -1.0]}, "compression.distances=.*: allowed is a list of numbers > 0"),
    ],
    ids=str,
)
def test_numbers_out_of_range_are_refused(kind: Any, wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=f"^{message}"):
        kind(**wrong)


def test_combinations_without_meaning_are_refused() -> None:
    with pytest.raises(
        InputError, match="^compression=Quantised: Scaffold derives from exact weights .*allowed is none$"
    ):
        Recipe(Scaffold(), compression=Quantised())
    with pytest.raises(InputError, match="^compression.down=true: the change would have the rounding"):
        Recipe(Mean(), importance=DeltaSensitivity(), compression=Quantised(down=True))
    Recipe(Mean(), importance=DeltaSensitivity(), compression=Quantised())
    with pytest.raises(InputError, match="^compression.down=true: .* allowed is false with grouping.features=changes$"):
        Recipe(Mean(), grouping=KMeansGrouping(2, features="changes"), compression=Quantised(down=True))
    Recipe(Mean(), grouping=KMeansGrouping(2), compression=Quantised(down=True))


def test_a_module_without_pairs_has_nothing_to_pack() -> None:
    layout = Layout({name: e for name, e in layout_of().entries.items() if e.axis is None}, {})
    with pytest.raises(InputError, match="^compression=Quantised: it works on rank-1 components"):
        Recipe(Mean(), compression=Quantised()).check(layout)


@pytest.mark.parametrize("kept", [(0, 1, 2, 3, 4), (0,), ()], ids=str)
def test_an_update_with_other_components_than_it_says_is_refused(kept: tuple[int, ...]) -> None:
    layout = wide(4)
    update = dataclasses.replace(sent(layout, layout.all_components()), kept={"x": kept, "y": kept})
    with pytest.raises(InputError, match=rf"^message of client 0, job 0: .*allowed is the {len(kept)} components"):
        Quantised(ratio=0.5).compress_updates(layout, [update])


def test_an_update_with_more_scores_than_components_is_left_to_the_servers_check() -> None:
    layout = wide(4)
    update = sent(layout, layout.all_components())
    scores = {layer: (ids, torch.ones(9)) for layer, (ids, _) in update.scores.items()}
    assert Quantised(ratio=0.5).compress_updates(layout, [dataclasses.replace(update, scores=scores)])
