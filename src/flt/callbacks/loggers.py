"""Logging of each round's metrics with Lightning's loggers. What TensorBoard gets is decided in tensorboard.py."""

from __future__ import annotations

import contextlib
import inspect
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any

from lightning.pytorch.loggers import Logger
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.summary.writer import event_file_writer
from torch.utils.tensorboard import SummaryWriter

from flt.callbacks import tensorboard
from flt.core.files import is_full
from flt.protocol.messages import JobId
from flt.server.callback import FedCallback
from flt.server.federator import Federator

FINAL = ("round/", "test/", "client_test/", "clients/", "comm/total_", "time/total_")
"""Key prefixes of the metrics that are logged together with the hyperparameters at the end of the run."""


@contextlib.contextmanager
def quiet_writers() -> Iterator[None]:
    """Makes TensorBoard's writers that are created in the with block end without a traceback if the disk is full.

    A writer has a thread, for which Python would print the traceback. The thread keeps the error, and the next call of
    the writer raises this error in the main thread. All other writers of this process stay as they are.
    """
    # The class isn't public. In a version of TensorBoard without it, only the traceback would come back.
    known = getattr(event_file_writer, "_AsyncWriterThread", None)
    if known is None:
        yield
        return

    class QuietThread(known):  # type: ignore[valid-type, misc]  # a class known only at run time
        def run(self) -> None:
            try:
                super().run()
            except OSError as error:
                if not is_full(error):
                    raise

    event_file_writer._AsyncWriterThread = QuietThread
    try:
        yield
    finally:
        event_file_writer._AsyncWriterThread = known


