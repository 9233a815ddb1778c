"""Validation of states from a checkpoint. A state whose types are right may still belong to another model."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from torch import Tensor

from flt.core.errors import InputError
from flt.core.typed import first_line
from flt.protocol.field_types import fits
from flt.protocol.layout import BUFFER, Layout
from flt.protocol.messages import Ids, JobId
from flt.protocol.state import BaseState, ClientState, GroupState, ServerState
from flt.server.callback import FedCallback
from flt.server.federator import Federator


def check_states(state: ServerState, private: Mapping[JobId, ClientState], federator: Federator) -> None:
    """Checks that the states of a checkpoint fit the federator's model and jobs.

    Args:
        state: State of the server.
        private: Job -> its private state.
        federator: Federator with the state with which the run would start without a checkpoint.

    Raises:
        InputError: The names or shapes of tensors differ from those of the federator's tensors, or a job doesn't
            exist.
    """
    server, jobs = federator.server, {}
    for client in federator.clients.values():
        jobs.update({(client.id, index): data.head for index, data in enumerate(client.data)})
    _check_server_state(state, federator.state, server.layout, server.base)
    _check_jobs([*state.assignment, *state.scores, *state.directions, *state.ranks, *private], jobs)
    for job, private_state in private.items():
        _check_private_state(job, private_state, server.layout.for_head(jobs[job]))


def restore_callback(key: str, callback: FedCallback, state: dict[str, Any]) -> None:
    """Restores the state of a callback.

    Raises:
        InputError: The state lacks something, or has other types than the callback saves.
    """
    try:
        for name, kind in callback.state_types.items():
            if name in state and not fits(state[name], kind):
                raise TypeError(f"{name} has another type")
        callback.load_state_dict(state)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise InputError.of("resume", key, "the state that this callback saved", first_line(error)) from error


def _check_server_state(state: ServerState, start: ServerState, layout: Layout, base: Mapping[str, Tensor]) -> None:
    """Checks that the state of a checkpoint fits the model and the jobs of a run.

    Args:
        state: State from the checkpoint.
        start: State with which the run would start without a checkpoint.
        layout: Names and shapes of the server's tensors.
        base: Name of a base weight that the recipe can change -> its initial value.

    Raises:
        InputError: A group, a tensor or a component doesn't exist in this run, or a tensor has another shape.
    """
    for group in {state.home, *state.assignment.values()} - set(state.groups):
        raise _unfit(f"group {group}", sorted(state.groups))
    expected = start.groups[start.home]
    for group_state in state.groups.values():
        _check_group(group_state, expected, layout)
    _check_ids("active components", state.alive, layout)
    if set(state.alive) != set(start.alive):
        raise _unfit(f"layers {sorted(state.alive)}", sorted(start.alive))
    for scores in state.scores.values():
        _check_shapes(scores, layout)
    for job, rank in state.ranks.items():
        if not 1 <= rank <= max((layer.rank for layer in layout.layers.values()), default=0):
            raise _unfit(f"rank {rank} of job {job}", "ranks of the adapter")
    if rounds := sorted(set(state.validation) - set(range(1, state.rounds + 1))):
        raise _unfit(f"validation loss of round {rounds[0]}", f"rounds 1 to {state.rounds}")
    if not set(state.bandit) <= {"choices", "rewards", "latest"}:
        raise _unfit(f"bandit {sorted(state.bandit)}", "choices, rewards and latest")
    _check_base(state.base, base)
    sizes = {tuple(direction.shape) for direction in state.directions.values()}
    if len(sizes) > 1 or any(len(size) != 1 for size in sizes):
        raise _unfit(f"directions of shapes {sorted(sizes)}", "one shape (features,)")


def _check_private_state(job: JobId, state: ClientState, layout: Layout) -> None:
    """Checks that the private state of a job fits the module.

    Args:
        job: The job.
        state: Its private state, from a checkpoint.
        layout: Names and shapes of the tensors of the job's module.

    Raises:
        InputError: A tensor doesn't exist in the module, or has another shape.
    """
    for tensors in (state.tensors, *state.slots.values()):
        _check_shapes(tensors, layout)
    _check_buffers(state.buffers, layout)
    known = [name for name in state.tensors if name in layout.entries and name not in layout.local]
    private = sorted({layout.entries[name].role for name in known})
    if missing := sorted(set(layout.names(private)) - set(state.tensors)):
        raise _unfit(f"private state of job {job} without {missing[0]}", "all private tensors")


def _check_jobs(found: Collection[JobId], jobs: Collection[JobId]) -> None:
    for job in sorted(set(found) - set(jobs)):
        raise _unfit(f"job {job}", sorted(jobs))


def _check_group(group: GroupState, expected: GroupState, layout: Layout) -> None:
    for what in ("weights", "scores"):
        found, wanted = getattr(group, what), getattr(expected, what)
        if wrong := [name for name in found if name in wanted and found[name].dtype != wanted[name].dtype]:
            raise _unfit(f"{wrong[0]} {found[wrong[0]].dtype}", str(wanted[wrong[0]].dtype))
        if set(found) != set(wanted):
            raise _unfit(f"{what} {sorted(set(found) ^ set(wanted))[0]}", sorted(wanted))
    for layer, scores in group.scores.items():
        if not bool(scores.isfinite().all()):
            raise _unfit(f"scores of {layer} {scores.tolist()}", "finite numbers")
    for tensors in (group.weights, group.scores, *group.slots.values()):
        _check_shapes(tensors, layout)
    _check_buffers(group.buffers, layout)


def _check_buffers(tensors: Mapping[str, Tensor], layout: Layout) -> None:
    for name, tensor in tensors.items():
        entry, found = layout.entries.get(name), (tuple(tensor.shape), tensor.dtype)
        if entry is None or entry.role != BUFFER or found != (entry.shape, entry.dtype):
            wanted = (entry.shape, entry.dtype) if entry else "buffers of the model"
            raise _unfit(f"{name} {found}", f"{name} {wanted}")
        if not bool(tensor.isfinite().all()):
            raise _unfit(f"{name}, which isn't finite", "finite numbers")


def _check_shapes(tensors: Mapping[str, Tensor], layout: Layout) -> None:
    """Checks tensors that have the shape of a parameter, or one number for each component of a layer."""
    for name, tensor in tensors.items():
        ranks = (layout.layers[name].rank,) if name in layout.layers else None
        shape = layout.entries[name].shape if name in layout.entries else ranks
        if tuple(tensor.shape) != shape:
            raise _unfit(f"{name} {tuple(tensor.shape)}", f"{name} {shape or 'not there'}, as the model has it")
        if not tensor.is_floating_point():
            raise _unfit(f"{name} {tensor.dtype}", "numbers in floating point")


def _check_ids(what: str, components: Mapping[str, Ids], layout: Layout) -> None:
    for layer, ids in components.items():
        most = layout.layers[layer].rank if layer in layout.layers else 0
        if list(ids) != sorted(set(ids)) or not set(ids) <= set(range(most)):
            raise _unfit(f"{what} {layer} {ids}", f"ascending ids below {most}")


def _check_base(state: BaseState, base: Mapping[str, Tensor]) -> None:
    versions = [delta.version for delta in state.recent]
    if versions != sorted(versions) or any(version > state.version for version in (*versions, *state.seen.values())):
        raise _unfit(f"versions {versions} of the base", f"ascending ones up to {state.version}")
    folded = [(name, (value,)) for name, (_, value) in state.folded.items()]
    for name, change in [*folded, *(item for delta in state.recent for item in delta.tensors.items())]:
        shapes = [tuple(part.shape) for part in change]
        kinds = {part.dtype for part in change}
        fits_base = name in base and _changes(shapes, tuple(base[name].shape)) and kinds == {base[name].dtype}
        if not fits_base:
            raise _unfit(f"{name} {shapes}", "changes of the base weights that the recipe changes")


def _changes(shapes: list[tuple[int, ...]], shape: tuple[int, ...]) -> bool:
    """Returns whether tensors of these shapes, a value or two factors, can change a weight of a shape."""
    if len(shapes) == 2 and all(len(each) == 2 for each in shapes):
        (rows, inner), (same, columns) = shapes
        return inner == same and (rows, columns) == shape
    return shapes == [shape]


def _unfit(what: str, allowed: str | Collection[object]) -> InputError:
    return InputError.of("resume", what, allowed, "the checkpoint is of another model")
