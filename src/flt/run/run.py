"""Execution of a run, from the check of the settings to the export of the trained models."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import logging
import os
import shutil
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from filelock import FileLock
from lightning.pytorch.loggers import Logger

from flt.callbacks.checkpoint import Checkpoint
from flt.callbacks.fault_injection import LABEL_FLIP, Faults, hostile, with_flipped_labels
from flt.callbacks.fleet import Fleet
from flt.callbacks.stop import Stop
from flt.client.trainer import LocalTrainer
from flt.client.users_code import check_users_code
from flt.core import cache
from flt.core.errors import InputError, PeerDiedError
from flt.core.files import reported
from flt.core.locks import unlock
from flt.data.clients import ClientSpec
from flt.engines.launcher import launch
from flt.engines.process_group import ProcessGroup
from flt.export.final_models import final_models
from flt.export.folder import is_export, remove_export
from flt.export.places import EXPORTS
from flt.export.write import export, kind
from flt.models.adapters.client_context import set_client
from flt.models.class_names import name_models_inside, output_names
from flt.models.compile import compile_model
from flt.models.module import ClientModule
from flt.run import build, summary
from flt.run.assembly import Setup, assemble
from flt.run.card_facts import base_card, facts_of
from flt.run.federation import Federation
from flt.run.finished import FinishedRun
from flt.run.first_state import server_of
from flt.run.fleet import fleet_of
from flt.run.folder import folder_of, lock, record, tidy
from flt.run.observers import Observers
from flt.run.prefix_cache import prefixed
from flt.run.schema import TrainConfig
from flt.run.stored import OWN, label_of
from flt.run.threads import choose_threads, restored_threads
from flt.server.callback import FedCallback
from flt.server.failure_policy import RoundFailedError
from flt.server.federator import Federator

_log = logging.getLogger(__name__)


@dataclasses.dataclass
class Run:
    """Builds the objects of a run and executes it.

    Attributes:
        cfg: Configuration of the run.
        federation: Module, clients and data.
        lightning: The user's Lightning callbacks.
        own: The user's federation callbacks.
        loggers: The user's loggers. Empty: those of the key ``logger`` are used.
        show: Whether to show the progress, and a table of results at the end.
        processes: Processes of the run. Set once the processes have started.
    """

    cfg: TrainConfig
    federation: Federation
    lightning: Sequence[pl.Callback] = ()
    own: Sequence[FedCallback] = ()
    loggers: Sequence[Logger] = ()
    show: bool = True
    processes: ProcessGroup = dataclasses.field(default_factory=ProcessGroup, init=False)
    _lock: FileLock | None = dataclasses.field(default=None, init=False)  # of the run's folder, in the first process

    def __call__(self) -> FinishedRun:
        """Runs the remaining rounds, exports the models, and prints a summary.

        Raises:
            InputError: The input is wrong. If a new run is refused before the end of round 1, no folder is left.
            RoundFailedError: Too many jobs of a round failed. The run can be resumed.
        """
        settings = build.checked_engine(self.cfg)
        try:
            return launch(self.cfg.devices, settings, self._work)
        finally:
            cache.release(self.cfg.cache.keep)

    def _work(self, processes: ProcessGroup) -> FinishedRun:
        """Executes the run in this process, and reports an error to the other processes."""
        try:
            with restored_threads():
                return self._run(processes)
        except BaseException as error:
            processes.report_failure(error)
            if isinstance(error, PeerDiedError):
                error.folder = str(getattr(self, "folder", ""))
            raise
        finally:
            if self._lock is not None:
                unlock(self._lock)
            cache.release(self.cfg.cache.keep)  # here, too, because this may be a process that the launcher has started

    def _run(self, processes: ProcessGroup) -> FinishedRun:
        began = time.perf_counter()
        self.processes, self.show = processes, self.show and processes.is_first
        self._set_threads()
        cfg, federation = self.cfg, self.federation
        device = processes.device
        original_device = federation.module.device
        setup = assemble(cfg, federation)
        check_users_code(federation.module, self.lightning, setup.settings)
        clients = self._clients(list(setup.clients.values()))
        federation = self.federation = dataclasses.replace(federation, clients=clients)
        federation.module.to(device)
        if cfg.prefix_cache:
            federation = self.federation = self._prefixed(setup, device)
        fleet = fleet_of(cfg, federation, setup)  # before the module is compiled or split over processes
        module = federation.module
        if not isinstance(module, ClientModule):  # flt's own module has got the names when it was built
            name_models_inside(module, output_names(federation.class_names().values()))
        if cfg.compile:
            compile_model(module.model if isinstance(module, ClientModule) else module)
        federator = self._federator(setup, fleet)
        exported = self._earlier_export(federator)
        if exported is None:
            self._fit(federator)
        else:
            done = federator.state.rounds
            _log.warning(
                "%s has finished after %d of %d rounds; nothing is left to do", label_of(self.folder), done, cfg.rounds
            )
        path = self._export(federator, exported, setup.adapter)
        # Only the first process evaluates the global model, but a program that runs in all of them reads the metrics.
        history = json.loads(processes.broadcast_from_first(lambda: json.dumps(federator.history)))
        if self.show:
            self._summarise(federator, time.perf_counter() - began)
        if not cfg.model.get("quantise"):  # quantised weights can't be moved to another device
            module.to(original_device)
        own = cfg.data["name"] == OWN
        return FinishedRun(module, self.folder, history, path, cfg.algo, own, self.federation.collate)

    def _export(self, federator: Federator, exported: Path | None, adapter: dict[str, Any]) -> Path:
        """Puts the first model into the module. The first process writes all models, unless they have been written."""
        federation, models = self.federation, final_models(federator)
        module = federation.module
        federator.engine.local_trainer.load(federator.state, models[0].gid, models[0].head)
        federator.engine.local_trainer.put(models[0].tensors)  # includes a client's private tensors
        federator.engine.local_trainer.buffers.put(models[0].buffers)
        if models[0].data is not None:
            set_client(federator.engine.local_trainer.client_aware, models[0].data)
        module.eval()
        card = base_card(self.cfg, federation, adapter)
        about = (federator.server.layout, federator.state, self.folder, card, models)

        def written() -> str:
            facts = facts_of(self.cfg, federation, adapter, federator.history[-1])
            return str(export(module, *about, self.cfg.export.base, federation.preprocessor, federation.inputs, facts))

        with reported("export", self.folder.name, "a folder that stays and can be written"):
            return Path(self.processes.broadcast_from_first(lambda: str(exported or written())))

    def _set_threads(self) -> None:
        """Sets the number of torch's threads to the configured number.

        If a new run leaves the number open, the first process chooses it. The chosen number is saved in the run's
        configuration, so that a resume uses the same number: rounding depends on this number.
        """
        cfg = self.cfg
        if cfg.threads is None and cfg.resume is None:
            asked = (self.federation, build.engine_settings(cfg), cfg.batch_size, self.processes.device)
            chosen = int(self.processes.broadcast_from_first(lambda: str(choose_threads(*asked))))
            self.cfg = dataclasses.replace(cfg, threads=chosen)
        if self.cfg.threads is not None:
            torch.set_num_threads(self.cfg.threads)

    def _clients(self, clients: list[ClientSpec]) -> list[ClientSpec]:
        """Returns the clients. With ``faults.attack=label_flip``, the hostile clients get wrong labels."""
        faults, seed = self.cfg.faults, self.cfg.seed
        if faults.attack != LABEL_FLIP:
            return clients
        return with_flipped_labels(clients, hostile(faults, seed, [client.id for client in clients]))

    def _prefixed(self, setup: Setup, device: torch.device) -> Federation:
        """Returns the federation with cached activations. The first process computes them, and the others read them."""
        arguments = (self.federation, setup.layout, self.cfg, device, self.show)
        if self.processes.is_first:
            federation = prefixed(*arguments)
        self.processes.broadcast_from_first(str)  # the others wait here for the first process
        return federation if self.processes.is_first else prefixed(*arguments)

    def _earlier_export(self, federator: Federator) -> Path | None:
        """Returns the export of a run that had already finished, or None. The first process decides for all."""
        path = self.processes.broadcast_from_first(lambda: str(earlier_export(federator, self.cfg.export.base) or ""))
        return Path(path) if path else None

    def _fit(self, federator: Federator) -> None:
        """Removes an older export and runs the remaining rounds. If a new run has wrong input, removes its folder."""
        for name in EXPORTS if self.processes.is_first else ():
            remove_export(self.folder / name)
            if os.path.lexists(self.folder / name) and not (self.folder / name).is_dir():
                raise InputError.of("resume", f"{self.folder.name}/{name}", "a folder that flt wrote, or nothing")
        try:
            federator.fit()
        except InputError as error:
            resumable = isinstance(error, RoundFailedError)  # another attempt may succeed
            if not federator.state.rounds and not resumable:
                self._remove_new_folder()
            raise

    def _remove_new_folder(self) -> None:
        """Removes the folder of a new run that is refused. The folder of a resumed run stays."""
        if self.cfg.resume is None and self.processes.is_first:
            shutil.rmtree(self.folder, ignore_errors=True)
            with contextlib.suppress(OSError):  # fails if the folders hold other runs
                self.folder.parent.rmdir()
                self.folder.parent.parent.rmdir()

    def _federator(self, setup: Setup, fleet: Fleet | None = None) -> Federator:
        """Claims the run's folder and builds the federator. If the engine refuses a new run, removes its folder."""
        cfg, federation, clients = self.cfg, self.federation, {c.id: c for c in self.federation.clients}
        server, state = server_of(cfg, federation, setup)
        # The run's folder is created only here, after all checks above have passed.
        self.folder = Path(self.processes.broadcast_from_first(self._claim))
        local_trainer = LocalTrainer(
            federation.module, setup.layout, setup.recipe, setup.settings, server.base, federation.collate,
            self.lightning, (), self.folder / "fits", federation.heads,
        )  # fmt: skip
        try:
            engine = build.engine(cfg, local_trainer, clients, self.processes, self._record_engine)
        except InputError:
            self._remove_new_folder()
            raise
        faults = Faults(cfg.faults, cfg.seed, list(clients))
        federator = Federator(
            server, clients, engine, setup.sampler, (), cfg.rounds, cfg.seed, state, (faults,), setup.failure_policy,
            fleet,
        )  # fmt: skip
        observers = Observers(cfg, federation, self.folder, self.processes, self.own, self.loggers, self.show)
        observers.attach(federator, faults, fleet)
        return federator

    def _claim(self) -> str:
        """Takes the lock of the run's folder, so that no other process can train the run. Returns the folder."""
        folder, root = folder_of(self.cfg), self.cfg.root if self.cfg.resume is None else None
        self._lock = lock(folder, root)
        tidy(folder, root)
        return str(folder)

    def _record_engine(self, engine: dict[str, Any]) -> None:
        """Writes the engine's own choices to the saved configuration, so that a resume uses the same settings."""
        if self.processes.is_first:
            record(self.folder, dataclasses.replace(self.cfg, engine=engine))

    def _summarise(self, federator: Federator, elapsed: float) -> None:
        """Prints the summary of the finished run."""
        counts = [len(client.data) for client in self.federation.clients]
        jobs = len(federator.updates) or sum(counts)  # updates is empty if the run had already finished
        worst = summary.worst_of(jobs, several=max(counts) > 1)
        logdir = self.cfg.root if self.loggers or "tensorboard" in self.cfg.logger else None
        further = summary.next_steps(self.folder, self.federation.kind, self.cfg.report)
        summary.render(federator.history, self.folder, elapsed, logdir=logdir, worst=worst, further=further)


def earlier_export(federator: Federator, base: str) -> Path | None:
    """Returns the folder of an existing export if the run has finished, else None.

    Args:
        federator: Federator with the state and the callbacks of the run.
        base: Value of ``export.base``. The export must be of the kind that this value selects.
    """
    stops = [callback for callback in federator.callbacks if isinstance(callback, Stop)]
    finished = federator.state.rounds >= federator.rounds or any(stop.reason(federator.history) for stop in stops)
    checkpoint = next(callback for callback in federator.callbacks if isinstance(callback, Checkpoint))
    path = checkpoint.folder.parent / kind(federator.server.layout, federator.state, base)
    return path if finished and is_export(path) else None
