"""One run: everything that a configuration and a federation need to become an adapter in a folder."""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import shutil
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.loggers import Logger, TensorBoardLogger
from lightning.pytorch.loggers.logger import DummyLogger

from flt.callbacks.bit_widths import BitWidths
from flt.callbacks.checkpoint import Checkpoint
from flt.callbacks.clusters import Clusters
from flt.callbacks.communication import Communication
from flt.callbacks.evaluate import Evaluate
from flt.callbacks.failures import Failures
from flt.callbacks.fault_injection import LABEL_FLIP, Faults, hostile, with_flipped_labels
from flt.callbacks.interrupts import Interrupts
from flt.callbacks.loggers import Loggers
from flt.callbacks.metrics_csv import MetricsCsv
from flt.callbacks.progress import Progress
from flt.callbacks.rank_budget import RankBudget
from flt.callbacks.received_models import ReceivedModels
from flt.callbacks.selection_overlap import SelectionOverlap
from flt.callbacks.stop import Stop
from flt.callbacks.timer import Timer
from flt.client.shared_logger import SharedLogger
from flt.client.trainer import LocalTrainer
from flt.core.errors import InputError, PeerDiedError
from flt.core.files import is_path, last_name
from flt.data.clients import ClientSpec
from flt.engines.launcher import FORK, launched
from flt.engines.process_group import ProcessGroup
from flt.export.final_models import made_by
from flt.export.metadata import Card
from flt.export.write import export, kind
from flt.models.adapters.client_context import set_client
from flt.models.compile import compile_model
from flt.models.module import ClientModule
from flt.run import build, summary
from flt.run.assembly import Start, start
from flt.run.compose import flat
from flt.run.federation import Federation
from flt.run.folder import folder_of, record
from flt.run.prefix_cache import prefixed
from flt.run.schema import TrainConfig
from flt.server.aggregation import ServerAggregation
from flt.server.callback import FedCallback
from flt.server.client_state_store import ClientStateStore
from flt.server.failure_policy import RoundFailedError
from flt.server.federator import Federator

EXPORTS = ("adapter", "model")
_log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Result:
    """What a federation yields.

    Attributes:
        module: The global model, on the device that it came from; with several groups or heads that of the first, and
            where clients trained tensors of their own the first client's.
        metrics: Figures of the last round, and of the test split.
        path: The run's folder.
        history: Figures of every round.
        exported: The folder of the adapter, or of the merged model.
    """

    module: pl.LightningModule
    metrics: dict[str, float]
    path: Path
    history: list[dict[str, float]]
    exported: Path


