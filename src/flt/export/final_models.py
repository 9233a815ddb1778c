"""Final models: one for each group and head, or, if jobs trained private tensors, one for each of these jobs."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from flt.callbacks.evaluate import task_groups
from flt.data.clients import JobData, class_names_of
from flt.protocol.layout import Layout
from flt.protocol.messages import Ids, JobId
from flt.protocol.state import ClientState, ServerState
from flt.server.federator import Federator

MOST_CLIENTS = 20
"""Largest number of clients that the title of a model lists."""


@dataclasses.dataclass(frozen=True)
class Model:
    """Final model of a group, or a client's own model (the final model of one of its jobs).

    Attributes:
        folder: Path of the model's folder, relative to the export's folder. Empty if there is only one model.
        gid: Id of the model's group.
        head: Name of the model's head. Empty if all jobs have the same head.
        tensors: The model's tensors, by their name in a module with this head. In a group's model, A and B contain only
            the active components; in a client's own model, they contain only the components that the client holds.
        buffers: Buffers of the model that training has changed, by name. The base has all others.
        data: Data of the job that trained a client's own model; None for a group's model.
        names: Task -> names of its classes, for the tasks of the jobs that use the model. Empty if there are no names.
        tasks: Tasks of the jobs that use the model.
        jobs: The jobs that use the model.
        evaluated: Tasks that the run evaluates with the model. Empty for a client's own model.
    """

    folder: str
    gid: int
    head: str
    tensors: dict[str, Tensor]
    buffers: dict[str, Tensor] = dataclasses.field(default_factory=dict)
    data: JobData | None = None
    names: Mapping[str, tuple[str, ...]] = dataclasses.field(default_factory=dict)
    tasks: tuple[str, ...] = ()
    jobs: tuple[JobId, ...] = ()
    evaluated: tuple[str, ...] = ()

    @property
    def title(self) -> str:
        """Name of this model on the model cards, among those of the run. Empty if there is only one.

        Example:
            >>> Model("group_1/head_2", 1, "2", {}, jobs=((0, 0), (3, 0))).title
            'group 1, head 2 (clients 0, 3)'
        """
        whole = ", ".join(part.replace("_", " ", 1) for part in self.folder.split("/") if part)
        clients = [] if self.data else sorted({client for client, _ in self.jobs})
        shown = [*map(str, clients[:MOST_CLIENTS]), *["..."] * (len(clients) > MOST_CLIENTS)]
        return f"{whole} (client{'s' * (len(shown) > 1)} {', '.join(shown)})" if whole and shown else whole


def final_models(federator: Federator) -> list[Model]:
    """Returns the final models of a federation.

    If jobs trained private tensors, there is one model for each of these jobs and its heads, ordered by client.
    Otherwise there is one model for each group and head, ordered by group and head.
    """
    state, layout = federator.state, federator.server.layout
    plan = federator.server.recipe.plan(max(0, state.rounds - 1))
    head_of = {(c.id, i): data.head for c in federator.clients.values() for i, data in enumerate(c.data)}
    private = {job: kept for job, kept in sorted(federator.client_states.items()) if kept.tensors or kept.buffers}
    if private and not federator.server.has_global(plan):
        models = of_clients(layout, state, private, head_of, _held(federator))
        return [_with_data(federator, model) for model in models]
    heads_of = {job: layout.heads_of(head) or ("",) for job, head in head_of.items()}
    every = sorted({head for own in heads_of.values() for head in own})
    heads = {  # a group without jobs gets one model for every head
        gid: sorted({head for job, own in heads_of.items() if state.group_of(job) == gid for head in own}) or every
        for gid in state.groups
    }
    models = of_groups(layout, state, heads)
    return [dataclasses.replace(model, **_users(federator, model)) for model in models]


def _with_data(federator: Federator, model: Model) -> Model:
    """Returns a client's own model with what its job tells. With a joint head, it has a part of the tasks."""
    ((client, index),) = model.jobs
    data = federator.clients[client].data[index]
    tasks = [own.task for own in data.each_task if own.head == model.head]
    names = {task: names for task, names in class_names_of([data]).items() if task in tasks}
    return dataclasses.replace(model, data=data, names=names, tasks=tuple(tasks))


