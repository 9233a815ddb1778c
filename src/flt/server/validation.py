"""The server's own check of what arrives: an update is used whole, or not at all."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence

import torch
from torch import Tensor

from flt.core.errors import InputError
from flt.protocol.job import Job
from flt.protocol.layout import Layout
from flt.protocol.messages import Ids, JobId, Update
from flt.protocol.state import ClientState

FINITE = "finite numbers; lower local.lr"


def validate(
    updates: Sequence[Update],
    layout: Layout,
    active: Mapping[str, Ids],
    roles: Collection[str],
    cohort: Sequence[Job],
    round: int,
) -> list[Update]:
    """The updates of a round, sorted by job, every one of them fit to be aggregated.

    Args:
        updates: What arrived, in any order.
        layout: Names and roles of the server's tensors.
        active: Layer -> active components.
        roles: Of the tensors that were asked for.
        cohort: The jobs that were asked.
        round: Rounds finished before this one.

    Raises:
        InputError: An update isn't what was asked for, has the wrong shapes, or holds a number that isn't finite.
    """
    ordered = sorted(updates, key=lambda update: update.job)
    layouts = {job.id: layout.for_head(job.head) for job in cohort}
    for number, update in enumerate(ordered):
        who = f"update of client {update.job[0]}, job {update.job[1]}"
        if update.job not in layouts:
            raise InputError.of(who, "?", "a job of the round's cohort")
        if number and ordered[number - 1].job == update.job:
            raise InputError.of(who, "twice", "one update of each job")
        _check_counts(who, update, round)
        _check_components(who, update, active)
        _check_tensors(who, update, layouts[update.job], roles)
    return ordered


def check_client_state(job: JobId, state: ClientState) -> None:
    """Whether what stays on a client can be gone on with.

    Raises:
        InputError: It holds a number that isn't finite.
    """
    for tensors in (state.tensors, *state.slots.values()):
        for name, tensor in tensors.items():
            bad = int((~torch.isfinite(tensor)).sum()) if tensor.is_floating_point() else 0
            if bad:
                who = f"private state of client {job[0]}, job {job[1]}: {name}"
                raise InputError.of(who, f"{bad} of {tensor.numel()} not finite", FINITE)


def _check_counts(who: str, update: Update, round: int) -> None:
    if update.round != round:
        raise InputError.of(f"{who}: round", update.round, str(round), "it belongs to another round")
    for key in ("examples", "steps"):
        if getattr(update, key) < 1:
            raise InputError.of(f"{who}: {key}", getattr(update, key), "an integer >= 1")
    for key, value in update.scalars.items():
        if not math.isfinite(value):
            raise InputError.of(f"{who}: {key}", value, FINITE)


def _check_components(who: str, update: Update, active: Mapping[str, Ids]) -> None:
    if sorted(update.kept) != sorted(active):
        raise InputError.of(f"{who}: layers", sorted(update.kept), sorted(active))
    for layer, ids in update.kept.items():
        _check_ids(f"{who}: components of {layer}", ids, active[layer])
    for layer, (ids, values) in update.scores.items():
        _check_ids(f"{who}: scores of {layer}", ids, active.get(layer, ()))
        if tuple(values.shape) != (len(ids),):
            raise InputError.of(f"{who}: scores of {layer}", tuple(values.shape), str((len(ids),)))
        if not bool(torch.isfinite(values).all()):
            raise InputError.of(f"{who}: scores of {layer}", values.tolist(), FINITE)


def _check_ids(what: str, ids: Ids, allowed: Collection[int]) -> None:
    if list(ids) != sorted(set(ids)) or not set(ids) <= set(allowed):
        raise InputError.of(what, ids, f"ascending ids out of {tuple(allowed)}")


def _check_tensors(who: str, update: Update, layout: Layout, roles: Collection[str]) -> None:
    names = layout.names(roles)
    if sorted(update.tensors) != names:
        raise InputError.of(who, sorted(update.tensors), names, "other tensors than were asked for")
    for name, tensor in update.tensors.items():
        _check_tensor(f"{who}: {name}", tensor, layout.shape(name, update.kept))


def _check_tensor(what: str, tensor: Tensor, shape: tuple[int, ...]) -> None:
    if tuple(tensor.shape) != shape:
        raise InputError.of(what, tuple(tensor.shape), str(shape))
    bad = int((~torch.isfinite(tensor)).sum())
    if bad:
        raise InputError.of(what, f"{bad} of {tensor.numel()} not finite", FINITE)
