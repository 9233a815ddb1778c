"""Assembly of a run's objects, and checks of the run's settings. Nothing is trained here, and no file is written."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Sequence
from typing import Any

from flt.algorithm.recipe import Recipe
from flt.client.settings import LocalSettings
from flt.core.errors import InputError
from flt.data.clients import ClientSpec
from flt.data.task_rounds import with_task_changes, with_task_rounds
from flt.models.module import ClientModule
from flt.models.peft_modules import check_mergeable
from flt.protocol.layout import Layout
from flt.run import build
from flt.run.federation import Federation
from flt.run.fleet import Devices, devices_of, with_fleet_ranks
from flt.run.prefix_cache import check_prefix
from flt.run.schema import FLEET_RANKS, TrainConfig
from flt.run.stored import OWN
from flt.server.client_sampling import FixedSize
from flt.server.failure_policy import FailurePolicy
from flt.server.federator import Sampler

THAWED = "the recipe trains the whole model, also %s, which the module has frozen (see plan.train)"
_log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Setup:
    """Checked objects of a run.

    Attributes:
        layout: Names and roles of the tensors of the module with its adapter.
        recipe: Parts of the method.
        clients: Client id -> the client, including its rank and the rounds in which its jobs take part.
        sampler: Sampler of the cohorts.
        settings: Settings of the local fits.
        failure_policy: Conditions under which a round succeeds although jobs failed.
        adapter: Settings of the adapter that the module has. With ``ranks=fleet``, its rank can be below the configured
            one.
        fleet: Devices of the clients. None: no devices are simulated.
    """

    layout: Layout
    recipe: Recipe
    clients: dict[int, ClientSpec]
    sampler: Sampler
    settings: LocalSettings
    failure_policy: FailurePolicy
    adapter: dict[str, Any]
    fleet: Devices | None = None


def assemble(cfg: TrainConfig, federation: Federation) -> Setup:
    """Attaches the adapter, builds the objects of the run, and checks that they fit the federation and each other.

    Args:
        cfg: Configuration of the run.
        federation: Module, clients and data. The module is changed in place.

    Raises:
        InputError: A setting is wrong, or settings can't be combined.
    """
    if cfg.ranks == FLEET_RANKS:
        cfg, federation = with_fleet_ranks(cfg, federation)
    module = federation.module
    frozen = [name for name, parameter in module.named_parameters() if not parameter.requires_grad]
    layout = build.attach(cfg, module)
    changed = with_task_changes(federation.clients, cfg.task_changes or {})
    federation = dataclasses.replace(federation, clients=changed)
    recipe = build.recipe(cfg, len(federation.task_heads()), federation.tasks())
    if frozen and "base" in recipe.plan.roles and not isinstance(module, ClientModule):
        _log.warning("%s: %s", type(module).__name__, THAWED % frozen[0])
    clients = with_task_rounds(changed, cfg.task_rounds or {})
    layout = recipe.buffers.adapted(layout)
    ranked = served(recipe, layout.with_heads(federation.heads), clients, cfg.ranks)
    if cfg.model.get("quantise") and recipe.changes_base:
        why = "the recipe changes the frozen weights, of which only rounded ones are left"
        raise InputError.of("model.quantise", cfg.model["quantise"], "null", why)
    if recipe.changes_base:
        check_mergeable(federation.module, layout)
    _check_evaluations(cfg, federation, layout, recipe)
    if cfg.prefix_cache:
        check_prefix(federation, recipe, cfg)
    sampler = build.sampler(cfg, len(ranked))
    cohort_size = (sampler.size if isinstance(sampler, FixedSize) else None) or len(ranked)
    jobs = sorted((len(client.data) for client in ranked.values()), reverse=True)
    most = sum(jobs[:cohort_size])
    failure_policy = build.failure_policy(cfg, most)
    fleet = devices_of(cfg, list(ranked), sampler)
    all_stay = not (fleet and fleet.loses_clients) and not any(
        job.is_temporary for client in ranked.values() for job in client.data
    )
    fewest = sum(jobs[-cohort_size:]) if all_stay and isinstance(sampler, FixedSize) else 0
    fewest = failure_policy.min_updates or fewest
    for updates in range(max(fewest, 1), most + 1):  # a rule is never called with 0 updates
        recipe.rule.check(updates)
    draw = fleet.sampler if fleet else sampler
    return Setup(layout, recipe, ranked, draw, build.local_settings(cfg), failure_policy, cfg.adapter, fleet)


def _check_evaluations(cfg: TrainConfig, federation: Federation, layout: Layout, recipe: Recipe) -> None:
    """Checks that the run has what its evaluations and the parts of its recipe measure.

    Raises:
        InputError: There are no such examples, the jobs report no losses although the grouping reads them, or clients
            send no trained numbers whose divergence could be measured.
    """
    if recipe.schedule.reads_validation and not federation.validation:
        why = "there are no validation examples (see data.validation)"
        raise InputError.of("schedule", cfg.schedule["name"], "annealed", why)
    for part in recipe.parts:
        name = getattr(cfg, part.kind)["name"]
        if part.reads_held_out and not any(len(job.held_out) for job in federation.job_data):
            why = "no client holds out examples (see partition.held_out)"
            raise InputError.of(part.kind, name, f"another {part.kind}", why)
    if recipe.grouping.reads_held_out and not cfg.eval.client_examples:
        name = cfg.grouping["name"]
        raise InputError.of("eval.client_examples", 0, f"an integer >= 1 with grouping={name}", "it reads the losses")
    if cfg.data["name"] == OWN and (size := cfg.eval.client_test_examples):
        raise InputError.of("eval.client_test_examples", size, "0", "data of one's own have no test split to draw from")
    if cfg.eval.divergence and not layout.sent(recipe.plan(0)):
        raise InputError.of("eval.divergence", "true", "false", "the clients send no trained numbers")


def served(
    recipe: Recipe, layout: Layout, clients: Sequence[ClientSpec], ranks: Sequence[int] | None = None
) -> dict[int, ClientSpec]:
    """Checks the recipe against the module and the clients, and returns client id -> the client with its rank.

    Args:
        recipe: Parts of the method.
        layout: Names and roles of the server's tensors.
        clients: Clients, including the rounds in which their jobs take part.
        ranks: Ranks that the clients get in turn, see :func:`with_capacities`.

    Raises:
        InputError: A part of the recipe can't be used with this module or these clients.
    """
    recipe.check(layout)
    return with_capacities(clients, ranks, layout, recipe)


def refusal(cfg: TrainConfig, federation: Federation) -> str | None:
    """Returns the error message with which a run would be refused at its start, or None if the run would start.

    Args:
        cfg: Configuration of the run.
        federation: Module, clients and data. The module is changed in place. No example is read, so that dummy
            data are enough.
    """
    try:
        assemble(cfg, federation)
    except InputError as error:
        return str(error)
    return None


def with_capacities(
    clients: Sequence[ClientSpec], ranks: Sequence[int] | None, layout: Layout, recipe: Recipe
) -> dict[int, ClientSpec]:
    """Returns client id -> the client with its rank.

    A client that has a rank keeps it. The other clients get the entries of ``ranks`` in turn or, if ``ranks`` is None,
    the adapter's rank.

    Raises:
        InputError: A rank is above the adapter's rank, two clients have the same id, or a part of the recipe doesn't
            support these ranks or numbers of jobs.
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
