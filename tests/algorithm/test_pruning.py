"""Pruning against NumPy's dense SVD, and the error that it leaves."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from toys import toy_federator

from flt.algorithm import pruning
from flt.protocol.layout import Layout
from flt.protocol.state import ServerState


def state_of(
    seed: int, alive: dict[str, tuple[int, ...]] | None = None, zero: bool = False
) -> tuple[Layout, ServerState]:
    """A toy's state with random factors, float64 so that a reference can be compared with."""
    federator = toy_federator()
    generator = torch.Generator().manual_seed(seed)
    group = federator.state.groups[0]
    for name, tensor in group.weights.items():
        fresh = torch.randn(tensor.shape, generator=generator, dtype=torch.float64)
        group.weights[name] = 0 * fresh if zero and "lora_B" in name else fresh
    for name in group.scores:
        group.scores[name] = torch.rand(4, generator=generator, dtype=torch.float64)
    layout = federator.server.layout
    return layout, ServerState(1, {0: group}, alive or layout.all_components())


def product(layout: Layout, state: ServerState, name: str) -> np.ndarray:
    layer, at = layout.layers[name], list(state.alive[name])
    weights = state.groups[0].weights
    return 2.0 * weights[layer.b].numpy()[:, at] @ weights[layer.a].numpy()[at]


@pytest.mark.parametrize("rank", [1, 2, 3])
@pytest.mark.parametrize("alive", [(0, 1, 2, 3), (0, 2, 3)])
def test_svd_leaves_the_best_approximation_of_the_dense_product(rank: int, alive: tuple[int, ...]) -> None:
    layout, state = state_of(0, {"fc1": alive, "fc2": alive})
    cut = pruning.svd(state, layout, {"fc1": rank, "fc2": rank}, "layer")
    lost = whole = 0.0
    for name in layout.layers:
        dense = product(layout, state, name)
        u, s, v = np.linalg.svd(dense, full_matrices=False)
        np.testing.assert_allclose(product(layout, cut, name), (u[:, :rank] * s[:rank]) @ v[:rank], atol=1e-10)
        lost, whole = lost + (s[rank:] ** 2).sum(), whole + (s**2).sum()
        assert cut.alive[name] == alive[:rank]
    assert cut.pruned == pytest.approx((lost / whole) ** 0.5, abs=1e-7)


def test_svd_with_global_allocation_is_the_best_of_all_layers_together() -> None:
    layout, state = state_of(1)
    cut = pruning.svd(state, layout, {"fc1": 2, "fc2": 2}, "global")
    values = {name: np.linalg.svd(product(layout, state, name), compute_uv=False)[:4] for name in layout.layers}
    border = np.sort(np.concatenate(list(values.values())))[-4]
    assert {name: len(ids) for name, ids in cut.alive.items()} == {
        n: int((v >= border).sum()) for n, v in values.items()
    }


def test_factors_of_an_untrained_product_can_still_learn() -> None:
    layout, state = state_of(2, zero=True)
    cut = pruning.svd(state, layout, {"fc1": 2, "fc2": 2}, "layer")
    a = cut.groups[0].weights["fc1.lora_A.default.weight"][:2]
    assert torch.linalg.matrix_rank(a) == 2
    assert cut.pruned == 0.0


def test_right_factors_keep_the_mean_norm_of_the_rows() -> None:
    layout, state = state_of(3)
    before = state.groups[0].weights["fc1.lora_A.default.weight"].norm(dim=1).mean()
    cut = pruning.svd(state, layout, {"fc1": 2, "fc2": 2}, "layer")
    rows = cut.groups[0].weights["fc1.lora_A.default.weight"][:2].norm(dim=1)
    torch.testing.assert_close(rows, before.expand(2), rtol=1e-9, atol=0)


def test_svd_changes_no_state_in_place_and_forgets_the_scores_of_the_old_pairs() -> None:
    layout, state = state_of(4)
    kept = {name: tensor.clone() for name, tensor in state.groups[0].weights.items()}
    cut = pruning.svd(state, layout, {"fc1": 2, "fc2": 2}, "layer")
    assert all(torch.equal(kept[name], tensor) for name, tensor in state.groups[0].weights.items())
    assert not any(scores.any() for scores in cut.groups[0].scores.values())
    assert all(scores.any() for scores in state.groups[0].scores.values())


