"""Validation of updates by the server. If any part of an update is invalid, the whole update is refused."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping

import torch
from torch import Tensor

from flt.core.errors import InputError, diverged
from flt.protocol.layout import Layout
from flt.protocol.messages import Ids, JobId, Plan, Update
from flt.protocol.state import ClientState

FINITE = "finite numbers"


def validate(update: Update, layout: Layout, active: Mapping[str, Ids], plan: Plan, round: int) -> None:
    """Checks that an update can be aggregated.

    Args:
        update: The update, with the tensor names of the client's module.
        layout: Names and roles of the tensors in the client's module.
        active: Layer -> ids of the active components.
        plan: Plan of the round, which says which tensors the update has to contain.
        round: Number of rounds finished before this one.

    Raises:
        InputError: The update belongs to another round, contains other tensors or components than it should, has
            tensors of wrong shapes, or contains a number that isn't finite.
    """
    who = f"update of client {update.job[0]}, job {update.job[1]}"
    _check_counts(who, update, round)
    _check_components(who, update, active)
    _check_tensors(who, update, layout, plan)


def check_client_state(job: JobId, state: ClientState) -> None:
    """Checks that the client state of a job can be used in the job's next fit.

    Raises:
        InputError: The state contains a number that isn't finite.
    """
    for tensors in (state.tensors, *state.slots.values(), state.buffers):
        for name, tensor in tensors.items():
            bad = int((~torch.isfinite(tensor)).sum()) if tensor.is_floating_point() else 0
            if bad:
                who = f"private state of client {job[0]}, job {job[1]}: {name}"
                raise diverged(who, f"{bad} of {tensor.numel()} not finite", FINITE)


def _check_counts(who: str, update: Update, round: int) -> None:
    if update.round != round:
        raise InputError.of(f"{who}: round", update.round, str(round), "it belongs to another round")
    for key in ("examples", "steps"):
        if getattr(update, key) < 1:
            raise InputError.of(f"{who}: {key}", getattr(update, key), "an integer >= 1")
    for key, value in update.scalars.items():
        if not math.isfinite(value):
            raise diverged(f"{who}: {key}", value, FINITE)


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
            raise diverged(f"{who}: scores of {layer}", values.tolist(), FINITE)


def _check_ids(what: str, ids: Ids, allowed: Collection[int]) -> None:
    if list(ids) != sorted(set(ids)) or not set(ids) <= set(allowed):
        raise InputError.of(what, ids, f"ascending ids out of {tuple(allowed)}")


def _check_tensors(who: str, update: Update, layout: Layout, plan: Plan) -> None:
    names = layout.sent(plan)
    if sorted(update.tensors) != names:
        raise InputError.of(who, sorted(update.tensors), names, "other tensors than were asked for")
    for name, tensor in update.tensors.items():
        _check_tensor(f"{who}: {name}", tensor, layout.shape(name, update.kept))


def _check_tensor(what: str, tensor: Tensor, shape: tuple[int, ...]) -> None:
    if tuple(tensor.shape) != shape:
        raise InputError.of(what, tuple(tensor.shape), str(shape))
    if not tensor.is_floating_point():
        raise InputError.of(what, tensor.dtype, "numbers in floating point")
    bad = int((~torch.isfinite(tensor)).sum())
    if bad:
        raise diverged(what, f"{bad} of {tensor.numel()} not finite", FINITE)