@dataclasses.dataclass
class Run:
    """Puts a run together and lets it go.

    Attributes:
        cfg: The configuration.
        made: Module, clients and data.
        lightning: The user's Lightning callbacks.
        own: The user's callbacks of the federation.
        loggers: The user's loggers; none: TensorBoard's.
        show: Whether to show the progress, and the table at the end.
    """

    cfg: TrainConfig
    made: Federation
    lightning: Sequence[pl.Callback] = ()
    own: Sequence[FedCallback] = ()
    loggers: Sequence[Logger] = ()
    show: bool = True
    processes: ProcessGroup = dataclasses.field(default_factory=ProcessGroup, init=False)

    def __call__(self) -> Result:
        """Runs the rounds that are left, exports, and says where things are.

        Raises:
            InputError: Something of the input is wrong. Nothing was written then, unless the mistake is in an update.
        """
        settings = build.engine_settings(self.cfg)
        if getattr(settings, "strategy", "") == FORK and (self.cfg.threads or 1) > 1:
            why = "a forked process has none of the threads of the one that it comes from"
            raise InputError.of("threads", self.cfg.threads, f"1, or null, with engine.strategy={FORK}", why)
        return launched(self.cfg.devices, settings, self._work)

    def _work(self, processes: ProcessGroup) -> Result:
        """What each process of the run does; where one can't go on, the others hear of it."""
        try:
            return self._run(processes)
        except BaseException as error:
            processes.report_failure(error)
            if isinstance(error, PeerDiedError):
                error.folder = str(getattr(self, "folder", ""))
            raise

    def _run(self, processes: ProcessGroup) -> Result:
        began = time.perf_counter()
        self.processes, self.show = processes, self.show and processes.is_first
        cfg, made = self.cfg, self.made
        if cfg.threads is not None:
            torch.set_num_threads(cfg.threads)
        device = processes.device
        home = made.module.device
        ready = start(cfg, made)
        made = self.made = dataclasses.replace(made, clients=self._clients(list(ready.clients.values())))
        made.module.to(device)
        if cfg.prefix_cache:
            made = self.made = self._prefixed(ready, device)
        if cfg.compile:
            compile_model(made.module.model if isinstance(made.module, ClientModule) else made.module)
        federator = self._federator(ready)
        exported = self._made_before(federator)
        if exported is None:
            self._fit(federator)
        else:
            done = federator.state.rounds
            name = f"{self.folder.parent.name}/{self.folder.name}"
            _log.warning("%s has finished after %d of %d rounds; nothing is left to do", name, done, cfg.rounds)
        if not processes.is_first:
            path = Path(processes.broadcast_from_first(str))
            return Result(made.module, federator.history[-1], self.folder, federator.history, path)
        models = made_by(federator)
        federator.engine.local_trainer.load(federator.state, models[0].gid, models[0].head)
        federator.engine.local_trainer.put(models[0].tensors)  # what a client keeps too
        if models[0].data is not None:
            set_client(federator.engine.local_trainer.client_aware, models[0].data)
        made.module.eval()
        written = (federator.server.layout, federator.state, self.folder, self._card(), models, cfg.export.base)
        path = Path(processes.broadcast_from_first(lambda: str(exported or export(made.module, *written))))
        if self.show:
            summary.render(federator.history, self.folder, time.perf_counter() - began, logdir=cfg.root)
        if not cfg.model.get("quantise"):  # bits that were packed on a device stay there
            made.module.to(home)
        return Result(made.module, federator.history[-1], self.folder, federator.history, path)

    def _clients(self, clients: list[ClientSpec]) -> list[ClientSpec]:
        """The clients, some with wrong labels where that is the attack."""
        faults, seed = self.cfg.faults, self.cfg.seed
        flips = faults.attack == LABEL_FLIP
        return with_flipped_labels(clients, hostile(faults, seed, [its.id for its in clients])) if flips else clients

    def _prefixed(self, ready: Start, device: torch.device) -> Federation:
        """The first process computes what the cache lacks, the others find it there."""
        work = (self.made, ready.layout, self.cfg, device, self.show)
        if self.processes.is_first:
            made = prefixed(*work)
        self.processes.broadcast_from_first(str)
        return made if self.processes.is_first else prefixed(*work)

    def _made_before(self, federator: Federator) -> Path | None:
        """What a finished run has exported, as the first process finds it."""
        found = self.processes.broadcast_from_first(lambda: str(made_before(federator, self.cfg.export.base) or ""))
        return Path(found) if found else None

    def _fit(self, federator: Federator) -> None:
        """Runs the rounds that are left, beside no older export; a new run that is refused at once leaves nothing."""
        for name in EXPORTS if self.processes.is_first else ():
            shutil.rmtree(self.folder / name, ignore_errors=True)
        try:
            federator.fit()
        except InputError as error:
            lasting = isinstance(error, RoundFailedError)  # another attempt may do better
            if self.cfg.resume is None and not federator.state.rounds and self.processes.is_first and not lasting:
                shutil.rmtree(self.folder)
                with contextlib.suppress(OSError):  # others have runs there
                    self.folder.parent.rmdir()
                    self.folder.parent.parent.rmdir()
            raise

    def _federator(self, ready: Start) -> Federator:
        cfg, made, layout, recipe = self.cfg, self.made, ready.layout, ready.recipe
        module, clients = made.module, {client.id: client for client in made.clients}
        weights = {name: parameter.detach() for name, parameter in module.named_parameters()}
        base = {name: weights[name].cpu().clone() for name in recipe.frozen(layout)}
        served, jobs_of = layout.with_heads(made.heads), Counter(job.head for c in made.clients for job in c.data)
        weights |= {served.at(name, head): value for head, own in made.heads.items() for name, value in own.items()}
        server = ServerAggregation(recipe, served, len(made.tasks()), cfg.seed, base, jobs_of)
        state = server.initial(weights)
        self.folder = Path(
            self.processes.broadcast_from_first(lambda: str(folder_of(cfg)))
        )  # the first thing that is written, once all of the above was accepted
        fits = self.folder / "fits"
        local_trainer = LocalTrainer(
            module, layout, recipe, ready.settings, base, made.collate, self.lightning, (), fits, made.heads
        )
        engine = build.engine(cfg, local_trainer, clients, self.processes, self._found)
        faults = Faults(cfg.faults, cfg.seed, list(clients))
        federator = Federator(
            server, clients, engine, ready.sampler, (), cfg.rounds, cfg.seed, state, (faults,), ready.failure_policy
        )
        self._observe(federator, faults)
        return federator

    def _observe(self, federator: Federator, faults: Faults) -> None:
        """Gives a federation its callbacks, and what its last checkpoint holds."""
        cfg, made = self.cfg, self.made
        evaluate = Evaluate(made.validation, made.tasks(), cfg.eval.every, made.test, made.task_heads(), made.parts)
        checkpoint = Checkpoint(self.folder / "checkpoints", cfg.checkpoint.keep)
        distributed = [ReceivedModels(evaluate)] if cfg.eval.distributed else []  # behind the timer: part of the round
        counting = [Communication(), BitWidths()]
        monitors = [
            evaluate,
            Clusters(made.tasks()),
            SelectionOverlap(),
            RankBudget(),
            *counting,
            Timer(),
            *distributed,
        ]
        stop = Stop(cfg.stop.accuracy, cfg.stop.patience)
        last = [Interrupts(self.processes.is_first)]  # behind the checkpoint, which is written until the end
        federator.callbacks = [faults, *monitors, Failures(), stop, *self.own, checkpoint, *last]
        # where all processes train the same, the first one writes it
        writes = self.processes.is_first or not federator.engine.replicated
        federator.client_states = ClientStateStore(checkpoint.folder, writes)
        checkpoint.restore(federator)
        self.processes.assert_same_round(federator.state.rounds)
        if not self.processes.is_first:
            # the first process evaluates, shows and writes; it can't evaluate alone what all have a part of
            together = federator.engine.local_trainer.placement.needs_all_processes
            evaluating = [evaluate, *distributed] if together else []
            federator.callbacks = [faults, *evaluating, *counting, *last]
            federator.engine.local_trainer.loggers = self._trainer_loggers(federator, [DummyLogger()])
            return
        record(self.folder, cfg)  # a longer run's rounds, once the checkpoint has agreed to them
        loggers = self._loggers(federator)
        federator.engine.local_trainer.loggers = self._trainer_loggers(federator, loggers.loggers)
        sinks = [MetricsCsv(self.folder / "metrics.csv"), loggers]
        federator.callbacks = [*federator.callbacks[:-2], *sinks, *self._progress(), checkpoint, *last]

    def _trainer_loggers(self, federator: Federator, loggers: Sequence[Logger]) -> list[SharedLogger]:
        """What a user's module finds as its loggers; flt's own logs nothing by itself."""
        if isinstance(self.made.module, ClientModule):
            return []
        steps = int(sum(metrics["clients/steps"] for metrics in federator.history))
        return [SharedLogger(logger, steps, forwards=bool(self.loggers)) for logger in loggers]

    def _found(self, engine: dict[str, Any]) -> None:
        """What the engine found out is a part of the run, so that a resume does the same."""
        if self.processes.is_first:
            record(self.folder, dataclasses.replace(self.cfg, engine=engine))

    def _card(self) -> Card:
        module, layers = self.made.module, self.cfg.model.get("adapt_layers", "all")
        classes = module.accuracy.num_classes if isinstance(module, ClientModule) else None
        source, folder = self.made.source, last_name(self.made.source) if is_path(self.made.source) else ""
        return Card("" if folder else source, self.cfg.adapter, layers, classes, folder=folder)

    def _loggers(self, federator: Federator) -> Loggers:
        """The user's loggers, or TensorBoard's; rounds that a killed run wrote and no checkpoint has are purged."""
        chosen = list(self.loggers)
        if not chosen:
            parent, done = self.folder.parent, federator.state.rounds
            chosen = [
                TensorBoardLogger(
                    parent.parent, parent.name, self.folder.name, default_hp_metric=False, purge_step=done + 1
                )
            ]
        return Loggers(chosen, flat(self.cfg), self.made.tasks())

    def _progress(self) -> list[FedCallback]:
        return [Progress(f"{self.cfg.name} on {self.cfg.data['name']}")] if self.show else []


def made_before(federator: Federator, base: str) -> Path | None:
    """What a finished run has exported; None where rounds or this kind of export are left to do."""
    stops = [callback for callback in federator.callbacks if isinstance(callback, Stop)]
    finished = federator.state.rounds >= federator.rounds or any(stop.reason(federator.history) for stop in stops)
    checkpoint = next(callback for callback in federator.callbacks if isinstance(callback, Checkpoint))
    path = checkpoint.folder.parent / kind(federator.server.layout, federator.state, base)
    return path if finished and path.is_dir() else None
