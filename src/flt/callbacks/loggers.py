"""Logging of each round's metrics with Lightning's loggers. TensorBoard also gets pictures, histograms and a table."""

from __future__ import annotations

import contextlib
import inspect
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from lightning.pytorch.loggers import Logger
from matplotlib.figure import Figure
from tensorboard.summary.writer import event_file_writer
from torch.utils.tensorboard import SummaryWriter

from flt.callbacks.clusters import Clustered, Clusters, cosines
from flt.callbacks.evaluate import gather
from flt.callbacks.figures import cluster_pictures, pictures
from flt.callbacks.figures.heatmap import pixels
from flt.core import formatting
from flt.core.files import is_full
from flt.protocol.messages import JobId, Update
from flt.server.callback import FedCallback
from flt.server.federator import Federator

STAGES = (("distributed", "clients/"), ("fitted", "clients/fitted_"), ("fit", "clients/fit_"))
"""Pairs of a time of measurement, which :func:`gather` explains, and the key prefix of the means over the jobs."""
FINAL = ("round/", "test/", "clients/", "comm/total_", "time/total_")
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

    TensorBoard also gets:

    - pictures of the partition, of the rank-1 components, and of the assignment of jobs to groups;
    - pictures of the clustered updates and of the similarity of the clusters, if updates are clustered;
    - a table of the ten jobs whose received models are worst;
    - for each metric that the clients measure, a histogram of its values over the jobs.

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
                _write_picture(writer, "partition", pictures.partition(federator.clients), 0)

    @quiet_writers()
    def on_log(self, federator: Federator, metrics: dict[str, float]) -> None:
        """Passes the round's metrics to the loggers, after all callbacks have added their metrics."""
        self._log(metrics, federator.round)
        for writer in self._writers():
            _write_clients(writer, federator)
            if self.most and self._is_pictured(federator):
                _write_state(writer, federator, self.tasks)
        for logger in self.loggers:
            logger.save()  # keeps this round's metrics on disk even if the run is killed

    @quiet_writers()
    def on_fit_end(self, federator: Federator) -> None:
        """Logs the metrics that were measured after the last round, and the hyperparameters with the final metrics."""
        last = federator.history[-1] if federator.history else {}
        self._log({key: value for key, value in last.items() if key not in self._logged}, federator.round)
        final = {f"final/{key}": value for key, value in last.items() if key.startswith(FINAL)}
        for logger in self.loggers:
            if final and _takes_metrics(logger):
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

    def _log(self, metrics: Mapping[str, float], step: int) -> None:
        figures = {key: value for key, value in metrics.items() if key != "round"}
        self._logged = set(metrics)
        for logger in self.loggers if figures else ():
            try:
                logger.log_metrics(figures, step=step)
            except ValueError as error:  # Lightning takes any error of TensorBoard for one of the number
                if isinstance(error.__cause__, OSError):
                    raise error.__cause__ from None
                raise

    def _writers(self) -> Iterator[SummaryWriter]:
        for logger in self.loggers:
            if isinstance(experiment := getattr(logger, "experiment", None), SummaryWriter):
                yield experiment

    def _is_pictured(self, federator: Federator) -> bool:
        every = math.ceil(federator.rounds / self.most)
        return federator.round % every == 0 or federator.round == federator.rounds


def worst_ten(federator: Federator) -> str:
    """Returns a Markdown table of the ten jobs whose received models are worst; empty if no model was evaluated."""
    names, updates = gather(federator, "distributed"), federator.updates
    by = formatting.score(names) or formatting.loss(names)
    if by is None:
        return ""
    worst = sorted((u for u in updates if f"distributed/{by}" in u.metrics), key=lambda u: (_rank(u, by), u.job))[:10]
    figures = [by, *(name for name in names if name != by)][:3]
    columns = ["client", "job", "examples", *figures, f"{by} after local training"]
    keys = [*(f"distributed/{name}" for name in figures), f"fitted/{by}"]
    rows = [[*map(str, (*u.job, u.examples)), *(_cell(u.metrics.get(key)) for key in keys)] for u in worst]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in (columns, ["---:"] * len(columns), *rows))


def _rank(update: Update, by: str) -> float:
    """Returns the sort key of a job. A worse received model has a smaller key, and NaN counts as worst."""
    value = update.metrics[f"distributed/{by}"]
    return -math.inf if math.isnan(value) else -value if formatting.lower_is_better(by) else value


def _cell(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"


def _write_clients(writer: SummaryWriter, federator: Federator) -> None:
    for stage, prefix in STAGES:
        for name, values in gather(federator, stage).items():
            finite = np.array([value for value in values if math.isfinite(value)])
            if finite.size:
                # TensorBoard shows one kind of data per tag, and the tag without the suffix belongs to the mean.
                writer.add_histogram(f"{prefix}{name}_histogram", finite, federator.round)
    if table := worst_ten(federator):
        writer.add_text("clients/worst_ten", table, federator.round)


def _write_state(writer: SummaryWriter, federator: Federator, tasks: Mapping[JobId, str]) -> None:
    layout, state = federator.server.layout, federator.state
    if layout.layers:
        _write_picture(writer, "pairs", pictures.rank_map(layout, state, federator.updates), federator.round)
    if len(state.groups) > 1:
        _write_picture(writer, "groups", pictures.assignment(state, tasks), federator.round)
    for callback in federator.callbacks:
        if isinstance(callback, Clusters) and callback.found is not None:
            _write_clusters(writer, federator, callback.found, tasks)


def _write_clusters(
    writer: SummaryWriter, federator: Federator, clustered: Clustered, tasks: Mapping[JobId, str]
) -> None:
    rounds, (gids, values) = federator.round, cosines(federator)
    _write_picture(writer, "task_map", cluster_pictures.task_map(clustered, tasks, rounds), rounds)
    if len(gids) > 1:
        _write_picture(writer, "group_cosines", cluster_pictures.cosine_matrix(gids, values, rounds), rounds)
    if (figure := cluster_pictures.curves(federator.history)) is not None:
        _write_picture(writer, "clusters", figure, rounds)


def _write_picture(writer: SummaryWriter, tag: str, figure: Figure, step: int) -> None:
    # add_image is used because add_figure would need pyplot.
    writer.add_image(f"pictures/{tag}", pixels(figure), step, dataformats="HWC")


def _takes_metrics(logger: Logger) -> bool:
    return "metrics" in inspect.signature(logger.log_hyperparams).parameters
