"""Pruning of rank-1 components when the rank budget falls.

A removed component stays in the tensors under its id. Only its id is removed from the set of active components.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import torch
from torch import Tensor

from flt.algorithm.low_rank import factors, squared_product_norm
from flt.protocol.entries import Layer
from flt.protocol.layout import Layout
from flt.protocol.messages import Ids
from flt.protocol.state import ServerState

ALLOCATIONS = ("layer", "global")


def by_score(state: ServerState, layout: Layout, budgets: Mapping[str, int], allocation: str) -> ServerState:
    """Keeps the components with the highest importance. If there are several groups, their scores are averaged.

    This is our reconstruction of SA-FedLoRA's pruning (arXiv 2405.09394v1). Groups without jobs are ignored.

    Args:
        state: The state after a round.
        layout: Names of the layers' tensors.
        budgets: Number of components to keep, by layer. With ``global`` allocation, only the sum over layers matters.
        allocation: ``layer``: the best components of each layer stay. ``global``: the best of all layers stay.
    """
    scores = {
        name: torch.stack([state.groups[gid].scores[name] for gid in groups_with_jobs(state)]).mean(0)[list(ids)]
        for name, ids in state.active.items()
    }
    places = top(scores, budgets, allocation)
    kept = {name: tuple(state.active[name][i] for i in at) for name, at in places.items()}
    cut = dataclasses.replace(state, alive=kept)
    return dataclasses.replace(cut, pruned=relative_error(layout, state, cut))


def svd(state: ServerState, layout: Layout, budgets: Mapping[str, int], allocation: str) -> ServerState:
    """Replaces each product B A by its best approximation of lower rank (our reconstruction).

    The dense product (out, in) is never formed: the new factors come from the QR decompositions of B and A^T and the
    SVD of an (r, r) matrix. The new factors are written into the first active components. The group's scores are reset
    to zero and its slots are cleared, since scores and slots described the old factors. A layer keeps at most as many
    components as its product has singular values.

    Args:
        state: The state after a round, with exactly one group.
        layout: Names of the layers' tensors.
        budgets: Number of components to keep, by layer. With ``global`` allocation, only the sum over layers matters.
        allocation: ``layer``: the best components of each layer stay. ``global``: the best of all layers stay.
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
    return dataclasses.replace(cut, pruned=relative_error(layout, state, cut))


def grow(state: ServerState, budgets: Mapping[str, int]) -> ServerState:
    """Activates as many components of each layer as its budget allows, lowest ids first. New ones have B = 0."""
    return dataclasses.replace(state, alive={name: tuple(range(budgets[name])) for name in state.active})


def groups_with_jobs(state: ServerState) -> list[int]:
    """Returns the ids of the groups that have jobs, ascending. If no group has jobs, returns all trained groups."""
    return sorted(set(state.assignment.values()) & set(state.clusters)) or state.clusters


def top(scores: Mapping[str, Tensor], budgets: Mapping[str, int], allocation: str) -> dict[str, list[int]]:
    """Returns the positions of the highest scores of each layer, ascending. Ties go to the first position.

    Args:
        scores: Scores (components,) by layer.
        budgets: Number of positions to return, by layer. With ``global`` allocation, only the sum over layers matters.
        allocation: ``layer``: the highest scores of each layer. ``global``: the highest scores of all layers together.
            Ties between layers go to the first layer.

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
    """Returns B (out, n) and A (n, in), reduced to the components ``ids`` of a layer, as float64."""
    at = list(ids)
    return weights[layer.b].double()[:, at], weights[layer.a].double()[at]


def relative_error(layout: Layout, before: ServerState, after: ServerState) -> float:
    """Returns the relative error |P - P'| / |P| of a cut, in Frobenius norm over all layers.

    P = s B A is the product of the active components before the cut, and P' is the product after the cut. The result is
    the mean over the groups with jobs.
    """
    gids = groups_with_jobs(before)
    return sum(_relative_error(layout, before, after, gid) for gid in gids) / len(gids)


def _relative_error(layout: Layout, before: ServerState, after: ServerState, gid: int) -> float:
    whole, lost = 0.0, 0.0
    for name, layer in layout.layers.items():
        b, a = active_factors(layer, before.groups[gid].weights, before.active[name])
        cut_b, cut_a = active_factors(layer, after.groups[gid].weights, after.active[name])
        whole += layer.scale**2 * float(squared_product_norm(b, a))
        lost += layer.scale**2 * float(squared_product_norm(torch.cat([b, -cut_b], 1), torch.cat([a, cut_a])))
    return (lost / whole) ** 0.5 if whole else 0.0
