"""Transfer between related clusters, against NumPy."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import planned
import pytest
import torch
from forked import forked
from hypothesis import given, settings
from hypothesis import strategies as st
from made import random_weights, update_of, view_of
from methods import clients_of
from torch import Tensor
from toys import assert_same, toy_clients, toy_federator, weights_of

from flt.algorithm.grouping.kmeans import KMeansGrouping
from flt.algorithm.recipe import Recipe
from flt.algorithm.rule.mean import Mean
from flt.algorithm.transfer import CosineTransfer, LearnedTransfer, NoTransfer, mix
from flt.algorithm.view import View
from flt.core.errors import InputError
from flt.engines.distributed import DistributedEngine
from flt.engines.process_group import ProcessGroup
from flt.protocol.messages import Update, encode
from flt.run import workload
from flt.run.assembly import assemble
from flt.server.client_state_store import ClientStateStore

LORA = ["x.A", "x.B", "y.A", "y.B"]


def members(view: View, gids: set[int], seed: int) -> dict[int, list[Update]]:
    """Up to three jobs for each group, which come from groups drawn at random, of different sizes."""
    drawn = np.random.default_rng(seed)
    return {
        gid: [
            update_of(view, (10 * gid + i, 0), examples=int(drawn.integers(1, 50))) for i in range(drawn.integers(1, 4))
        ]
        for gid in sorted(gids)
    }


def flat(weights: Mapping[str, Tensor]) -> np.ndarray:
    return np.concatenate([weights[name].numpy().astype(np.float64).ravel() for name in LORA])


def by_hand(
    view: View, its: dict[int, list[Update]], new: dict[int, dict[str, Tensor]], weight: float, threshold: float
) -> dict[int, np.ndarray]:
    """Cluster -> its LoRA weights, one after another, pair of clusters by pair."""
    sent = {gid: [flat(view.state.groups[view.state.assignment[u.job]].weights) for u in its[gid]] for gid in new}
    start = {gid: np.average(sent[gid], axis=0, weights=[u.examples for u in its[gid]]) for gid in new}
    d = {gid: flat(new[gid]) - start[gid] for gid in new}
    moved = {}
    for n in new:
        total, share = np.zeros_like(d[n]), 0.0
        for m in new:
            cosine = d[n] @ d[m] / np.sqrt((d[n] @ d[n]) * (d[m] @ d[m]))
            if m != n and cosine > threshold:
                total, share = total + cosine * d[m], share + cosine
        moved[n] = start[n] + ((1 - weight) * d[n] + weight * total / share if share else d[n])
    return moved


def updated(view: View, gids: list[int], related: float) -> dict[int, dict[str, Tensor]]:
    """New weights; ``related`` is how much of their changes the groups share."""
    shared = random_weights(view.layout, 1)
    new = {}
    for gid in gids:
        own, start = random_weights(view.layout, 50 + gid), view.group(gid).weights
        new[gid] = {name: start[name] + 0.1 * (related * shared[name] + own[name]) for name in start}
    return new


@settings(max_examples=15)
@given(
    gids=st.sets(st.integers(1, 6), min_size=2, max_size=5),
    weight=st.floats(0.05, 1.0),
    threshold=st.sampled_from([0.0, 0.2, 0.9]),
    related=st.sampled_from([0.0, 0.5, 2.0]),
)
def test_updates_are_mixed_as_the_formula_says(gids: set[int], weight: float, threshold: float, related: float) -> None:
    """Groups 1 to 3 are known, the others new; all members come from any of them or from home."""
    jobs = {(10 * gid + i, 0): (gid + 2 * i) % 4 for gid in gids for i in range(3)}
    view = view_of(groups=(0, 1, 2, 3), assignment=jobs)
    its = members(view, gids, seed=len(gids))
    begun = view.with_group_starts(its, lambda update: update.examples)
    new = updated(begun, sorted(gids), related)
    found, expected = CosineTransfer(weight, threshold)(begun, new), by_hand(view, its, new, weight, threshold)
    for gid in gids:
        np.testing.assert_allclose(flat(found[gid]), expected[gid], atol=1e-5)


def test_heads_belong_to_their_tasks() -> None:
    view = view_of(groups=(0, 1, 2))
    new = updated(view, [1, 2], related=2.0)
    found = CosineTransfer(0.5)(view, new)
    assert all(torch.equal(found[gid]["head"], new[gid]["head"]) for gid in (1, 2))
    assert all(not torch.equal(found[gid]["x.A"], new[gid]["x.A"]) for gid in (1, 2))


@pytest.mark.parametrize("transfer", [NoTransfer(), CosineTransfer(0.0), CosineTransfer(0.5, threshold=0.99)], ids=str)
def test_what_mixes_nothing_leaves_every_bit(transfer: NoTransfer | CosineTransfer) -> None:
    view = view_of(groups=(0, 1, 2))
    new = updated(view, [1, 2], related=0.0)
    for gid, weights in transfer(view, new).items():
        assert_same(weights, new[gid])


def test_an_only_cluster_and_a_cluster_that_did_not_move_take_over_nothing() -> None:
    view = view_of(groups=(0, 1, 2))
    new = updated(view, [1, 2], related=2.0)
    assert_same(CosineTransfer(1.0)(view, {1: new[1]})[1], new[1])
    still = {**new, 2: view.group(2).weights}
    assert_same(CosineTransfer(1.0)(view, still)[1], new[1])


def test_opposite_updates_are_not_mixed() -> None:
    assert mix(np.array([[1.0, 0.1], [-1.0, 0.0]]), 1.0, 0.0) == [None, None]


@pytest.mark.parametrize(
    ("weight", "threshold", "named"), [(-0.1, 0.0, "weight"), (1.1, 0.0, "weight"), (0.5, 1.0, "threshold")]
)
def test_numbers_without_meaning_are_refused(weight: float, threshold: float, named: str) -> None:
    with pytest.raises(InputError, match=f"^transfer.{named}="):
        CosineTransfer(weight, threshold)


def test_in_a_federation_weight_zero_is_fl_tac_to_the_bit_and_another_is_not() -> None:
    found = {}
    for weight in (None, 0.0, 0.5):
        transfer = NoTransfer() if weight is None else CosineTransfer(weight)
        recipe = Recipe(Mean("uniform"), grouping=KMeansGrouping(2), transfer=transfer)
        federator = toy_federator(recipe, clients_of(3, jobs=2), rounds=2)
        federator.fit()
        found[weight] = [weights_of(federator, gid) for gid in (0, 1, 2)]
    for ours, theirs in zip(found[0.0], found[None], strict=True):
        assert_same(ours, theirs)
    assert not torch.equal(found[0.5][1]["fc1.lora_B.default.weight"], found[None][1]["fc1.lora_B.default.weight"])
    assert_same(found[0.5][0], found[None][0])  # home's v0


class Distance:
    """A loss that is the distance of a group's LoRA weights from a target of its own."""

    def __init__(self, targets: Mapping[int, np.ndarray]) -> None:
        self.targets, self.calls = targets, 0
        self.recorded: dict[int, tuple[dict[int, float], float]] = {}

    def loss(self, gid: int, weights: Mapping[str, Tensor], examples: int) -> float:
        self.calls += 1
        return float(np.linalg.norm(flat(weights) - self.targets[gid]))

    def record(self, gid: int, shares: Mapping[int, float], gain: float) -> None:
        self.recorded[gid] = (dict(shares), gain)


