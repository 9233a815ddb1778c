"""Output of a run to TensorBoard: the tags of the metrics, the layout, the hyperparameters and the pictures.

TensorBoard sorts its cards by the part of the tag before the first slash, and the columns of its HPARAMS tab by name,
with those first that are marked as differing. The metrics of the global model keep their keys, such as
``round/val_acc``. All other tags begin with ``round.``, such as ``round.comm/bytes_up``, so that they follow.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData
from torch.utils.tensorboard import SummaryWriter
from torch.utils.tensorboard.summary import hparams

from flt.callbacks.clusters import Clustered, Clusters, cosines
from flt.callbacks.evaluate import Evaluate, gather, mean_of_worst
from flt.callbacks.figures import cluster_pictures, pictures
from flt.callbacks.figures.heatmap import pixels
from flt.core import formatting
from flt.protocol.messages import JobId, Update
from flt.server.callback import FedCallback
from flt.server.federator import Federator

GLOBAL = ("round", "task", "test")
"""Groups of metrics of the global model. Their tags are their keys."""
OTHERS = ("client_test", "train", "gap", "distributed", "comm", "ranks", "cluster", "transfer", "fleet", "time")
"""Groups of flt's other metrics that TensorBoard gets. Their tags begin with AFTER."""
OMITTED = ("clients", "bits")
"""Groups of metrics that TensorBoard doesn't get. ``metrics.csv`` has all of them. Of the clients' metrics, TensorBoard
gets a histogram and the mean over the worst 10 % instead. ``bits`` would be a card for each layer."""
BETWEEN_CLIENTS = ("clients/divergence", "clients/drift")
"""Beginnings of those metrics of the group ``clients`` that TensorBoard gets, because no single client has them."""
AFTER = "round."
STAGES = (("distributed", ""), ("fitted", "fitted_"), ("fit", "fit_"))
"""Pairs of a time of measurement, which :func:`gather` explains, and the prefix of the metric's name."""
CHARTS = (
    ("Global model", "round/", 1),
    ("Test", "test/", 1),
    ("Tasks", "task/", 2),
    ("Each client's own test", f"{AFTER}client_test/", 1),
    ("Clients", f"{AFTER}clients/", 1),
    ("Training examples", f"{AFTER}train/", 1),
    ("Gap between training and validation", f"{AFTER}gap/", 1),
    ("Bytes", f"{AFTER}comm/", 1),
    ("Models as received", f"{AFTER}distributed/", 1),
    ("Components", f"{AFTER}ranks/", 1),
    ("Clusters", f"{AFTER}cluster/", 1),
    ("Transfer between clusters", f"{AFTER}transfer/", 1),
    ("Simulated devices", f"{AFTER}fleet/", 1),
    ("Time", f"{AFTER}time/", 1),
)
"""Sections of the tab CUSTOM SCALARS: title, beginning of the tags, and how many names precede that of the metric. Tags
that differ only in the names in between, such as those of several tasks, are lines of one chart."""
FIRST = ("algo", "seed")
"""Hyperparameters whose columns come first."""
COMPARED = ("round/", "test/", f"{AFTER}client_test/", f"{AFTER}clients/", f"{AFTER}comm/total_", f"{AFTER}time/total_")
"""Beginnings of the tags whose last values are columns of the HPARAMS tab."""


def scalars(metrics: Mapping[str, float]) -> dict[str, float]:
    """Returns TensorBoard's tag -> value of those metrics that TensorBoard gets.

    Metrics of a user's own callbacks keep their keys.

    Example:
        >>> scalars({"round": 1, "round/val_acc": 0.5, "comm/bytes_up": 9, "clients/val_acc": 0.4, "own/x": 2})
        {'round/val_acc': 0.5, 'round.comm/bytes_up': 9, 'own/x': 2}
    """
    groups = {key: key.partition("/")[0] for key in metrics if key != "round"}
    after = {key for key, group in groups.items() if group in OTHERS or key.startswith(BETWEEN_CLIENTS)}
    sent = [key for key, group in groups.items() if key in after or group not in OMITTED]
    return {AFTER + key if key in after else key: metrics[key] for key in sent}


def of_clients(federator: Federator) -> Iterator[tuple[str, list[float]]]:
    """Yields the tag and the values over the round's jobs of each metric that clients measured."""
    for stage, prefix in STAGES:
        for name, values in gather(federator, stage).items():
            yield f"{AFTER}clients/{prefix}{name}", values


def worst_scalars(federator: Federator) -> dict[str, float]:
    """Returns tag -> mean over the worst 10 % of the round's jobs, for each metric that clients measured."""
    return {
        f"{tag}{formatting.WORST}": mean_of_worst(values, tag.rpartition("/")[2])
        for tag, values in of_clients(federator)
    }


