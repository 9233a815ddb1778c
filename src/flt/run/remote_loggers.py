"""Loggers of servers: W&B and MLflow. A server that fails ends no run, and a resume goes on in the same run there."""

from __future__ import annotations

import abc
import json
import logging
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import Logger

from flt.core.files import write_atomically
from flt.core.typed import first_line
from flt.run.stored import label_of

IDS = "loggers.json"
"""Name of the file in a run's folder with the id of the run on each server."""
LARGEST = 2**16
"""Largest size of this file that is read, in bytes."""
_ID = re.compile(r"[\w-]{1,128}", re.ASCII)
_log = logging.getLogger(__name__)


class RemoteLogger(Logger, abc.ABC):
    """Passes everything to a logger of Lightning until this logger fails for the first time.

    After the first error, a warning says so once, nothing more is logged there, and the run goes on. Lightning's logger
    is built at the first use, and only then is its package imported.

    Args:
        folder: Folder of the run. Files of the logger are put there, and the id of the run on the server is read from
            there and written there.
    """

    key = ""
    """Value of the key ``logger`` that chooses the logger."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self.folder = folder
        self.label = label_of(folder)
        """Name of the run on the server, such as ``hafl/version_3``."""
        self._logger: Any = None
        self._failed = False

    @abc.abstractmethod
    def build(self, run_id: str | None) -> Logger:
        """Builds Lightning's logger, which goes on with the run of this id on the server. None: with a new run."""

    @abc.abstractmethod
    def end(self, logger: Any, status: str) -> None:
        """Ends the run on the server. ``status`` is ``success`` or ``failed``."""

    def log_known(self, logger: Any, params: dict[str, Any]) -> None:
        """Logs the hyperparameters, of which some may have been logged before a resume."""
        logger.log_hyperparams(params)

    @property
    def name(self) -> str:
        """Value of the key ``logger`` that chooses the logger."""
        return self.key

    @property
    def version(self) -> str | None:
        """Id of the run on the server. None if the server has failed."""
        found: str | None = self._try(lambda logger: logger.version)
        return found

    @property
    def experiment(self) -> Any:
        """The ``experiment`` of Lightning's logger. None if the server has failed."""
        return self._try(lambda logger: logger.experiment)

    def log_hyperparams(self, params: Any) -> None:
        """Logs hyperparameters."""
        self._try(lambda logger: self.log_known(logger, params))

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        """Logs metrics."""
        self._try(lambda logger: logger.log_metrics(metrics, step=step))

    def finalize(self, status: str) -> None:
        """Ends the run on the server, if it has begun."""
        if self._logger is not None:
            self._try(lambda logger: self.end(logger, status))
        self._logger = None  # a later fit with this logger goes on with the run on the server

    def _try(self, action: Callable[[Any], Any]) -> Any:
        if self._failed:
            return None
        try:
            if self._logger is None:
                self._logger = self.build(self._ids().get(self.key))
                self._record(self._logger.experiment and self._logger.version)
            return action(self._logger)
        except Exception as error:  # a server and its client can fail in any way
            self._failed = True
            _log.warning("logger=%s failed, so that the run goes on without it: %s", self.key, first_line(error))
            return None

    def _ids(self) -> dict[str, str]:
        """Returns logger -> id of the run on its server. What no server could have made is left out."""
        try:
            with (self.folder / IDS).open("rb") as file:
                ids = json.loads(file.read(LARGEST))
        except (OSError, ValueError, RecursionError):
            return {}
        known = ids.items() if isinstance(ids, dict) else ()
        return {key: value for key, value in known if isinstance(value, str) and _ID.fullmatch(value)}

    def _record(self, run_id: str) -> None:
        ids = self._ids()
        if ids.get(self.key) != run_id:
            write_atomically(self.folder / IDS, f"{json.dumps({**ids, self.key: run_id}, indent=1)}\n".encode())


class WandbRun(RemoteLogger):
    """Run of W&B, with its files in ``wandb/`` of the run's folder.

    Nothing is uploaded unless the user sets ``WANDB_MODE=online``: the settings of a run contain paths, and W&B adds
    the name of the machine.
    """

    key = "wandb"

    def build(self, run_id: str | None) -> Logger:
        """Builds Lightning's WandbLogger."""
        os.environ.setdefault("WANDB_INIT_TIMEOUT", "20")  # seconds; W&B's own default waits 90 for a dead server
        import wandb
        from lightning.pytorch.loggers import WandbLogger

        # console="off", because the progress is redrawn on the terminal four times a second
        mode: Any = os.environ.get("WANDB_MODE", "offline")
        settings = wandb.Settings(console="off", quiet=True, mode=mode)
        return WandbLogger(self.label, self.folder, id=run_id, group=self.folder.absolute().parent.name,
                           settings=settings)  # fmt: skip

    def end(self, logger: Any, status: str) -> None:
        """Ends the run. Otherwise the next run of a sweep would be logged to the same run of W&B."""
        run = logger.experiment
        run.finish(exit_code=0 if status == "success" else 1)
        if run.settings.mode == "offline":
            _log.info("nothing was uploaded to W&B; wandb sync %s does that", self.folder / "wandb" / "offline-run-*")


class MlflowRun(RemoteLogger):
    """Run of MLflow, on the server that ``MLFLOW_TRACKING_URI`` names, or else in ``mlruns/`` of the run's folder."""

    key = "mlflow"

    def build(self, run_id: str | None) -> Logger:
        """Builds Lightning's MLFlowLogger."""
        # MLflow reads files only if this is set, and its defaults repeat each request to a dead server for minutes.
        for name, value in (("ALLOW_FILE_STORE", "true"), ("HTTP_REQUEST_MAX_RETRIES", "2")):
            os.environ.setdefault(f"MLFLOW_{name}", value)
        from lightning.pytorch.loggers import MLFlowLogger

        logging.getLogger("lightning.pytorch.loggers.mlflow").setLevel(logging.ERROR)  # says that an experiment is new
        uri = os.environ.get("MLFLOW_TRACKING_URI") or (self.folder / "mlruns").absolute().as_uri()
        experiment = os.environ.get("MLFLOW_EXPERIMENT_NAME") or self.folder.absolute().parent.parent.name
        return MLFlowLogger(experiment, self.label, uri, run_id=run_id)

    def log_known(self, logger: Any, params: dict[str, Any]) -> None:
        """Logs the hyperparameters that aren't logged yet. MLflow refuses other values, such as those of a resume."""
        known = logger.experiment.get_run(logger.run_id).data.params
        logger.log_hyperparams({key: value for key, value in params.items() if key not in known})

    def end(self, logger: Any, status: str) -> None:
        """Ends the run."""
        logger.finalize(status)
