"""Evaluation of the resident module as it is, and the Trainers and data loaders of evaluations and fits."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.callbacks import LambdaCallback
from torch.utils.data import DataLoader, Dataset

from flt.client.isolation import buffers_kept
from flt.client.loader import loader
from flt.client.placement import OneDevice
from flt.client.quiet_trainer import quiet_trainer
from flt.client.settings import LocalSettings
from flt.client.shared_logger import SharedLogger
from flt.client.users_code import overrides, silence_bars, users_code
from flt.core.quiet import keyboard_interrupts_pass, quiet, single_process, without_fast_path
from flt.models.adapters.client_context import BatchNotifier, client_aware_modules
from flt.models.module import ClientModule

Watch = Callable[[int, int], None]
"""Function called after each batch of an evaluation: (number of finished batches, number of all batches)."""


class Evaluator:
    """Evaluates the resident module, the module that stays on its device.

    Args:
        module: The resident LightningModule.
        settings: Settings of the fits and evaluations.
        collate: Function that builds a batch from a list of examples. If None, torch's default is used.
        loggers: Loggers of the Trainer in every fit and evaluation.
        root: Folder in which the user's callbacks may write. If None, Lightning uses the working directory.
    """

    def __init__(
        self,
        module: pl.LightningModule,
        settings: LocalSettings,
        collate: Callable[[list[Any]], Any] | None = None,
        loggers: Sequence[SharedLogger] = (),
        root: Path | None = None,
    ) -> None:
        self.module, self.settings, self.collate, self.loggers, self.root = module, settings, collate, loggers, root
        self.own_module = isinstance(module, ClientModule)  # flt's own
        self.placement = OneDevice()
        self.client_aware = client_aware_modules(module)

    def evaluate(self, dataset: Dataset, watch: Watch | None = None) -> dict[str, float]:
        """Returns the metrics that ``validation_step`` logs, or {} if there is no such method or no example.

        Buffers that the evaluation changes or makes are put back.

        Args:
            dataset: The examples.
            watch: Called after each batch with the number of finished batches and the number of all batches.
        """
        if len(dataset) == 0 or not overrides(self.module, "validation_step"):  # type: ignore[arg-type]  # has a length
            return {}

        def report(trainer: pl.Trainer, module: pl.LightningModule, out: Any, batch: Any, done: int, *_: int) -> None:
            if watch is not None:
                watch(done + 1, int(trainer.num_val_batches[0]))

        with (
            quiet(), single_process(), keyboard_interrupts_pass(), without_fast_path(), users_code(self.module),
            buffers_kept(self.module),
        ):  # fmt: skip
            loggers = [logger.for_evaluation() for logger in self.loggers]  # a module's validation_step may draw
            notifier = [BatchNotifier(self.client_aware)] if self.client_aware else []
            watching = LambdaCallback(setup=silence_bars, on_validation_batch_end=report)
            trainer = self.trainer([watching, *notifier], loggers)
            results = trainer.validate(self.module, self.loader(dataset, None), verbose=False)
        return {key: float(value) for key, value in results[0].items()}

    def trainer(
        self,
        callbacks: list[pl.Callback],
        loggers: list[SharedLogger],
        placement: OneDevice | None = None,
        **length: int,
    ) -> pl.Trainer:
        """Returns a new Trainer that prints nothing.

        Args:
            callbacks: The Trainer's callbacks.
            loggers: The Trainer's loggers.
            placement: Devices and processes of the fit. If None, the module's device and only this process are used.
            length: Arguments of the Trainer that set the length of the fit. They override the settings.
        """
        return quiet_trainer(
            self.module.device,
            callbacks,
            loggers,
            precision=self.settings.precision,
            gradient_clip_val=self.settings.clip,
            # A fit could not use what an evaluation makes in inference mode: weights gathered from all processes, or
            # the states of a user's metrics.
            inference_mode=self.own_module and not self.placement.needs_all_processes,
            default_root_dir=self.root,
            **{"accumulate_grad_batches": self.settings.accumulate, **length},
            **(placement or OneDevice()).arguments(self.module),
        )

    def loader(self, dataset: Dataset, seed: int | None) -> DataLoader:
        """Returns a data loader; see :func:`flt.client.loader.loader`."""
        return loader(dataset, self.settings, self.collate, seed)
