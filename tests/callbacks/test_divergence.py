"""The divergence of clients, against cosines of all pairs that NumPy computes from what was sent and received."""

from __future__ import annotations

import dataclasses
import itertools

import numpy as np
import pytest
import torch
from toys import toy_clients, toy_federator, updates_of

from flt.algorithm.importance import GradientSensitivity
from flt.algorithm.plan import FullPlan
from flt.algorithm.recipe import Recipe
from flt.algorithm.rule.base import Totals
from flt.algorithm.rule.mean import Mean
from flt.algorithm.rule.robust import Median
from flt.algorithm.selection.freeze import Freeze
from flt.algorithm.selection.truncate import Truncate
from flt.callbacks.divergence import Divergence, include, metrics_of
from flt.core.errors import InputError
from flt.protocol.messages import Payload, Update
from flt.server.callback import FedCallback
from flt.server.federator import Federator


class Received(FedCallback):
    """Keeps the payloads of the last round."""

    def __init__(self) -> None:
        self.payloads: dict[tuple[int, int], Payload] = {}

    def on_job_start(self, federator: Federator, payload: Payload) -> None:
        base, initial = federator.state.base, federator.server.base
        whole = {name: base.value(name, initial) for name in initial}
        self.payloads[payload.job] = dataclasses.replace(payload, tensors={**whole, **payload.tensors})


def changes(federator: Federator, update: Update, payload: Payload, names: list[str]) -> np.ndarray:
    """By hand: a vector with zeros for the components that weren't sent."""
    found = []
    for name in names:
        entry = federator.server.layout.entries[name]
        sent = update.tensors[name].double().numpy()
        if entry.axis is None:
            found.append((sent - payload.tensors[name].double().numpy()).ravel())
            continue
        layer = next(layer for layer in payload.held if name.startswith(layer))
        start = np.moveaxis(payload.tensors[name].double().numpy(), entry.axis, 0)
        whole = np.zeros((entry.shape[entry.axis], *start.shape[1:]))
        for row, component in zip(np.moveaxis(sent, entry.axis, 0), update.kept[layer], strict=True):
            whole[component] = row - start[payload.held[layer].index(component)]
        found.append(whole.ravel())
    return np.concatenate(found)


def by_hand(federator: Federator, received: Received, names: list[str]) -> tuple[float, float]:
    vectors = [changes(federator, u, received.payloads[u.job], names) for u in updates_of(federator)]
    cosines = [a @ b / np.linalg.norm(a) / np.linalg.norm(b) for a, b in itertools.permutations(vectors, 2)]
    return 1 - float(np.mean(cosines)), float(np.mean([np.linalg.norm(vector) for vector in vectors]))


RECIPES = {
    "streams": Recipe(Mean()),
    "keeps whole updates": Recipe(Median()),
    "components differ": Recipe(Mean(), selection=Freeze("random"), importance=GradientSensitivity()),
    "received components differ": Recipe(Mean(), selection=Truncate("random"), importance=GradientSensitivity()),
    "the whole model": Recipe(Mean(), plan=FullPlan()),
}


@pytest.mark.parametrize("recipe", RECIPES.values(), ids=RECIPES)
def test_the_divergence_is_one_minus_the_mean_cosine_of_all_pairs(recipe: Recipe) -> None:
    received = Received()
    ranks = [2, 4, 3] if recipe.selection.__class__.__name__ != "All" else None
    federator = toy_federator(
        recipe, toy_clients(3, ranks=ranks), rounds=2, callbacks=[Divergence(), received], weight_decay=0.0
    )
    federator.fit()
    metrics, entries = federator.history[-1], federator.server.layout.entries
    names = sorted(updates_of(federator)[0].tensors)
    head = [name for name in names if entries[name].role == "head"]
    for part, of_part in (("", names), ("_head", head), ("_adapter", [name for name in names if name not in head])):
        divergence, drift = by_hand(federator, received, of_part)
        assert metrics[f"clients/divergence{part}"] == pytest.approx(divergence, abs=1e-9)
        if not part:
            assert metrics["clients/drift"] == pytest.approx(drift, rel=1e-9)
    assert 0 < metrics["clients/divergence"] < 1.5


def directions(vectors: list[list[float]]) -> dict[str, float]:
    """Metrics of clients whose head's bias changes by these vectors."""
    federator = toy_federator()
    view, totals = federator.server.view(federator.state), {}
    bias = federator.state.groups[0].weights["head.bias"]
    for client, vector in enumerate(vectors):
        moved = {"head.bias": bias.double() + torch.tensor(vector, dtype=torch.float64)}
        include(view, Update((client, 0), 0, moved, {}, 0, 1, 1), totals)
    return metrics_of(totals)


@pytest.mark.parametrize(
    ("vectors", "divergence"),
    [
        ([[1, 0, 0], [3, 0, 0]], 0.0),
        ([[1, 0, 0], [0, 2, 0], [0, 0, 5]], 1.0),
        ([[1, 1, 0], [-2, -2, 0]], 2.0),
        ([[1, 0, 0], [1, 0, 0], [-1, 0, 0]], 1 - (1 - 1 - 1) / 3),
        ([[1, 0, 0], [0, 0, 0], [0, 1, 0]], 1.0),
    ],
    ids=["the same direction", "orthogonal", "opposite", "one against two", "one that doesn't change"],
)
def test_known_directions_have_known_divergences(vectors: list[list[float]], divergence: float) -> None:
    found = directions(vectors)
    assert found["clients/divergence"] == pytest.approx(divergence, abs=1e-6)
    lengths = [np.linalg.norm(vector) for vector in vectors if any(vector)]
    assert found["clients/drift"] == pytest.approx(np.mean(lengths), rel=1e-6)
    assert set(found) == {"clients/divergence", "clients/drift"}


def test_a_single_change_has_no_divergence_and_no_change_has_no_metric() -> None:
    assert set(directions([[1, 2, 3]])) == {"clients/drift"}
    assert directions([[0, 0, 0]]) == {}


def test_neither_the_order_of_the_updates_nor_the_measuring_changes_a_bit() -> None:
    plain = toy_federator(rounds=2)
    plain.fit()
    measured = toy_federator(rounds=2, callbacks=[Divergence()])
    measured.fit()
    for name, tensor in plain.state.groups[0].weights.items():
        assert torch.equal(tensor, measured.state.groups[0].weights[name])
    view, updates = measured.server.view(measured.state), updates_of(measured)
    metrics = []
    for order in itertools.permutations(updates):
        totals: Totals = {}
        for update in order:
            include(view, update, totals)
        metrics.append(metrics_of(totals))
    assert all(found == metrics[0] for found in metrics)


def test_a_refused_update_does_not_count() -> None:
    federator = toy_federator(callbacks=[Divergence()])
    before = federator.state
    federator.fit()
    accumulator = federator.server.accumulator(before, federator.cohort, check_range=True)
    first, second, third = updates_of(federator)
    for update in (first, third):
        accumulator.add(update)
    broken = {name: torch.full_like(tensor, torch.nan) for name, tensor in second.tensors.items()}
    with pytest.raises(InputError):
        accumulator.add(dataclasses.replace(second, tensors=broken))
    _, sums = accumulator.compute()
    assert sums is not None
    assert sums.totals["divergence", ""].count == 2
    totals: Totals = {}
    for update in (first, third):
        include(federator.server.view(before), update, totals)
    assert metrics_of(sums.totals) == metrics_of(totals)