def test_the_learned_shares_are_those_of_a_search_by_hand() -> None:
    view = view_of(groups=(0, 1, 2, 3))
    new = updated(view, [1, 2, 3], related=1.0)
    start = {gid: flat(view.group(gid).weights) for gid in new}
    d = {gid: flat(new[gid]) - start[gid] for gid in new}
    targets = {1: start[1] + 0.5 * d[1] + 0.5 * d[2], 2: start[2] + d[2], 3: start[3] + d[1]}
    loss, transfer = Distance(targets), LearnedTransfer((0.25, 0.5), most=2)
    found = transfer(dataclasses.replace(view, held_out=loss), new)
    for gid in new:

        def cosine(other: int, own: np.ndarray = d[gid]) -> float:
            return float(own @ d[other] / np.linalg.norm(own) / np.linalg.norm(d[other]))

        change = d[gid]
        for other in sorted(set(new) - {gid}, key=cosine, reverse=True):
            tried = [(1 - share) * change + share * d[other] for share in (0, 0.25, 0.5)]
            change = min(tried, key=lambda each, gid=gid: float(np.linalg.norm(start[gid] + each - targets[gid])))  # type: ignore[misc]  # a lambda with a default
        np.testing.assert_allclose(flat(found[gid]), start[gid] + change, atol=1e-5)
        assert torch.equal(found[gid]["head"], new[gid]["head"])
    assert loss.calls == 3 * (1 + 2 * 2)
    assert loss.recorded[1][0][2] == 0.5
    assert loss.recorded[2] == ({}, 0.0)  # its own change is best: every bit stays
    assert_same(found[2], new[2])
    assert all(gain >= 0 for _, gain in loss.recorded.values())


