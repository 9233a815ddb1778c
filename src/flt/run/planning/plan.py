"""Plan of a run: what it would cost, or why it would be refused.

The messages are those of a dry run: the run's own server, codec and clients, with fits that train nothing.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from flt.algorithm.selection.self_pruning import SelfPruning
from flt.callbacks.fault_injection import Faults
from flt.client.trainer import LocalTrainer
from flt.client.users_code import check_users_code
from flt.core.errors import InputError
from flt.core.files import last_name
from flt.core.memory import resident_memory
from flt.engines.serial import SerialEngine
from flt.engines.sharded import ShardedSettings, check_strategy
from flt.export.final_models import final_models
from flt.export.write import kind
from flt.protocol.layout import Layout
from flt.protocol.messages import Plan
from flt.run import build
from flt.run.assembly import Setup, assemble
from flt.run.federation import Federation
from flt.run.first_state import server_of
from flt.run.fleet import fleet_of
from flt.run.planning.advice import notes, warnings_of
from flt.run.planning.dry_trainer import DryTrainer
from flt.run.planning.memory import FLOAT, disk, jobs_at_once, memory
from flt.run.planning.outcome import ClientPlan, RoleParameters, RunPlan
from flt.run.planning.sizes import Size
from flt.run.planning.timing import seconds
from flt.run.planning.traffic import RoundTraffic, Traffic
from flt.run.schema import TrainConfig
from flt.run.stored import OWN
from flt.run.threads import choose_threads, restored_threads
from flt.server.federator import Federator

PATHS = ("file", "hub")
"""Choices of data and models that have no name of their own."""
ROLES = {"adapter": ("A", "B", "adapter"), "head": ("head",), "base": ("base",)}
"""Role in a plan -> roles of tensors in a layout."""


def plan_run(cfg: TrainConfig, federate: Callable[[], Federation], trial: bool = False, show: bool = False) -> RunPlan:
    """Returns the plan of a run. No file is written, apart from caches of data and models.

    Args:
        cfg: Configuration of the run.
        federate: Function that loads the module and the data.
        trial: Whether to time a few steps on this machine.
        show: Whether to show the progress on standard error.
    """
    refused, federation, setup = list[str](), None, None
    settings = _tried(refused, lambda: build.checked_engine(cfg))
    federation = _tried(refused, federate)
    if federation is not None:
        threads = _threads(cfg, federation, settings) if trial and settings is not None else None
        setup = _tried(refused, lambda: _assembled(cfg, federation, settings))
    if refused or federation is None or setup is None:
        return RunPlan(_title(cfg), tuple(refused))
    try:
        return _Planned(cfg, dataclasses.replace(federation, clients=list(setup.clients.values())), setup, settings)(
            threads, show
        )
    except InputError as error:  # such as a budget of bytes that is too small for the head
        return RunPlan(_title(cfg), (str(error),))


def _tried(refused: list[str], work: Callable[[], Any]) -> Any:
    """Returns the result of a function, or None if it refuses the input. The reason is then added to ``refused``."""
    try:
        return work()
    except InputError as error:
        refused.append(str(error))
        return None


def _assembled(cfg: TrainConfig, federation: Federation, settings: Any) -> Setup:
    setup = assemble(cfg, federation)
    check_users_code(federation.module, (), setup.settings)
    if isinstance(settings, ShardedSettings):
        check_strategy(settings.strategy, setup.recipe)
    return setup


def _threads(cfg: TrainConfig, federation: Federation, settings: Any) -> int:
    """Returns the number of threads that the run would use."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    with restored_threads():
        return cfg.threads or choose_threads(federation, settings, cfg.batch_size, device)


def _title(cfg: TrainConfig) -> str:
    data = "own data" if cfg.data["name"] == OWN else _named(cfg.data)
    return f"{cfg.name} on {data} with {_named(cfg.model)}"


def _named(section: Mapping[str, Any]) -> str:
    """Returns the name of data or of a model. Of a file, a folder or a hub id, its last name is returned."""
    named = section["path"] if section["name"] in PATHS and section.get("path") else section["name"]
    return str(last_name(named))


