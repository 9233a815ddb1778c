"""Sets over all layers at once: the top, the deal and the draw, against NumPy; and layers that get no pair."""

from __future__ import annotations

import dataclasses
import itertools
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from made import jobs_of, layout_of, view_of
from toys import toy_clients, toy_federator, updates_of

from flt.algorithm.importance import GradientSensitivity
from flt.algorithm.recipe import Recipe
from flt.algorithm.rule.mean import Mean
from flt.algorithm.selection.freeze import Freeze
from flt.algorithm.selection.truncate import Truncate
from flt.algorithm.view import View
from flt.core.errors import InputError
from flt.export.metadata import Card
from flt.export.write import export
from flt.protocol.entries import Layer
from flt.protocol.job import Job
from flt.protocol.state import ClientState

Kept = dict[str, tuple[int, ...]]
frugal = settings(max_examples=30, deadline=None)


def many(layers: int, rank: int, seed: int, scores: np.ndarray | None = None, alive: Kept | None = None) -> View:
    """So many layers of one rank; nothing reads their tensors."""
    layout = dataclasses.replace(
        layout_of(rank), layers={f"l{i}": Layer(rank, 1.0, "", "x.A", "x.B") for i in range(layers)}
    )
    known = None if scores is None else {f"l{i}": row.tolist() for i, row in enumerate(scores)}
    return view_of(layout, scores=known, seed=seed, alive=alive)


def pairs(kept: Kept) -> set[tuple[str, int]]:
    return {(layer, pair) for layer, ids in kept.items() for pair in ids}


@frugal
@given(st.integers(1, 5), st.integers(1, 6), st.integers(1, 7), st.integers(0, 99))
def test_a_job_gets_the_highest_scores_wherever_they_are(layers: int, rank: int, of: int, seed: int) -> None:
    scores = np.random.default_rng(seed).random((layers, rank))
    job = Job(0, 0, of)
    _, kept = Freeze(scope="global")(many(layers, rank, seed, scores), job, [job])
    best = np.argsort(-scores.ravel())[: of * layers]
    assert pairs(kept) == {(f"l{i // rank}", int(i % rank)) for i in best}
    assert list(kept) == [f"l{i}" for i in range(layers)]
    assert all(ids == tuple(sorted(ids)) for ids in kept.values())


def test_dead_pairs_are_left_out_and_their_place_is_used_elsewhere() -> None:
    scores = np.array([[9.0, 8.0, 7.0], [1.0, 2.0, 3.0]])
    view = many(2, 3, 0, scores, {"l0": (2,), "l1": (0, 1, 2)})
    kept = [Truncate(scope="global")(view, Job(0, 0, rank), [])[0] for rank in (1, 2)]
    assert kept == [{"l0": (2,), "l1": (2,)}, {"l0": (2,), "l1": (0, 1, 2)}]


@frugal
@given(st.integers(1, 4), st.integers(1, 5), st.lists(st.integers(1, 6), min_size=1, max_size=6), st.integers(0, 99))
def test_while_all_tie_the_cohort_covers_as_many_pairs_as_its_ranks_allow(
    layers: int, rank: int, ranks: list[int], seed: int
) -> None:
    jobs, every = jobs_of(*ranks), layers * rank
    for part in (Freeze(scope="global"), Truncate("random", scope="global")):
        hands = [pairs(part(many(layers, rank, seed), job, jobs[::-1])[1]) for job in jobs]
        assert [len(hand) for hand in hands] == [min(layers * of, every) for of in ranks]
        assert len(set().union(*hands)) == min(layers * sum(ranks), every)


def test_one_pair_that_stands_out_in_one_layer_ends_the_tie_of_all() -> None:
    scores = np.zeros((2, 4))
    scores[1, 3] = 1.0
    for client in range(3):
        assert pairs(Freeze(scope="global")(many(2, 4, 0, scores), Job(client, 0, 1), [])[1]) == {("l1", 3), ("l0", 0)}


