"""Pruning: which pairs go when the rank budget falls. Pairs never move; only the set of the living ones changes."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import torch
from torch import Tensor

from flt.algorithm.low_rank import factors
from flt.protocol.layout import Layer, Layout
from flt.protocol.messages import Ids
from flt.protocol.state import ServerState

ALLOCATIONS = ("layer", "global")
ComponentIds = Mapping[str, Ids]


def by_score(state: ServerState, layout: Layout, budgets: Mapping[str, int], allocation: str) -> ServerState:
    """Keeps the pairs of the highest importance; of several groups, by the mean of their scores.

    Our reconstruction of SA-FedLoRA's pruning (arXiv 2405.09394v1).
    Groups that no job is in any more don't count.

    Args:
        state: The state after a round.
        layout: Names of the layers' tensors.
        budgets: Layer -> pairs that it may have; with ``global`` allocation their sum counts.
        allocation: ``layer`` or ``global``.
    """
    scores = {
        name: torch.stack([state.groups[gid].scores[name] for gid in served(state)]).mean(0)[list(ids)]
        for name, ids in state.active.items()
    }
    places = top(scores, budgets, allocation)
    kept = {name: tuple(state.active[name][i] for i in at) for name, at in places.items()}
    cut = dataclasses.replace(state, alive=kept)
    return dataclasses.replace(cut, pruned=error(layout, state, cut))


def svd(state: ServerState, layout: Layout, budgets: Mapping[str, int], allocation: str) -> ServerState:
    """Replaces each product B A by its best approximation of lower rank, of one group (our reconstruction).

    The factors come from the QR decompositions of B and A^T and the SVD of a small core (r, r): the dense matrix is
    never formed. They lie in the first living pairs, whose scores begin anew, and so does what rule and importance keep
    of the factors. A layer keeps no more pairs than its product has singular values.

    Args:
        state: The state after a round, with one group.
        layout: Names of the layers' tensors.
        budgets: Layer -> pairs that it may have; with ``global`` allocation their sum counts.
        allocation: ``layer`` or ``global``.
    """
    (gid,) = state.groups
    weights, scores = dict(state.groups[gid].weights), dict(state.groups[gid].scores)
    parts = {
        name: factors(*active_factors(layer, weights, state.active[name])) for name, layer in layout.layers.items()
    }
    sizes = {name: layout.layers[name].scale * values for name, (_, values, _) in parts.items()}
    places = top(sizes, budgets, allocation)
    kept = {name: state.active[name][: len(at)] for name, at in places.items()}
    for name, layer in layout.layers.items():
        left, _, right = parts[name]
        components, count = {name: kept[name]}, len(kept[name])
        weights[layer.b] = layout.put(layer.b, weights[layer.b], components, left[:, :count])
        weights[layer.a] = layout.put(layer.a, weights[layer.a], components, right[:count])
        scores[name] = torch.zeros_like(scores[name])
    group = dataclasses.replace(state.groups[gid], weights=weights, scores=scores, slots={})
    cut = dataclasses.replace(state, alive=kept, groups={gid: group})
    return dataclasses.replace(cut, pruned=error(layout, state, cut))


def grow(state: ServerState, budgets: Mapping[str, int]) -> ServerState:
    """Brings each layer to its budget of living pairs, the lowest ids first: what is added has its initial B = 0."""
    return dataclasses.replace(state, alive={name: tuple(range(budgets[name])) for name in state.active})


def served(state: ServerState) -> list[int]:
    """The groups that jobs are in, ascending; before any job has been, all that were trained."""
    return sorted(set(state.assignment.values()) & set(state.clusters)) or state.clusters


def top(scores: Mapping[str, Tensor], budgets: Mapping[str, int], allocation: str) -> dict[str, list[int]]:
    """Layer -> places of its best scores, ascending; of equal ones, those of the first layer and place.

    Args:
        scores: Layer -> (pairs,).
        budgets: Layer -> places to keep; with ``global`` allocation their sum counts.
        allocation: ``layer`` or ``global``.

    Example:
        >>> scores = {"x": torch.tensor([1.0, 5.0]), "y": torch.tensor([3.0, 4.0])}
        >>> top(scores, {"x": 1, "y": 1}, "layer"), top(scores, {"x": 1, "y": 1}, "global")
        ({'x': [1], 'y': [1]}, {'x': [1], 'y': [1]})
        >>> top(scores, {"x": 2, "y": 1}, "global")
        {'x': [1], 'y': [0, 1]}
    """
    if allocation == "layer":
        return {name: _best(values, budgets[name]) for name, values in scores.items()}
    owners = [(name, i) for name, values in scores.items() for i in range(len(values))]
    kept = {owners[at] for at in _best(torch.cat(list(scores.values())), sum(budgets.values()))}
    return {name: [i for i in range(len(values)) if (name, i) in kept] for name, values in scores.items()}


def _best(values: Tensor, count: int) -> list[int]:
    return sorted(torch.sort(values, descending=True, stable=True).indices[:count].tolist())


def active_factors(layer: Layer, weights: Mapping[str, Tensor], ids: Ids) -> tuple[Tensor, Tensor]:
    """A layer's living factors B (out, n) and A (n, in), float64."""
    at = list(ids)
    return weights[layer.b].double()[:, at], weights[layer.a].double()[at]


def error(layout: Layout, before: ServerState, after: ServerState) -> float:
    """|P - P'| / |P| over all layers, P = s B A of the living pairs, in Frobenius norm; the served groups' mean."""
    gids = served(before)
    return sum(_error(layout, before, after, gid) for gid in gids) / len(gids)


def _error(layout: Layout, before: ServerState, after: ServerState, gid: int) -> float:
    whole, lost = 0.0, 0.0
    for name, layer in layout.layers.items():
        b, a = active_factors(layer, before.groups[gid].weights, before.active[name])
        cut_b, cut_a = active_factors(layer, after.groups[gid].weights, after.active[name])
        whole += layer.scale**2 * _square(b, a)
        lost += layer.scale**2 * _square(torch.cat([b, -cut_b], 1), torch.cat([a, cut_a]))
    return (lost / whole) ** 0.5 if whole else 0.0


def _square(b: Tensor, a: Tensor) -> float:
    """|B A|^2 in Frobenius norm from two small matrices: tr((B^T B) (A A^T))."""
    return max(0.0, float(((b.T @ b) * (a @ a.T)).sum()))