class Loggers(FedCallback):
    """Logs the hyperparameters, and the metrics of each round. Loggers get the number of the round as ``step``.

    The hyperparameters are logged at the start of the run. Loggers that accept metrics together with hyperparameters
    get the hyperparameters again at the end of the run, with the final metrics.

    TensorBoard gets fewer metrics, in an order that shows the global model first, and more of other kinds:

    - a layout for its tab CUSTOM SCALARS, and columns for its tab HPARAMS, of which ``algo`` and ``seed`` come first;
    - pictures of the partition, of the rank-1 components, unless all of them are trained and none is more important
      than another, and of the assignment of jobs to groups;
    - pictures of the clustered updates and of the similarity of the clusters, if updates are clustered;
    - a table of the ten jobs whose received models are worst;
    - for each metric that the clients measure, a histogram of its values over the jobs, and the mean over the worst
      10 % of them.

    No key contains a client's id, because a thousand clients would then produce a thousand charts.

    In the list of callbacks, this one must come after all callbacks that log metrics, and before the callback that
    writes checkpoints. If a run is resumed after round n, the killed run may already have logged later rounds.
    ``TensorBoardLogger(..., purge_step=n + 1)`` hides these rounds.

    Args:
        loggers: Lightning loggers, such as TensorBoardLogger and CSVLogger.
        hyperparameters: Dotted config key -> value.
        tasks: Job -> its task, for the pictures of groups and clusters.
        most: Approximate number of pictures of each kind in a run, spread evenly over the rounds. If 0,
            no pictures are drawn.
    """

    def __init__(
        self,
        loggers: Sequence[Logger],
        hyperparameters: Mapping[str, Any],
        tasks: Mapping[JobId, str],
        most: int = 20,
    ) -> None:
        self.loggers, self.hyperparameters, self.tasks, self.most = loggers, dict(hyperparameters), tasks, most
        self._logged: set[str] = set()
        self._laid_out: dict[str, None] = {}  # TensorBoard's tags that the layout has
        self._end: Summary | None = None  # what tells TensorBoard that the run has succeeded

    @quiet_writers()
    def on_fit_start(self, federator: Federator) -> None:
        """Logs the hyperparameters and, in a new run, the picture of the partition."""
        self._logged = set(federator.history[-1]) if federator.history else set()
        for logger in self.loggers:
            # Without the empty dict, TensorBoardLogger would log its own metric hp_metric.
            logger.log_hyperparams(self.hyperparameters, *([{}] if _takes_metrics(logger) else []))
            logger.save()
        writers = list(self._writers())  # creates them, also if nothing is written yet
        if self.most and not federator.state.rounds:
            for writer in writers:
                tensorboard.write_partition(writer, federator)

    @quiet_writers()
    def on_log(self, federator: Federator, metrics: dict[str, float]) -> None:
        """Passes the round's metrics to the loggers, after all callbacks have added their metrics."""
        worst = tensorboard.worst_scalars(federator)
        self._log(metrics, federator.round, worst)
        if any(key.startswith("round/") for key in metrics):
            self._describe(federator, [*metrics, *worst])
        for writer in self._writers():
            tensorboard.write_clients(writer, federator)
            if self.most and self._is_pictured(federator):
                tensorboard.write_state(writer, federator, self.tasks)
        for logger in self.loggers:
            logger.save()  # keeps this round's metrics on disk even if the run is killed

    @quiet_writers()
    def on_fit_end(self, federator: Federator) -> None:
        """Logs the metrics that were measured after the last round, and the hyperparameters with the final metrics."""
        last = federator.history[-1] if federator.history else {}
        self._log({key: value for key, value in last.items() if key not in self._logged}, federator.round)
        final = {f"final/{key}": value for key, value in last.items() if key.startswith(FINAL)}
        self._describe(federator, last)
        for writer in self._writers():
            tensorboard.write_summaries(writer, [self._end] if self._end else [], federator.round)
        for logger in self.loggers:
            if final and _takes_metrics(logger) and not _is_tensorboard(logger):
                logger.log_hyperparams(self.hyperparameters, final, federator.round)
            logger.finalize("success")

    @quiet_writers()
    def on_exception(self, federator: Federator, exception: BaseException) -> None:
        """Closes the loggers. If the disk is full, they may fail to write their last events, which changes nothing."""
        for logger in self.loggers:
            try:
                logger.finalize("failed")
            except OSError as error:
                if not is_full(error):
                    raise

    def _log(self, metrics: Mapping[str, float], step: int, more: Mapping[str, float] = MappingProxyType({})) -> None:
        """Passes metrics to the loggers. Those of TensorBoard get a part of them, and ``more``."""
        figures = {key: value for key, value in metrics.items() if key != "round"}
        self._logged = set(metrics)
        for logger in self.loggers:
            shown = {**tensorboard.scalars(figures), **more} if _is_tensorboard(logger) else figures
            if not shown:
                continue
            try:
                logger.log_metrics(shown, step=step)
            except ValueError as error:  # Lightning takes any error of TensorBoard for one of the number
                if isinstance(error.__cause__, OSError):
                    raise error.__cause__ from None
                raise

    def _describe(self, federator: Federator, metrics: Iterable[str]) -> None:
        """Writes TensorBoard's layout when there are new names of metrics, and its columns once in a process."""
        tags = tensorboard.scalars(dict.fromkeys(metrics, 0.0))
        if not set(tags) <= set(self._laid_out):  # some metrics begin in the second round, or after the last one
            self._laid_out |= dict.fromkeys(tags)
            for writer in self._writers():
                writer.add_custom_scalars(tensorboard.layout(self._laid_out))  # TensorBoard shows the newest layout
        if self._end is not None:
            return
        columns = [*tags, *tensorboard.tags_of_test(metrics, federator.callbacks)]
        compared = [tag for start in tensorboard.COMPARED for tag in dict.fromkeys(columns) if tag.startswith(start)]
        *start, self._end = tensorboard.hyperparameters(self.hyperparameters, compared)
        for writer in self._writers():
            tensorboard.write_summaries(writer, start, federator.round)

    def _writers(self) -> Iterator[SummaryWriter]:
        for logger in self.loggers:
            if _is_tensorboard(logger):
                yield getattr(logger, "experiment")  # noqa: B009  # mypy doesn't know that this logger has one

    def _is_pictured(self, federator: Federator) -> bool:
        every = math.ceil(federator.rounds / self.most)
        return federator.round % every == 0 or federator.round == federator.rounds


def _takes_metrics(logger: Logger) -> bool:
    return "metrics" in inspect.signature(logger.log_hyperparams).parameters


def _is_tensorboard(logger: Logger) -> bool:
    return isinstance(getattr(logger, "experiment", None), SummaryWriter)