def layout(tags: Iterable[str]) -> dict[str, dict[str, list[Any]]]:
    r"""Returns the layout of the tab CUSTOM SCALARS, as ``SummaryWriter.add_custom_scalars`` takes it.

    Args:
        tags: Tags that were written. There is a chart for each, and no empty section.

    Example:
        >>> layout(["round.comm/bytes_up", "round/val_acc"])  # doctest: +NORMALIZE_WHITESPACE
        {'Global model': {'val_acc': ['Multiline', ['^round/val_acc$']]},
         'Bytes': {'bytes_up': ['Multiline', ['^round\\.comm/bytes_up$']]}}
    """
    known = list(tags)
    sections: dict[str, dict[str, list[Any]]] = {}
    for title, beginning, names in CHARTS:
        for tag in (tag for tag in known if tag.startswith(beginning)):
            chart = tag.split("/", names)[-1]
            lines = sections.setdefault(title, {}).setdefault(chart, ["Multiline", []])[1]
            lines.append(f"^{re.escape(tag)}$")
    return sections


def hyperparameters(settings: Mapping[str, Any], tags: Iterable[str]) -> tuple[Summary, Summary, Summary]:
    """Returns what the HPARAMS tab shows: its columns, the run's hyperparameters, and the end of a run that succeeds.

    Args:
        settings: Dotted config key -> value.
        tags: Tags of which the tab shows the last value.
    """
    plain = {key: value if isinstance(value, int | float | str) else str(value) for key, value in settings.items()}
    columns, start, end = hparams(plain, dict.fromkeys(tags, 0.0))
    plugin = columns.value[0].metadata.plugin_data
    content = HParamsPluginData.FromString(plugin.content)
    for info in content.experiment.hparam_infos:
        info.differs = info.name in FIRST
    plugin.content = content.SerializeToString()
    return columns, start, end


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


def write_clients(writer: SummaryWriter, federator: Federator) -> None:
    """Writes the histograms over the round's jobs, and the table of the worst ten."""
    for tag, values in of_clients(federator):
        finite = np.array([value for value in values if math.isfinite(value)])
        if finite.size:
            writer.add_histogram(tag, finite, federator.round)
    if table := worst_ten(federator):
        writer.add_text(f"{AFTER}clients/worst_ten", table, federator.round)


def write_partition(writer: SummaryWriter, federator: Federator) -> None:
    """Writes the picture of the partition."""
    write_picture(writer, "partition", pictures.partition(federator.clients), 0)


def write_state(writer: SummaryWriter, federator: Federator, tasks: Mapping[JobId, str]) -> None:
    """Writes the pictures of the round: components, groups and clusters, as far as they show anything."""
    state, updates = federator.state, federator.updates
    if pictures.components_differ(federator.server.layout, state, updates):
        write_picture(writer, "components", pictures.rank_map(federator.server.layout, state, updates), federator.round)
    if len(state.groups) > 1:
        write_picture(writer, "groups", pictures.assignment(state, tasks), federator.round)
    for callback in federator.callbacks:
        if isinstance(callback, Clusters) and callback.found is not None:
            _write_clusters(writer, federator, callback.found, tasks)


def _write_clusters(
    writer: SummaryWriter, federator: Federator, clustered: Clustered, tasks: Mapping[JobId, str]
) -> None:
    rounds, (gids, values) = federator.round, cosines(federator)
    write_picture(writer, "task_map", cluster_pictures.task_map(clustered, tasks, rounds), rounds)
    if len(gids) > 1:
        write_picture(writer, "group_cosines", cluster_pictures.cosine_matrix(gids, values, rounds), rounds)
    if (figure := cluster_pictures.curves(federator.history)) is not None:
        write_picture(writer, "clusters", figure, rounds)


def write_picture(writer: SummaryWriter, tag: str, figure: Figure, step: int) -> None:
    """Writes a picture."""
    # add_image is used because add_figure would need pyplot.
    writer.add_image(f"{AFTER}pictures/{tag}", pixels(figure), step, dataformats="HWC")


def write_summaries(writer: SummaryWriter, summaries: Sequence[Summary], step: int) -> None:
    """Writes summaries for which SummaryWriter has no method."""
    for summary in summaries:
        writer._get_file_writer().add_summary(summary, step)  # as SummaryWriter's and Lightning's own methods do


def tags_of_test(metrics: Iterable[str], callbacks: Iterable[FedCallback]) -> list[str]:
    """Returns the tags of the metrics that will be measured on the test examples, if there are any."""
    if not any(isinstance(callback, Evaluate) and callback.test for callback in callbacks):
        return []
    names = formatting.between(dict.fromkeys(metrics, 0.0), "round/")
    return [f"test/{name.removeprefix('val_')}" for name in names if name != "clustering_acc"]