@dataclasses.dataclass(frozen=True)
class _Planned:
    """A run that nothing refuses so far."""

    cfg: TrainConfig
    federation: Federation
    setup: Setup
    settings: Any

    def __call__(self, threads: int | None, show: bool) -> RunPlan:
        """Returns the plan.

        Args:
            threads: Number of threads of the trial. None: there is no trial.
            show: Whether to show the progress.
        """
        built = resident_memory()
        traffic = self._traffic()
        with _progress(show) as progress:
            task = progress.add_task("counting the bytes of each round", total=self.cfg.rounds)
            traffic.watch = lambda done: progress.update(task, completed=done)
            rounds = list(traffic.rounds())
            traffic.trainer.restore()
            if self._prunes:
                rounds = self._with_pruning(rounds)
        federator, trainer = traffic.federator, traffic.trainer
        plans = list(dict.fromkeys(dataclasses.replace(one.plan, lr_factor=1.0) for one in rounds))
        jobs = jobs_at_once(self.settings, max(one.jobs for one in rounds))
        planned = RunPlan(
            _title(self.cfg),
            parameters=parameters(self.setup.layout, plans),
            rounds=tuple(rounds),
            clients=tuple(self._client(traffic, number) for number in sorted(federator.clients)),
            memory=memory(federator, trainer, plans, jobs, built),
            disk=disk(federator, self._exported(federator), self.cfg.checkpoint.keep),
            seconds=self._seconds(traffic, plans, rounds, threads) if threads else {},
        )
        advice = warnings_of(planned, self.cfg), notes(planned, self.cfg, self.setup.recipe, trainer)
        return dataclasses.replace(planned, warnings=advice[0], notes=advice[1])

    @property
    def _prunes(self) -> bool:
        selection = self.setup.recipe.selection
        return isinstance(selection, SelfPruning) and selection.gamma < 1

    def _traffic(self, shrinks: bool = False) -> Traffic:
        """Returns the simulation of a dry run."""
        cfg, federation, setup = self.cfg, self.federation, self.setup
        fleet = fleet_of(cfg, federation, setup)
        server, state = server_of(cfg, federation, setup)
        trainer = DryTrainer(
            federation.module, setup.layout, setup.recipe, setup.settings, server.base, federation.collate,
            heads=federation.heads,
        )  # fmt: skip
        trainer.shrinks = shrinks
        faults, engine = Faults(cfg.faults, cfg.seed, list(setup.clients)), SerialEngine(trainer, setup.clients)
        federator = Federator(
            server, setup.clients, engine, setup.sampler, [faults], cfg.rounds, cfg.seed, state, (faults,),
            setup.failure_policy,
        )  # fmt: skip
        return Traffic(federator, trainer, fleet=fleet)

    def _with_pruning(self, rounds: Sequence[RoundTraffic]) -> list[RoundTraffic]:
        """Returns the rounds with the least bytes that they have if each client prunes itself in each of its fits."""
        pruning = self._traffic(shrinks=True)
        pruned = list(pruning.rounds())
        pruning.trainer.restore()
        return [
            dataclasses.replace(one, down=_from(least.down, one.down), up=_from(least.up, one.up))
            for one, least in zip(rounds, pruned, strict=True)
        ]

    def _client(self, traffic: Traffic, number: int) -> ClientPlan:
        client, plan = traffic.federator.clients[number], self.setup.recipe.plan(0)
        return ClientPlan(
            number,
            client.rank if self.setup.layout.layers else None,
            len(client.data),
            sum(job.examples for job in client.data),
            sum(traffic.trainer.steps(plan, job) for job in client.data),
            traffic.fits[number],
            traffic.down[number],
            traffic.up[number],
        )

    def _exported(self, federator: Federator) -> dict[str, int]:
        """Returns name of the export's folder -> its bytes."""
        layout, state, models = federator.server.layout, federator.state, final_models(federator)
        name = kind(layout, state, self.cfg.export.base)
        if name == "model":
            return {name: len(models) * FLOAT * _numbers(self.setup.layout, ("head", "base"))}
        changed = sum(math.prod(layout.entries[weight].shape) for weight in state.base.changed())
        return {name: FLOAT * (changed + sum(tensor.numel() for model in models for tensor in model.tensors.values()))}

    def _seconds(
        self, traffic: Traffic, plans: Sequence[Plan], rounds: Sequence[RoundTraffic], threads: int
    ) -> dict[str, float]:
        """Times a few steps of real fits, on the device on which the run would train."""
        module, setup, dry = self.federation.module, self.setup, traffic.trainer
        before, device = module.device, torch.device("cuda" if torch.cuda.is_available() else "cpu")
        with restored_threads():
            torch.set_num_threads(threads)
            module.to(device)
            trainer = LocalTrainer(
                module, setup.layout, setup.recipe, setup.settings, dry.base, dry.collate, heads=self.federation.heads
            )
            try:
                return seconds(self.cfg, self.federation, traffic, trainer, self.settings, plans, rounds)
            finally:
                module.to(before)


def parameters(layout: Layout, plans: Sequence[Plan]) -> dict[str, RoleParameters]:
    """Returns role -> its parameters, and how many of them are trained and sent under these plans."""
    trained = {name for plan in plans for name in layout.names(plan.train)}
    sent = {name for plan in plans for name in layout.sent(plan)}
    found = {}
    for role, kinds in ROLES.items():
        numbers = {name: math.prod(layout.entries[name].shape) for name in layout.names(kinds)}
        counts = [sum(numbers[name] for name in numbers if name in chosen) for chosen in (numbers, trained, sent)]
        found[role] = RoleParameters(*counts)
    return found


def _numbers(layout: Layout, roles: Sequence[str]) -> int:
    return sum(math.prod(layout.entries[name].shape) for name in layout.names(roles))


def _from(least: Size, size: Size) -> Size:
    return Size(size.bytes, min(least.least, size.least), size.most)


def _progress(show: bool) -> Progress:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    return Progress(*columns, console=Console(stderr=True, quiet=not show), disable=not show, transient=True)
