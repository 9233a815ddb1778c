"""The server of a run, and its state before round 1."""

from __future__ import annotations

from collections import Counter

from flt.protocol.entries import buffers
from flt.protocol.state import ServerState
from flt.run.assembly import Setup
from flt.run.federation import Federation
from flt.run.schema import TrainConfig
from flt.server.aggregation import ServerAggregation


def server_of(cfg: TrainConfig, federation: Federation, setup: Setup) -> tuple[ServerAggregation, ServerState]:
    """Builds the server of a run, and its state before round 1, from the module's present weights.

    Args:
        cfg: Configuration of the run.
        federation: Module with its adapter attached, clients and data.
        setup: Checked objects of the run.
    """
    layout, recipe, module, heads = setup.layout, setup.recipe, federation.module, federation.heads
    weights = {name: parameter.detach() for name, parameter in module.named_parameters()}
    base = {name: weights[name].cpu().clone() for name in recipe.frozen(layout)}
    served = layout.with_heads(heads)
    jobs_of = Counter(
        head for c in federation.clients for job in c.data for head in served.heads_of(job.head) or [job.head]
    )
    for head, own in heads.items():
        weights |= served.split(own, head)
    initial = {name: buffer.detach().cpu().clone() for name, buffer in buffers(module).items()}
    server = ServerAggregation(recipe, served, len(federation.tasks()), cfg.seed, base, jobs_of, initial)
    return server, server.initial(weights)
