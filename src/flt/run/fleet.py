"""Simulated devices of a run: whom they let take part, the ranks that they allow, and the simulated clock."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from flt.algorithm.recipe import Recipe
from flt.callbacks.fleet import Fleet
from flt.client.fit_cost import FitCost
from flt.core.errors import InputError
from flt.core.formatting import size
from flt.data.clients import ClientSpec, JobData
from flt.data.samplers import lengths_of
from flt.protocol.layout import Layout
from flt.run import build
from flt.run.federation import Federation
from flt.run.schema import TrainConfig
from flt.server.client_sampling import FixedSize, Poisson
from flt.server.federator import Sampler
from flt.server.fleet.clock import Clock
from flt.server.fleet.config import fleet_settings
from flt.server.fleet.device import Device
from flt.server.fleet.sampler import AvailableClients, over_selected

if TYPE_CHECKING:
    from flt.run.assembly import Setup


@dataclasses.dataclass(frozen=True)
class Devices:
    """The devices of a run's clients.

    Attributes:
        of: Client -> its device.
        clock: Decides whose updates a round takes.
        sampler: Draws the clients of each round from those that are available.
    """

    of: dict[int, Device]
    clock: Clock
    sampler: Sampler

    @property
    def loses_clients(self) -> bool:
        """True if a round can have fewer updates than the cohort's size."""
        return self.clock.deadline is not None or any(device.may_be_absent for device in self.of.values())


def devices_of(cfg: TrainConfig, clients: Sequence[int], sampler: FixedSize | Poisson) -> Devices | None:
    """Returns the devices of the clients. None: no devices are simulated.

    Args:
        cfg: Configuration of the run.
        clients: Ids of the clients.
        sampler: Sampler of the wanted clients of a round.

    Raises:
        InputError: A setting of the fleet is wrong, or doesn't fit the cohort.
    """
    settings = fleet_settings(cfg.fleet)
    if settings is None:
        return None
    devices = settings.devices(clients, cfg.seed)
    draw = over_selected(sampler, settings.over_selection, len(clients))
    wanted = sampler.size if isinstance(sampler, FixedSize) and settings.over_selection else None
    absent = any(device.may_be_absent for device in devices.values())
    chosen = AvailableClients(draw, devices, cfg.seed) if absent else draw
    return Devices(devices, Clock(cfg.seed, settings.deadline, wanted), chosen)


def fleet_of(cfg: TrainConfig, federation: Federation, setup: Setup) -> Fleet | None:
    """Returns the callback that simulates the devices. None: no devices are simulated.

    Args:
        cfg: Configuration of the run.
        federation: Module with its adapter attached, on its device, and the clients.
        setup: Checked objects of the run.

    Raises:
        InputError: The operations of a fit can't be counted.
    """
    if setup.fleet is None:
        return None
    cost = _cost(cfg, federation.module, setup.layout, setup.recipe, federation)
    return Fleet(setup.fleet.of, cost, setup.fleet.clock)


def with_fleet_ranks(cfg: TrainConfig, federation: Federation) -> tuple[TrainConfig, Federation]:
    """Returns the configuration and the federation with the largest ranks that the devices' memory allows.

    If clients may have different ranks, each gets its own. If all train all components, the adapter gets the smallest
    of these ranks, and keeps its scale alpha / rank. No rank is above ``adapter.rank``.

    Args:
        cfg: Configuration of the run, with ``ranks=fleet``.
        federation: Module without an adapter, clients and data. The module's weights don't change.

    Raises:
        InputError: A client's memory isn't enough for rank 1, or the adapter has no rank.
    """
    settings, shared = fleet_settings(cfg.fleet), [*federation.module.parameters(), *federation.module.buffers()]
    assert settings is not None, "the configuration has been checked"
    trial = copy.deepcopy(federation.module, {id(tensor): tensor for tensor in shared})
    trains = [parameter.requires_grad for parameter in federation.module.parameters()]
    layout = build.attach(cfg, trial)
    for parameter, train in zip(federation.module.parameters(), trains, strict=True):
        parameter.requires_grad_(train)
    if not layout.layers:
        raise InputError.of("ranks", "fleet", "null", "the adapter has no components to go without")
    recipe = build.recipe(cfg, len(federation.task_heads()), federation.tasks())
    cost = _cost(cfg, trial, layout, recipe, federation)
    devices = settings.devices([client.id for client in federation.clients], cfg.seed)
    ranks = {c.id: _largest(cost, c, devices[c.id], recipe, layout, _trains(cfg, recipe)) for c in federation.clients}
    if not recipe.selection.holds_all:
        clients = [dataclasses.replace(c, rank=c.rank or ranks[c.id]) for c in federation.clients]
        return dataclasses.replace(cfg, ranks=None), dataclasses.replace(federation, clients=clients)
    adapter, least = dict(cfg.adapter), min(ranks.values())
    adapter["alpha"], adapter["rank"] = adapter["alpha"] * least / adapter["rank"], least
    return dataclasses.replace(cfg, ranks=None, adapter=adapter), federation


def _largest(
    cost: FitCost, client: ClientSpec, device: Device, recipe: Recipe, layout: Layout, trains: set[tuple[str, ...]]
) -> int:
    """Returns the largest rank at which all fits of a client fit into its memory."""
    most = max(layer.rank for layer in layout.layers.values())
    measures = recipe.importance.source == "clients"

    def needed(rank: int) -> int:
        held = most if recipe.selection.freezes else rank
        return max(cost.memory(train, job, held, rank, measures) for train in trains for job in client.data)

    fitting = [rank for rank in range(1, most + 1) if device.memory is None or needed(rank) <= device.memory]
    if not fitting:
        key, allowed = f"memory of client {client.id}", f"at least {size(needed(1))} for rank 1"
        raise InputError.of(key, size(device.memory or 0), f"{allowed}, with ranks=fleet")
    return max(fitting)


def _cost(cfg: TrainConfig, module: Any, layout: Layout, recipe: Recipe, federation: Federation) -> FitCost:
    jobs = [job for client in federation.clients for job in client.data]
    arguments = build.local_settings(cfg), federation.collate, max(jobs, key=_longest), sorted(_trains(cfg, recipe))
    return FitCost(module, layout, *arguments)


def _trains(cfg: TrainConfig, recipe: Recipe) -> set[tuple[str, ...]]:
    """Returns what the plans of the rounds train: the roles of tensors."""
    return {recipe.plan(done).train for done in range(cfg.rounds)}


def _longest(job: JobData) -> int:
    lengths = lengths_of(job.training_set)
    return job.examples if lengths is None else int(max(lengths))
