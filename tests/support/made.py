"""Server states and updates that are made up: what the parts of the server are tested on without any training."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from flt.algorithm.view import View
from flt.protocol.entries import Entry, Layer
from flt.protocol.job import Job
from flt.protocol.layout import Layout
from flt.protocol.messages import Ids, JobId, Update
from flt.protocol.state import GroupState, ServerState

SIZES = {"x": (5, 4), "y": (3, 6)}
"""Layer -> (out, in)."""
HEAD = (2, 3)


def layout_of(rank: int = 4, scale: float = 2.0, transposed: bool = False) -> Layout:
    """Two layers, x and y, of different sizes, and a head."""
    entries, layers = {"head": Entry("head", HEAD)}, {}
    for name, (out, inner) in SIZES.items():
        entries[f"{name}.A"] = Entry("A", (rank, inner), name, 0)
        entries[f"{name}.B"] = Entry("B", (out, rank), name, 1)
        entries[f"{name}.W"] = Entry("base", (inner, out) if transposed else (out, inner))
        layers[name] = Layer(rank, scale, f"{name}.W", f"{name}.A", f"{name}.B", transposed)
    return Layout(entries, layers)


def random_weights(layout: Layout, seed: int) -> dict[str, Tensor]:
    """Every travelling tensor, normally distributed."""
    generator = torch.Generator().manual_seed(seed)
    return {
        name: torch.randn(layout.entries[name].shape, generator=generator) for name in layout.names(("A", "B", "head"))
    }


def view_of(
    layout: Layout | None = None,
    *,
    groups: Sequence[int] = (0,),
    assignment: Mapping[JobId, int] = {},
    scores: Mapping[str, Sequence[float]] | None = None,
    alive: Mapping[str, Ids] | None = None,
    rounds: int = 0,
    jobs: int = 10,
    seed: int = 0,
) -> View:
    """A state with groups of different random weights."""
    layout = layout or layout_of()
    zeros = {name: [0.0] * layer.rank for name, layer in layout.layers.items()}
    known = {name: torch.tensor(values, dtype=torch.float64) for name, values in (scores or zeros).items()}
    made = {gid: GroupState(random_weights(layout, 1000 + gid), known) for gid in groups}
    state = ServerState(rounds, made, dict(alive or layout.all_components()), dict(assignment))
    return View(layout, state, jobs, seed)


def update_of(view: View, job: JobId, kept: Mapping[str, Ids] | None = None, examples: int = 10) -> Update:
    """A job's update with random tensors of the right shapes."""
    kept = dict(kept or view.layout.all_components())
    full = random_weights(view.layout, 17 + 100 * job[0] + job[1])
    sent = {name: view.layout.take(name, tensor, kept) for name, tensor in full.items()}
    return Update(job, view.state.rounds, sent, kept, view.state.base.version, examples, steps=3, scalars={"lr": 0.1})


def jobs_of(*ranks: int) -> list[Job]:
    """One job per client, of these ranks."""
    return [Job(client, 0, rank) for client, rank in enumerate(ranks)]