def test_pairs_are_dealt_over_the_layers_and_not_layer_by_layer() -> None:
    counts = [len(Freeze(scope="global")(many(4, 4, seed), Job(0, 0, 1), [])[1]["l0"]) for seed in range(400)]
    assert {0, 1, 2} <= set(counts)
    assert abs(np.mean(counts) - 1) < 5 * np.std(counts) / 20


@pytest.mark.parametrize(("rank", "explore"), [(1, 0.25), (2, 0.5)])
def test_exploring_draws_its_share_from_all_layers(rank: int, explore: float) -> None:
    scores = np.random.default_rng(0).random((3, 4))
    best = {(f"l{i // 4}", int(i % 4)) for i in np.argsort(-scores.ravel())[: rank * 3]}
    part = Freeze(explore=explore, scope="global")
    found = [pairs(part(many(3, 4, seed, scores), Job(1, 0, rank), [])[1]) for seed in range(500)]
    assert {len(kept) for kept in found} == {rank * 3}
    drawn = [pair for kept in found for pair in kept - best]
    assert abs(len(drawn) / 500 - explore * rank * 3) < 5 * 0.5 / np.sqrt(500)
    assert set(drawn) == set(itertools.product(("l0", "l1", "l2"), range(4))) - best


def test_the_first_pairs_of_all_layers_are_refused() -> None:
    with pytest.raises(InputError, match="^selection.scope=global: ids have no order over layers; allowed is layer"):
        Truncate("first", scope="global")
    with pytest.raises(InputError, match="^selection.scope=all: allowed is layer, global$"):
        Truncate(scope="all")


# ---------------------------------------------------------------------------------------------- layers without pairs


class Lopsided(Freeze):
    """All of a job's pairs are in one layer."""

    def __call__(self, view: View, job: Job, cohort: object) -> tuple[Kept, Kept]:
        kept: Kept = {"fc1": (1, 3), "fc2": ()}
        return (kept, kept) if self.by == "first" else (dict(view.state.alive), kept)


@pytest.mark.parametrize("by", ["score", "first"], ids=["freeze", "truncate"])
def test_a_layer_without_pairs_goes_through_a_whole_run(by: str, tmp_path: Path) -> None:
    recipe = Recipe(Mean(), selection=Lopsided(by), importance=GradientSensitivity())
    federator = toy_federator(recipe, toy_clients(2), rounds=2, clip=0.5)
    before = {name: tensor.clone() for name, tensor in federator.state.groups[0].weights.items()}
    federator.fit()
    for update in updates_of(federator):
        assert update.tensors["fc2.lora_A.default.weight"].shape == (0, 8)
        assert update.tensors["fc2.lora_B.default.weight"].shape == (10, 0)
        assert update.scores["fc2"][0] == (() if by == "first" else (0, 1, 2, 3))
        assert "fitted/val_loss" in update.metrics
    group = federator.state.groups[0]
    assert bool((group.scores["fc1"][[1, 3]] > 0).all())
    for name in ("fc1.lora_B.default.weight", "fc2.lora_B.default.weight", "fc2.lora_A.default.weight"):
        moved = (group.weights[name] - before[name]).abs().sum(dim=1 if "_A" in name else 0)
        assert moved.nonzero().ravel().tolist() == ([1, 3] if "fc1" in name else [])
    assert export(
        federator.engine.local_trainer.module, federator.server.layout, federator.state, tmp_path, Card()
    ).is_dir()


def test_without_pairs_a_layer_computes_as_its_base() -> None:
    federator = toy_federator(Recipe(Mean(), selection=Lopsided("first")), toy_clients(2))
    payload = federator.server.broadcast(federator.state, Job(0, 0, 4), [Job(0, 0, 4)])
    local_trainer = federator.engine.local_trainer
    local_trainer.install(payload, ClientState())
    x = torch.randn(3, 8)
    fc2 = local_trainer.module.fc2
    assert torch.equal(fc2(x), fc2.base_layer(x))
