"""The report of a run that is being trained, and the one that the run leaves."""

from __future__ import annotations

import logging
import os
import time
from pathlib import Path

from flt.callbacks.checkpoint import Checkpoint
from flt.core.files import system_message, write_atomically
from flt.core.typed import first_line
from flt.run.schema import TrainConfig
from flt.run.stored import CONFIG, REPORT
from flt.server.callback import FedCallback
from flt.server.federator import Federator

EVERY = 20.0
"""Smallest number of seconds from one writing of the page to the next."""
_log = logging.getLogger(__name__)


class LiveReport(FedCallback):
    """Writes the report of a run that is being trained, at most every EVERY seconds.

    The page is written at the start of a round, when the files of the rounds before are complete. If a page can't be
    written, a warning says so, no further one is tried, and the run goes on.
    """

    def __init__(self) -> None:
        self.folder: Path | None = None
        """Folder of the run; None until the run has begun, and in processes that don't write."""
        self.failed = False
        self._written = 0.0
        self._shown = False

    def on_fit_start(self, federator: Federator) -> None:
        """Finds the run's folder, and starts the clock."""
        checkpoint = next((callback for callback in federator.callbacks if isinstance(callback, Checkpoint)), None)
        self.folder = checkpoint.folder.parent if checkpoint is not None else None
        self._written = time.monotonic()

    def on_round_start(self, federator: Federator) -> None:
        """Writes the page if it is due."""
        if self.folder is not None and time.monotonic() - self._written >= EVERY:
            self._write(running=True)

    def on_exception(self, federator: Federator, exception: BaseException) -> None:
        """Writes the page once more if it says that the run goes on, because the run has failed or was interrupted."""
        if self._shown:
            self._write(running=False)

    def finish(self, folder: Path) -> None:
        """Writes the page of a run that has ended and exported its models.

        Args:
            folder: Folder of the run. If the run was trained in other processes, this object doesn't know it yet.
        """
        if self.folder is None and os.environ.get("RANK", os.environ.get("LOCAL_RANK", "0")) == "0":
            self.folder = folder
        self._write(running=False)

    def stop(self) -> None:
        """Does the same as :meth:`on_exception` after an error outside the rounds, such as one of the export."""
        if self._shown:
            self._write(running=False)

    def _write(self, running: bool) -> None:
        if self.failed or self.folder is None or not (self.folder / CONFIG).is_file():
            return
        try:
            from flt.reports.page import one  # jinja2 is imported only for a page

            write_atomically(self.folder / REPORT, one(self.folder, running).encode())
            self._written, self._shown = time.monotonic(), running
        except Exception as error:  # whatever a page fails at, no run is lost for it
            self.failed = True
            why = system_message(error) if isinstance(error, OSError) else first_line(error)
            _log.warning("%s couldn't be written (%s); flt report %s writes it", REPORT, why, self.folder.name)


def live_reports(cfg: TrainConfig) -> list[LiveReport]:
    """Returns the callback that writes the report of a run; none with ``report=false``."""
    return [LiveReport()] if cfg.report else []