def test_learned_shares_need_something_to_choose_by() -> None:
    view = view_of(groups=(0, 1, 2))
    new = updated(view, [1, 2], related=2.0)
    for gid, weights in LearnedTransfer()(view, new).items():
        assert_same(weights, new[gid])


@pytest.mark.parametrize(
    ("given", "named"), [({"shares": ()}, "shares"), ({"shares": (0.0,)}, "shares"), ({"shares": (1.1,)}, "shares"),
                         ({"most": 0}, "most"), ({"examples": 0}, "examples")],
)  # fmt: skip
def test_learned_settings_without_meaning_are_refused(given: dict, named: str) -> None:
    with pytest.raises(InputError, match=f"^transfer.{named}="):
        LearnedTransfer(**given)


def test_the_loss_is_the_mean_over_the_held_out_examples_of_the_groups_jobs() -> None:
    """And in a federation no cluster's loss on them rises by the transfer."""
    recipe = Recipe(Mean("uniform"), grouping=KMeansGrouping(2), transfer=LearnedTransfer(examples=8))
    federator = toy_federator(recipe, toy_clients(3, jobs=2), rounds=1)
    federator.fit()
    held_out = federator.server.held_out
    assert held_out is not None
    assert set(held_out.shares) == set(held_out.gains) == {1, 2}
    assert min(held_out.gains.values()) >= 0
    state = federator.state
    for gid in (1, 2):
        jobs = [job for job, at in state.assignment.items() if at == gid]
        losses = []
        for client, index in jobs:
            sample = federator.clients[client].data[index].validation_set(-(-8 // len(jobs)))
            metrics = federator.engine.local_trainer.evaluate_group(state, gid, sample)
            losses += [metrics["val_loss"]] * len(sample)
        assert held_out.loss(gid, state.groups[gid].weights, 8) == pytest.approx(np.mean(losses), abs=1e-6)


def learned(processes: ProcessGroup, folder: Path) -> tuple[bytes, list[dict[int, Any]]]:
    recipe = Recipe(Mean("uniform"), grouping=KMeansGrouping(3), transfer=LearnedTransfer((0.25, 0.5), examples=8))
    federator = toy_federator(recipe, toy_clients(4, jobs=2), rounds=2, lr=0.05)
    if processes.size > 1:
        folder.mkdir(exist_ok=True)
        federator.client_states = ClientStateStore(folder)
        federator.engine = DistributedEngine(federator.engine, processes)
    federator.fit()
    assert federator.server.held_out is not None
    return encode(federator.state), [dict(federator.server.held_out.shares), federator.server.held_out.gains]


def test_two_processes_choose_what_one_chooses(tmp_path: Path) -> None:
    expected = learned(ProcessGroup(), tmp_path)
    assert any(expected[1][0].values())
    assert forked(functools.partial(learned, folder=tmp_path / "2"), 2, tmp_path) == [expected] * 2


def test_clusters_that_hold_out_nothing_keep_their_changes() -> None:
    found = []
    for transfer in (NoTransfer(), LearnedTransfer()):
        recipe = Recipe(Mean("uniform"), grouping=KMeansGrouping(2), transfer=transfer)
        federator = toy_federator(recipe, clients_of(3, jobs=2), rounds=1)
        federator.fit()
        found.append(encode(federator.state))
    assert found[0] == found[1]


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["transfer=learned", "partition.held_out=0"], "transfer=learned: no client holds out examples"),
        (["grouping=bandit", "partition.held_out=0"], "grouping=bandit: no client holds out examples"),
        (["grouping=bandit", "eval.client_examples=0"], "eval.client_examples=0: .*grouping=bandit"),
    ],
)
def test_what_chooses_by_held_out_examples_is_refused_at_the_start_without_any(words: list[str], line: str) -> None:
    cfg = planned.settings("algo=fl_tac", "data=digits_two", "rounds=1", *words)
    with pytest.raises(InputError, match=f"^{line}"):
        assemble(cfg, workload.federation(cfg))
