"""Logger that the fits of all clients share."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import Logger
from lightning.pytorch.loggers.logger import DummyLogger


class SharedLogger(Logger):
    """Logger that passes the metrics of all clients' fits to one logger, with one step count for all fits.

    Without this class, the steps would begin at 0 in every fit, because every fit has its own Trainer.

    Args:
        logger: The wrapped logger, to which metrics are passed: the user's logger, or the run's own logger.
        step: Number of optimiser steps that all earlier fits took together.
        forwards: If True, metrics are passed to the wrapped logger. If False, metrics are dropped, and a fit can only
            use the wrapped logger's ``experiment`` and its own methods, such as ``log_image``.
    """

    def __init__(self, logger: Logger, step: int = 0, forwards: bool = True) -> None:
        self.logger, self.step, self.forwards = logger, step, forwards

    @property
    def name(self) -> str | None:
        """Name of the wrapped logger."""
        return self.logger.name

    @property
    def version(self) -> int | str | None:
        """Version of the wrapped logger."""
        return self.logger.version

    @property
    def save_dir(self) -> str | None:
        """Always None. The callbacks of a fit then write to the Trainer's ``default_root_dir``."""
        return None

    @property
    def log_dir(self) -> str | None:
        """Folder of the wrapped logger, in which the user's module may write. None if the logger has none."""
        return self.logger.log_dir

    @property
    def experiment(self) -> Any:
        """The wrapped logger's ``experiment``, such as TensorBoard's SummaryWriter. None if the logger has none."""
        return getattr(self.logger, "experiment", None)

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        """Passes metrics to the wrapped logger. The step is counted over all fits."""
        if self.forwards:
            self.logger.log_metrics(metrics, step=self.step + (step or 0))

    def log_hyperparams(self, params: Any, *args: Any, **kwargs: Any) -> None:
        """Does nothing, because the run logs the hyperparameters itself."""

    def for_evaluation(self) -> SharedLogger:
        """Returns a logger for an evaluation, whose metrics flt logs itself."""
        return SharedLogger(self.logger, self.step, forwards=False)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or name == "logger":  # a copy that is being made has no logger yet
            raise AttributeError(name)
        return getattr(self.logger, name)


class SilentLogger(DummyLogger):
    """Logger of the processes that write nothing: all but the first.

    Args:
        folder: Folder of the run, in which a module may look for files of the first process.
    """

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self._folder = str(folder)

    @property
    def log_dir(self) -> str:
        """Folder of the run."""
        return self._folder
