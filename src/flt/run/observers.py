"""Code that builds the callbacks of a run and restores the run's last checkpoint."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

from lightning.pytorch.loggers import Logger

from flt.algorithm.grouping.bandit import BanditGrouping
from flt.callbacks.active_components import RankBudget
from flt.callbacks.bandit_choices import BanditChoices
from flt.callbacks.bit_widths import BitWidths
from flt.callbacks.checkpoint import Checkpoint
from flt.callbacks.client_tests import ClientTests
from flt.callbacks.clusters import Clusters
from flt.callbacks.communication import Communication
from flt.callbacks.divergence import Divergence
from flt.callbacks.evaluate import Evaluate
from flt.callbacks.failures import Failures
from flt.callbacks.fault_injection import Faults
from flt.callbacks.fleet import Fleet
from flt.callbacks.interrupts import Interrupts
from flt.callbacks.loggers import Loggers
from flt.callbacks.metrics_csv import MetricsCsv
from flt.callbacks.progress import Progress
from flt.callbacks.received_models import ReceivedModels
from flt.callbacks.record import Record
from flt.callbacks.selection_overlap import SelectionOverlap
from flt.callbacks.stop import Stop
from flt.callbacks.task_changes import TaskChanges, TaskDetection
from flt.callbacks.task_map import TaskMap
from flt.callbacks.timer import Timer
from flt.callbacks.transfer_shares import TransferShares
from flt.callbacks.untrained_layers import UntrainedLayers
from flt.client.shared_logger import SharedLogger, SilentLogger
from flt.data.training_sample import training_samples
from flt.engines.process_group import ProcessGroup
from flt.models.adapters.c2a_settings import is_tested_with_counts
from flt.models.module import ClientModule
from flt.run.command_line import command_of
from flt.run.compose import flat
from flt.run.federation import Federation
from flt.run.folder import record, record_classes
from flt.run.loggers import build_loggers
from flt.run.resume import fixed_settings
from flt.run.schema import TrainConfig
from flt.run.stored import OWN
from flt.server.callback import FedCallback
from flt.server.client_state_store import ClientStateStore
from flt.server.federator import Federator


@dataclasses.dataclass(frozen=True)
class Observers:
    """Builds the callbacks of a run.

    Only the first process calls all callbacks, shows progress, and writes logs and checkpoints. The other processes
    call the callbacks that inject faults, count bytes and handle signals. If the model is split over all processes, the
    other processes take part in evaluation, too.

    Attributes:
        cfg: Configuration of the run.
        federation: Module, clients and data.
        folder: Folder of the run.
        processes: Processes of the run.
        own: The user's federation callbacks.
        loggers: The user's loggers. Empty: those of the key ``logger`` are used.
        show: Whether to show the progress.
    """

    cfg: TrainConfig
    federation: Federation
    folder: Path
    processes: ProcessGroup
    own: Sequence[FedCallback]
    loggers: Sequence[Logger]
    show: bool

    def attach(self, federator: Federator, faults: Faults, fleet: Fleet | None = None) -> None:
        """Sets the callbacks of a federator, and restores its last checkpoint if there is one."""
        cfg, federation = self.cfg, self.federation
        tasks = federation.tasks()
        evaluate = self._evaluate(tasks)
        checkpoint = Checkpoint(self.folder / "checkpoints", cfg.checkpoint.keep, fixed_settings(cfg))
        # At the start of a round, Timer starts its clock and ReceivedModels evaluates. Timer comes first, so that the
        # measured time includes this evaluation.
        received = [ReceivedModels(evaluate)] if cfg.eval.distributed else []
        counts = cfg.eval.client_labels if is_tested_with_counts(cfg.adapter) else ["own"]
        tests = [ClientTests(federation.client_tests, counts)] if federation.client_tests else []
        counting = [Communication(), BitWidths(), *([fleet] if fleet else [])]
        counting += [Divergence()] if cfg.eval.divergence else []
        monitors = [evaluate, *tests, Clusters(tasks), SelectionOverlap(), RankBudget(), *counting, Timer(), *received]
        stop = Stop(cfg.stop.accuracy, cfg.stop.patience, cfg.stop.simulated_hours)
        last = [Interrupts(self.processes.is_first)]  # handles signals until the last checkpoint has been written
        monitors += self._task_monitors(federator, tasks)
        first = [TaskChanges(federator.clients, tasks), faults]
        federator.callbacks = [*first, *monitors, Failures(), UntrainedLayers(), stop, *self.own, checkpoint, *last]
        # if all processes train every client together, only the first process writes the client states
        writes = self.processes.is_first or not federator.engine.replicated
        federator.client_states = ClientStateStore(checkpoint.folder, writes, checkpoint.run)
        checkpoint.restore(federator)
        self.processes.assert_same_round(federator.state.rounds)
        if not self.processes.is_first:
            # a model that is split over all processes can only be evaluated by all of them together
            together = federator.engine.local_trainer.placement.needs_all_processes
            evaluating = [evaluate, *tests, *received] if together else []
            federator.callbacks = [*first, *evaluating, *counting, *last]
            federator.engine.local_trainer.loggers = self._trainer_loggers(federator, [SilentLogger(self.folder)])
            return
        # A resume may change settings such as rounds. They are saved only now that restore() has checked them.
        record(self.folder, cfg)
        record_classes(self.folder, federation.class_names())
        loggers = self._loggers(federator)
        federator.engine.local_trainer.loggers = self._trainer_loggers(federator, loggers.loggers)
        recorded = Record(self.folder, tasks, command_of(cfg), str(self.processes.device))
        sinks = [MetricsCsv(self.folder / "metrics.csv"), recorded, TaskMap(self.folder, tasks), loggers]
        federator.callbacks = [*federator.callbacks[:-2], *sinks, *self._progress(), checkpoint, *last]

    def _evaluate(self, tasks: dict[tuple[int, int], str]) -> Evaluate:
        """Returns the callback that evaluates the global models.

        Args:
            tasks: Job -> its task. The mapping changes during the run if jobs change their task.
        """
        federation, sample = self.federation, self.cfg.eval.train_examples
        joint = any(job.parts for job in federation.job_data)
        return Evaluate(
            federation.validation,
            federation.tasks_of_jobs() if joint else tasks,
            self.cfg.eval.every,
            federation.test,
            federation.task_heads(),
            federation.subsets,
            training_samples(federation.clients, sample, self.cfg.seed) if sample else {},
            federation.joint_validation(),
        )

    def _task_monitors(self, federator: Federator, tasks: dict[tuple[int, int], str]) -> list[FedCallback]:
        """Returns the callbacks that watch tasks which come, go or change, and what a bandit or a transfer chooses."""
        found: list[FedCallback] = [TaskDetection(tasks)] if self._is_dynamic(federator) else []
        if isinstance(federator.server.recipe.grouping, BanditGrouping):
            found.append(BanditChoices())
        if federator.server.recipe.transfer.reads_held_out:
            found.append(TransferShares())
        return found

    def _is_dynamic(self, federator: Federator) -> bool:
        """Returns whether tasks come, go or change, or the grouping looks for new tasks."""
        jobs = (job for client in federator.clients.values() for job in client.data)
        return federator.server.recipe.grouping.detects_tasks or any(job.is_temporary or job.change for job in jobs)

    def _trainer_loggers(self, federator: Federator, loggers: Sequence[Logger]) -> list[SharedLogger]:
        """Returns the loggers for the Trainers of a user's module. flt's own module logs nothing and needs none."""
        if isinstance(self.federation.module, ClientModule):
            return []
        steps = int(sum(metrics["clients/steps"] for metrics in federator.history))
        return [SharedLogger(logger, steps, forwards=bool(self.loggers)) for logger in loggers]

    def _loggers(self, federator: Federator) -> Loggers:
        """Returns the callback for the user's loggers. If there are none, those of the key ``logger`` are used."""
        chosen = self.loggers or build_loggers(self.cfg.logger, self.folder, federator.history)
        return Loggers(chosen, flat(self.cfg), self.federation.tasks())

    def _progress(self) -> list[FedCallback]:
        data = "own data" if self.cfg.data["name"] == OWN else self.cfg.data["name"]
        return [Progress(f"{self.cfg.name} on {data}")] if self.show else []