def _users(federator: Federator, model: Model) -> dict[str, Any]:
    """Returns the fields of a group's model that say which jobs use it. A group without jobs has the tasks of all."""
    state, clients = federator.state, federator.clients
    every = {(c.id, i): own for c in clients.values() for i, own in enumerate(c.data)}
    of_head = {job: [own.task for own in data.each_task if own.head == model.head] for job, data in every.items()}
    of_head = {job: tasks for job, tasks in of_head.items() if tasks}
    jobs = tuple(job for job in of_head if state.group_of(job) == model.gid)
    tasks = tuple(dict.fromkeys(task for job in jobs or of_head for task in of_head[job]))
    names = class_names_of(every[job] for job in jobs or of_head)
    best = task_groups(state, {job: tuple(own.task for own in data.each_task) for job, data in every.items()})
    known = dict.fromkeys(task for tasks in of_head.values() for task in tasks)
    evaluated = tuple(task for task in known if best.get(task, state.home) == model.gid)
    named = {task: names[task] for task in names if task in tasks}
    return {"names": named, "tasks": tasks, "jobs": jobs, "evaluated": evaluated}


def _held(federator: Federator) -> dict[JobId, dict[str, Ids]]:
    """Returns, for each job and layer, the ids of the components that the job would receive in one more round.

    The job's own model consists of these components.
    """
    server = federator.server
    rank = max((layer.rank for layer in server.layout.layers.values()), default=0)
    jobs = [job for _, client in sorted(federator.clients.items()) for job in client.jobs(rank)]
    return {job.id: server.recipe.selection(server.view(federator.state), job, jobs)[0] for job in jobs}


def of_groups(layout: Layout, state: ServerState, heads: Mapping[int, Sequence[str]] | None = None) -> list[Model]:
    """Returns one model for each group and each head of the group's jobs.

    Args:
        layout: Layout of the server.
        state: Last state of the server.
        heads: Group id -> names of the heads of the group's jobs. If None, all jobs have the same head.
    """
    models, gids = [], state.clusters
    for gid in gids:
        for head in (heads or {}).get(gid) or [""]:
            parts = [f"group_{gid}"] * (len(gids) > 1) + [f"head_{head}"] * bool(head)
            tensors = layout.model(state.groups[gid].weights, state.active, head)
            models.append(Model("/".join(parts), gid, head, tensors, state.groups[gid].buffers))
    return models


def of_clients(
    layout: Layout,
    state: ServerState,
    private: Mapping[JobId, ClientState],
    head_of: Mapping[JobId, str],
    held: Mapping[JobId, Mapping[str, Ids]],
) -> list[Model]:
    """Returns one model for each job that trained private tensors. All other tensors are those of the job's group.

    A job with a joint head has one model for each head that it consists of.

    Args:
        layout: Layout of the server.
        state: Last state of the server.
        private: Job -> client state, which contains the job's private tensors at the initial rank.
        head_of: Job -> name of the job's head.
        held: Job -> layer -> ids of the components that the job's model consists of.
    """
    jobs = {client: sum(other == client for other, _ in head_of) for client, _ in head_of}
    models = []
    for (client, index), kept in private.items():
        gid, components = state.group_of((client, index)), held[client, index]
        folder = f"client_{client}" + (f"/job_{index}" if jobs[client] > 1 else "")
        buffers = {**state.groups[gid].buffers, **kept.buffers}
        heads = layout.heads_of(head_of[client, index])
        private_tensors = layout.split(kept.tensors, head_of[client, index])
        for head in heads or ("",):
            own, place = layout.for_head(head), f"{folder}/head_{head}" if len(heads) > 1 else folder
            tensors = layout.model(state.groups[gid].weights, components, head)
            mine = layout.joined(private_tensors, head).items()
            tensors |= {name: own.take(name, full, components) for name, full in mine}
            models.append(Model(place, gid, head, tensors, buffers, jobs=((client, index),)))
    return models