@given(st.integers(0, 1000), st.integers(0, 4), st.integers(0, 4), st.sampled_from(pruning.ALLOCATIONS))
@settings(max_examples=25, deadline=None)
def test_pairs_that_stay_are_the_best_and_the_error_is_that_of_the_rest(
    seed: int, first: int, second: int, allocation: str
) -> None:
    layout, state = state_of(seed)
    budgets = {"fc1": first, "fc2": second}
    cut = pruning.by_score(state, layout, budgets, allocation)
    scores = state.groups[0].scores
    assert sum(map(len, cut.alive.values())) == first + second
    gone = {name: sorted(set(range(4)) - set(ids)) for name, ids in cut.alive.items()}
    for name in scores:
        others = [name] if allocation == "layer" else list(scores)
        best_gone = max((float(scores[other][i]) for other in others for i in gone[other]), default=-1.0)
        assert all(float(scores[name][i]) > best_gone for i in cut.alive[name])
    dense = [product(layout, state, name) for name in scores]
    left = [product(layout, cut, name) for name in scores]
    lost = sum(((a - b) ** 2).sum() for a, b in zip(dense, left, strict=True))
    assert cut.pruned == pytest.approx((lost / sum((a**2).sum() for a in dense)) ** 0.5, abs=1e-7)
    assert cut.groups is state.groups


def test_of_several_groups_the_mean_score_decides() -> None:
    layout, state = state_of(5)
    one, two = ([1.0, 0.0, 0.9, 0.0], [0.0, 0.8, 0.9, 0.0])
    groups = {
        gid: type(state.groups[0])(
            state.groups[0].weights, {n: torch.tensor(values, dtype=torch.float64) for n in layout.layers}
        )
        for gid, values in ((1, one), (2, two))
    }
    cut = pruning.by_score(
        ServerState(1, {0: state.groups[0], **groups}, state.alive), layout, {"fc1": 2, "fc2": 2}, "layer"
    )
    assert set(cut.alive.values()) == {(0, 2)}


def test_across_layers_what_counts_is_the_product_with_its_scale() -> None:
    """The best error is that of the smallest scaled singular values; a user's own layers may differ in scale."""
    layout, state = state_of(3)
    small = dataclasses.replace(layout.layers["fc1"], scale=0.01)
    scaled = dataclasses.replace(layout, layers={**layout.layers, "fc1": small})
    values = np.concatenate([
        scaled.layers[name].scale / 2.0 * np.linalg.svd(product(layout, state, name), compute_uv=False)[:4]
        for name in scaled.layers
    ])  # fmt: skip
    lost = np.sqrt((np.sort(values)[:4] ** 2).sum() / (values**2).sum())
    assert pruning.svd(state, scaled, {"fc1": 2, "fc2": 2}, "global").pruned == pytest.approx(lost, rel=1e-6)


def test_an_svd_leaves_nothing_that_was_kept_of_the_old_factors() -> None:
    layout, state = state_of(4)
    group = dataclasses.replace(state.groups[0], slots={"delta_mean": dict(state.groups[0].weights)})
    cut = pruning.svd(dataclasses.replace(state, groups={0: group}), layout, {"fc1": 2, "fc2": 2}, "layer")
    assert not cut.groups[0].slots


def test_groups_that_no_job_is_in_do_not_vote() -> None:
    layout, state = state_of(5)
    ours, theirs = (dataclasses.replace(state.groups[0], scores={name: torch.tensor(values, dtype=torch.float64)
                    for name in layout.layers}) for values in ([9.0, 1, 1, 1], [0.0, 0, 0, 99]))  # fmt: skip
    both = dataclasses.replace(state, groups={0: state.groups[0], 1: ours, 2: theirs}, assignment={(0, 0): 1})
    cut = pruning.by_score(both, layout, {"fc1": 1, "fc2": 1}, "layer")
    assert cut.alive == {"fc1": (0,), "fc2": (0,)}
