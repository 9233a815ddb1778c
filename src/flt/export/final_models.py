"""The models that a federation has made: one for each group and head, or each client where a part of it is private."""

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
    """One of them.

    Attributes:
        folder: Where it goes below the export's folder; empty: there is no other.
        gid: The group that it is of.
        head: The head that it has, where jobs have different ones.
        tensors: Under the names of a module with this head, gathered by the living pairs, or those that a client holds.
        data: Of a client's own model, the job that it was trained on.
    """

    folder: str
    gid: int
    head: str
    tensors: dict[str, Tensor]
    data: JobData | None = None


def made_by(federator: Federator) -> list[Model]:
    """A federation's models, in the order of groups and heads, or of clients that trained tensors of their own."""
    state, layout = federator.state, federator.server.layout
    plan = federator.server.recipe.plan(max(0, state.rounds - 1))
    head_of = {(c.id, i): data.head for c in federator.clients.values() for i, data in enumerate(c.data)}
    private = {job: kept for job, kept in sorted(federator.client_states.items()) if kept.tensors}
    if set(plan.train) & set(plan.private) and private:
        models = of_clients(layout, state, private, head_of, _held(federator))
        jobs = [federator.clients[client].data[index] for client, index in private]
        return [dataclasses.replace(model, data=data) for model, data in zip(models, jobs, strict=True)]
    every = sorted(set(head_of.values()))
    heads = {  # of a group that lost its jobs, all
        gid: sorted({head for job, head in head_of.items() if state.group_of(job) == gid}) or every
        for gid in state.groups
    }
    return of_groups(layout, state, heads)


def _held(federator: Federator) -> dict[JobId, dict[str, Ids]]:
    """Job -> the pairs that it would be sent next: its model has no others."""
    server = federator.server
    rank = max((layer.rank for layer in server.layout.layers.values()), default=0)
    jobs = [job for _, client in sorted(federator.clients.items()) for job in client.jobs(rank)]
    return {job.id: server.recipe.selection(server.view(federator.state), job, jobs)[0] for job in jobs}


def of_groups(layout: Layout, state: ServerState, heads: Mapping[int, Sequence[str]] | None = None) -> list[Model]:
    """A model for each group and each of its heads.

    Args:
        layout: The server's.
        state: The last state.
        heads: Group -> the heads that its jobs have, where jobs have different ones.
    """
    made, gids = [], state.clusters
    for gid in gids:
        for head in (heads or {}).get(gid) or [""]:
            parts = [f"group_{gid}"] * (len(gids) > 1) + [f"head_{head}"] * bool(head)
            made.append(Model("/".join(parts), gid, head, layout.model(state.groups[gid].weights, state.active, head)))
    return made


def of_clients(
    layout: Layout,
    state: ServerState,
    private: Mapping[JobId, ClientState],
    head_of: Mapping[JobId, str],
    held: Mapping[JobId, Mapping[str, Ids]],
) -> list[Model]:
    """A model for each job that trained tensors of its own: these, and the others of its group.

    Args:
        layout: The server's.
        state: The last state.
        private: Job -> what stayed on its client, at full rank.
        head_of: Job -> its head.
        held: Job -> layer -> the pairs that it holds.
    """
    jobs = {client: sum(other == client for other, _ in head_of) for client, _ in head_of}
    made = []
    for (client, index), kept in private.items():
        gid, head = state.group_of((client, index)), head_of[client, index]
        own = layout.for_head(head)
        components = held[client, index]
        tensors = layout.model(state.groups[gid].weights, components, head)
        tensors |= {name: own.take(name, full, components) for name, full in kept.tensors.items()}
        folder = f"client_{client}" + (f"/job_{index}" if jobs[client] > 1 else "")
        made.append(Model(folder, gid, head, tensors))
    return made
