"""Loggers that the key ``logger`` names: Lightning's own, with all of their files in the run's folder."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping, Sequence
from pathlib import Path

from lightning.pytorch.loggers import CSVLogger, Logger, TensorBoardLogger
from lightning.pytorch.loggers.csv_logs import ExperimentWriter

from flt.core.errors import InputError
from flt.run.remote_loggers import MlflowRun, WandbRun

LOGGERS = ("tensorboard", "csv", "wandb", "mlflow")
"""Values of the key ``logger``. The package of each of the last two has the same name as the logger."""
EXTRAS = {"wandb": "wandb", "mlflow": "mlflow"}
"""Logger -> extra of flt that installs its package."""


def check_names(names: Sequence[str]) -> None:
    """Checks the value of the key ``logger``.

    Raises:
        InputError: A name is unknown or given twice.
    """
    for name in names:
        if name not in LOGGERS:
            raise InputError.of("logger", name, f"{', '.join(LOGGERS)}, or several of them; [] for none")
    if len(set(names)) < len(names):
        raise InputError.of("logger", ",".join(names), "each logger only once")


def check_installed(names: Sequence[str]) -> None:
    """Checks that the packages of the chosen loggers are installed, without importing them.

    Raises:
        InputError: A package is missing. The line says how to install it.
    """
    for name in names:
        if name in EXTRAS and importlib.util.find_spec(name) is None:
            allowed = f"an installed package: pip install 'flt[{EXTRAS[name]}]'"
            raise InputError.of("logger", name, allowed, f"the package {name} is missing")


def build_loggers(names: Sequence[str], folder: Path, history: Sequence[Mapping[str, float]]) -> list[Logger]:
    """Builds the loggers of a run. Nothing is written, and no server is asked, before the first metrics are logged.

    Args:
        names: Value of the key ``logger``.
        folder: Folder of the run.
        history: Metrics of the rounds that a resumed run has finished.
    """
    return [_logger(name, folder, history) for name in names]


def _logger(name: str, folder: Path, history: Sequence[Mapping[str, float]]) -> Logger:
    if name == "tensorboard":
        parent, first = folder.parent, len(history) + 1
        # purge_step hides the rounds that a killed run logged after its last checkpoint
        return TensorBoardLogger(parent.parent, parent.name, folder.name, default_hp_metric=False, purge_step=first)
    if name == "csv":
        return ResumedCsvLogger(folder, history)
    return WandbRun(folder) if name == "wandb" else MlflowRun(folder)


class ResumedCsvLogger(CSVLogger):
    """CSVLogger that writes to ``csv/`` in the run's folder. Its file begins with the rounds before the resume.

    A CSVLogger of Lightning removes the file of an earlier process.

    Args:
        folder: Folder of the run.
        history: Metrics of the rounds before the resume.
    """

    def __init__(self, folder: Path, history: Sequence[Mapping[str, float]]) -> None:
        super().__init__(folder, "csv", "", flush_logs_every_n_steps=1)
        self._history = history

    @property
    def experiment(self) -> ExperimentWriter:
        """Writer of the file, which is created at the first use."""
        if self._experiment is None:
            for name in (ExperimentWriter.NAME_METRICS_FILE, ExperimentWriter.NAME_HPARAMS_FILE):
                (Path(self.log_dir) / name).unlink(missing_ok=True)
            writer = super().experiment
            for metrics in self._history:
                writer.log_metrics({key: value for key, value in metrics.items() if key != "round"}, metrics["round"])
        writer = super().experiment
        assert isinstance(writer, ExperimentWriter)
        return writer
