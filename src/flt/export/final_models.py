"""Final models of a federation: one for each group and head, or one for each client if clients keep private tensors."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

from torch import Tensor

from flt.data.clients import JobData
from flt.protocol.layout import Layout
from flt.protocol.messages import Ids, JobId
from flt.protocol.state import ClientState, ServerState
from flt.server.federator import Federator


@dataclasses.dataclass(frozen=True)
class Model:
    """Final model of a group or of a client.

    Attributes:
        folder: Folder of the model below the export's folder; empty if it is the only model.
        gid: Id of its group.
        head: Name of its head, if jobs have different heads.
        tensors: Name in a module with this head -> value, with the rows of the active components, or of the components
            that the client holds.
        data: Job that a client's own model was trained on; None for the model of a group.
    """

    folder: str
    gid: int
    head: str
    tensors: dict[str, Tensor]
    data: JobData | None = None


def final_models(federator: Federator) -> list[Model]:
    """Returns a federation's models, ordered by group and head, or by client if clients trained private tensors."""
    state, layout = federator.state, federator.server.layout
    plan = federator.server.recipe.plan(max(0, state.rounds - 1))
    head_of = {(c.id, i): data.head for c in federator.clients.values() for i, data in enumerate(c.data)}
    private = {job: kept for job, kept in sorted(federator.client_states.items()) if kept.tensors}
    if set(plan.train) & set(plan.private) and private:
        models = of_clients(layout, state, private, head_of, _held(federator))
        jobs = [federator.clients[client].data[index] for client, index in private]
        return [dataclasses.replace(model, data=data) for model, data in zip(models, jobs, strict=True)]
    every = sorted(set(head_of.values()))
    heads = {  # a group that lost its jobs gets every head
        gid: sorted({head for job, head in head_of.items() if state.group_of(job) == gid}) or every
        for gid in state.groups
    }
    return of_groups(layout, state, heads)


def _held(federator: Federator) -> dict[JobId, dict[str, Ids]]:
    """Returns job -> layer -> ids of the components that the job would receive next; its model has no others."""
    server = federator.server
    rank = max((layer.rank for layer in server.layout.layers.values()), default=0)
    jobs = [job for _, client in sorted(federator.clients.items()) for job in client.jobs(rank)]
    return {job.id: server.recipe.selection(server.view(federator.state), job, jobs)[0] for job in jobs}


def of_groups(layout: Layout, state: ServerState, heads: Mapping[int, Sequence[str]] | None = None) -> list[Model]:
    """Returns a model for each group and each of the group's heads.

    Args:
        layout: Layout of the server.
        state: Last state of the server.
        heads: Group -> heads of its jobs, if jobs have different heads.
    """
    models, gids = [], state.clusters
    for gid in gids:
        for head in (heads or {}).get(gid) or [""]:
            parts = [f"group_{gid}"] * (len(gids) > 1) + [f"head_{head}"] * bool(head)
            tensors = layout.model(state.groups[gid].weights, state.active, head)
            models.append(Model("/".join(parts), gid, head, tensors))
    return models


def of_clients(
    layout: Layout,
    state: ServerState,
    private: Mapping[JobId, ClientState],
    head_of: Mapping[JobId, str],
    held: Mapping[JobId, Mapping[str, Ids]],
) -> list[Model]:
    """Returns a model for each job that trained private tensors; the other tensors are those of the job's group.

    Args:
        layout: Layout of the server.
        state: Last state of the server.
        private: Job -> tensors that stayed on its client, at full rank.
        head_of: Job -> its head.
        held: Job -> layer -> ids of the components that the job holds.
    """
    jobs = {client: sum(other == client for other, _ in head_of) for client, _ in head_of}
    models = []
    for (client, index), kept in private.items():
        gid, head = state.group_of((client, index)), head_of[client, index]
        own = layout.for_head(head)
        components = held[client, index]
        tensors = layout.model(state.groups[gid].weights, components, head)
        tensors |= {name: own.take(name, full, components) for name, full in kept.tensors.items()}
        folder = f"client_{client}" + (f"/job_{index}" if jobs[client] > 1 else "")
        models.append(Model(folder, gid, head, tensors))
    return models
