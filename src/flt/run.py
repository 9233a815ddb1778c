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

from flt import build, runs, summary
from flt.adapters.client_data import stay_at
from flt.callbacks.base import FedCallback
from flt.callbacks.budget import Budget
from flt.callbacks.checkpoint import Checkpoint
from flt.callbacks.clusters import Clusters
from flt.callbacks.communication import Communication
from flt.callbacks.distributed import Distributed
from flt.callbacks.evaluate import Evaluate
from flt.callbacks.loggers import Loggers
from flt.callbacks.metrics_csv import MetricsCsv
from flt.callbacks.precision import Precision
from flt.callbacks.progress import Progress
from flt.callbacks.selected import Selected
from flt.callbacks.server import ServerAggregation
from flt.callbacks.stop import Stop
from flt.callbacks.timer import Timer
from flt.cards import Card
from flt.client import ClientModule
from flt.compiling import compile_model
from flt.config import TrainConfig, flat
from flt.errors import InputError
from flt.export import export, kind
from flt.federation import Federation
from flt.federator import Federator
from flt.models import made_by
from flt.prefixed import prefixed
from flt.quiet import SharedLogger
from flt.site import Site
from flt.start import Start, start

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

    def __call__(self) -> Result:
        """Runs the rounds that are left, exports, and says where things are.

        Raises:
            InputError: Something of the input is wrong. Nothing was written then, unless the mistake is in an update.
        """
        began = time.perf_counter()
        cfg, made = self.cfg, self.made
        if cfg.threads is not None:
            torch.set_num_threads(cfg.threads)
        device = self._device()
        home = made.module.device
        ready = start(cfg, made)
        made = self.made = dataclasses.replace(made, clients=list(ready.clients.values()))
        made.module.to(device)
        if cfg.prefix_cache:
            made = self.made = prefixed(made, ready.layout, cfg, device, self.show)
        if cfg.compile:
            compile_model(made.module.model if isinstance(made.module, ClientModule) else made.module)
        federator = self._federator(ready)
        exported = made_before(federator, cfg.export.base)
        if exported is None:
            self._fit(federator)
        else:
            done = federator.state.rounds
            _log.warning("%s has finished after %d of %d rounds; nothing is left to do", self.folder, done, cfg.rounds)
        models, served = made_by(federator), federator.server.layout
        federator.engine.load(federator.state, models[0].gid, models[0].head)
        federator.engine.site.put(models[0].tensors)  # what a client keeps too
        if models[0].data is not None:
            stay_at(federator.engine.site.told, models[0].data)
        made.module.eval()
        written = (federator.state, self.folder, self._card(), models, cfg.export.base)
        exported = exported or export(made.module, served, *written)
        if self.show:
            summary.render(federator.history, self.folder, time.perf_counter() - began, logdir=cfg.root)
        if not cfg.model.get("quantise"):  # bits that were packed on a device stay there
            made.module.to(home)
        return Result(made.module, federator.history[-1], self.folder, federator.history, exported)

    def _fit(self, federator: Federator) -> None:
        """Runs the rounds that are left, beside no older export; a new run that is refused at once leaves nothing."""
        for name in EXPORTS:
            shutil.rmtree(self.folder / name, ignore_errors=True)
        try:
            federator.fit()
        except InputError:
            if self.cfg.resume is None and not federator.state.rounds:
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
        self.folder = runs.folder_of(cfg)  # the first thing that is written, once all of the above was accepted
        fits = self.folder / "fits"
        site = Site(module, layout, recipe, ready.settings, base, made.collate, self.lightning, (), fits, made.heads)
        evaluate = Evaluate(made.validation, made.tasks(), cfg.eval.every, made.test, made.task_heads(), made.parts)
        engine = build.engine(cfg, site, clients, self._found)
        federator = Federator(server, clients, engine, ready.sampler, (), cfg.rounds, cfg.seed, state)
        checkpoint = Checkpoint(self.folder / "checkpoints", cfg.checkpoint.keep)
        distributed = [Distributed(evaluate)] if cfg.eval.distributed else []  # behind the timer: part of the round
        measured = [evaluate, Clusters(made.tasks()), Selected(), Budget(), Communication(), Precision()]
        monitors = [*measured, Timer(), *distributed]
        stop = Stop(cfg.stop.accuracy, cfg.stop.patience)
        federator.callbacks = [*monitors, stop, *self.own, checkpoint]
        checkpoint.restore(federator)
        runs.record(self.folder, cfg)  # a longer run's rounds, once the checkpoint has agreed to them
        loggers = self._loggers(federator)
        if not isinstance(module, ClientModule):
            steps = int(sum(metrics["clients/steps"] for metrics in federator.history))
            site.loggers = [SharedLogger(logger, steps, forwards=bool(self.loggers)) for logger in loggers.loggers]
        sinks = [MetricsCsv(self.folder / "metrics.csv"), loggers]
        federator.callbacks = [*federator.callbacks[:-1], *sinks, *self._progress(), checkpoint]
        return federator

    def _found(self, engine: dict[str, Any]) -> None:
        """What the engine found out is a part of the run, so that a resume does the same."""
        runs.record(self.folder, dataclasses.replace(self.cfg, engine=engine))

    def _card(self) -> Card:
        module, layers = self.made.module, self.cfg.model.get("adapt_layers", "all")
        classes = module.accuracy.num_classes if isinstance(module, ClientModule) else None
        return Card(self.made.source, self.cfg.adapter, layers, classes)

    def _device(self) -> torch.device:
        if self.cfg.devices > 1:
            raise InputError.of("devices", self.cfg.devices, "1 with engine=serial, which uses one device")
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")

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
