"""What a run starts with, and whether it starts: nothing is trained, read or written here."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from flt.algorithm.recipe import Recipe
from flt.client.settings import LocalSettings
from flt.core.errors import InputError
from flt.data.clients import ClientSpec
from flt.data.task_rounds import with_task_rounds
from flt.protocol.layout import Layout
from flt.run import build
from flt.run.federation import Federation
from flt.run.prefix_cache import check_prefix
from flt.run.schema import TrainConfig
from flt.server.client_sampling import FixedSize, Poisson
from flt.server.failure_policy import FailurePolicy


@dataclasses.dataclass(frozen=True)
class Start:
    """What was accepted.

    Attributes:
        layout: Names and roles of the module's tensors, its adapter attached.
        recipe: The parts.
        clients: Client id -> the client with its rank and its jobs' rounds.
        sampler: Who takes part in a round.
        settings: Length and manner of the fits.
        tolerance: What a round puts up with.
    """

    layout: Layout
    recipe: Recipe
    clients: dict[int, ClientSpec]
    sampler: FixedSize | Poisson
    settings: LocalSettings
    failure_policy: FailurePolicy


def start(cfg: TrainConfig, made: Federation) -> Start:
    """Attaches the adapter, puts the parts together and asks each whether it can serve this federation.

    Args:
        cfg: The configuration.
        made: Module, clients and data; the module is changed in place.

    Raises:
        InputError: Some of it has no meaning together.
    """
    layout = build.attach(cfg, made.module)
    tasks = made.tasks()
    recipe = build.recipe(cfg, len(set(tasks.values())), tasks)
    clients = with_task_rounds(made.clients, cfg.task_rounds or {})
    ranked = served(recipe, layout.with_heads(made.heads), clients, cfg.ranks)
    if cfg.model.get("quantise") and recipe.changes_base:
        why = "the recipe changes the frozen weights, of which only rounded ones are left"
        raise InputError.of("model.quantise", cfg.model["quantise"], "null", why)
    if cfg.prefix_cache:
        check_prefix(made, recipe, cfg)
    sampler = build.sampler(cfg, len(ranked))
    asked = (sampler.size if isinstance(sampler, FixedSize) else None) or len(ranked)
    jobs = sorted((len(client.data) for client in ranked.values()), reverse=True)
    failure_policy = build.failure_policy(cfg, sum(jobs[:asked]))
    all_there = not any(job.comes_and_goes for client in ranked.values() for job in client.data)
    fewest = failure_policy.min_updates or (sum(jobs[-asked:]) if all_there and isinstance(sampler, FixedSize) else 0)
    for updates in range(max(fewest, 1), sum(jobs[:asked]) + 1):  # of none no rule is asked
        recipe.rule.check(updates)
    return Start(layout, recipe, ranked, sampler, build.local_settings(cfg), failure_policy)


def served(
    recipe: Recipe, layout: Layout, clients: Sequence[ClientSpec], ranks: Sequence[int] | None = None
) -> dict[int, ClientSpec]:
    """Client id -> the client with its rank, once the recipe's parts can work on the module and serve all of them.

    Args:
        recipe: The parts.
        layout: The server's.
        clients: With the rounds of their jobs.
        ranks: Tiers, dealt in turn; None: all clients have the adapter's rank.

    Raises:
        InputError: They can't.
    """
    recipe.check(layout)
    return with_capacities(clients, ranks, layout, recipe)


def refusal(cfg: TrainConfig, made: Federation) -> str | None:
    """The line that refuses a run at its start; None where it would begin.

    Args:
        cfg: The configuration.
        made: Module, clients and data, or what stands in for them: the module is changed in place, no example is read.
    """
    try:
        start(cfg, made)
    except InputError as error:
        return str(error)
    return None


def with_capacities(
    clients: Sequence[ClientSpec], ranks: Sequence[int] | None, layout: Layout, recipe: Recipe
) -> dict[int, ClientSpec]:
    """Client id -> the client with its rank: its own, or one of the tiers, dealt in turn; without any, the adapter's.

    Raises:
        InputError: A rank is above the adapter's, two clients share an id, or a part can't serve a client.
    """
    if ranks and not layout.layers:
        raise InputError.of("ranks", list(ranks), "null", "the adapter has no components to go without")
    most = max((layer.rank for layer in layout.layers.values()), default=1)
    ranked = {}
    for number, client in enumerate(clients):
        rank = client.rank or (ranks[number % len(ranks)] if ranks else most)
        if rank > most:
            raise InputError.of("ranks", list(ranks or [rank]), f"integers up to adapter.rank={most}")
        if client.id in ranked:
            raise InputError.of("clients", client.id, "an id of its own for each client")
        ranked[client.id] = dataclasses.replace(client, rank=rank)
    recipe.selection.check([client.rank or most for client in ranked.values()], most)
    recipe.schedule.check(most)
    recipe.grouping.check(max(len(client.data) for client in ranked.values()))
    return ranked
