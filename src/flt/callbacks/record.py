"""Record of a run: what happened to clients, components and clusters in each round, for the report of the run."""

from __future__ import annotations

import contextlib
import json
import logging
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from flt.callbacks.clusters import Clusters
from flt.callbacks.record_format import BY_JOB, LARGEST, QUANTILES, RECORD
from flt.callbacks.record_header import Header, begin
from flt.callbacks.task_map import task_map
from flt.core import formatting
from flt.core.errors import InputError
from flt.core.files import system_message, write_atomically
from flt.protocol.messages import JobId, Update
from flt.protocol.state import ServerState
from flt.server.callback import FedCallback
from flt.server.federator import Federator

STAGES = {"distributed": "received", "fitted": "fitted"}
"""Time of measurement, as in an update's metrics -> its name in the record."""
WORST, PANELS = 10, 3
"""Number of worst jobs in each round, and of groups whose importance is recorded."""
_log = logging.getLogger(__name__)


class Record(FedCallback):
    """Writes ``record.jsonl``: one line about the run, then one line for each round.

    The first line describes jobs, layers and versions, see :func:`flt.callbacks.record_header.begin`. A round's line
    holds, as far as the run has it:

    - ``clients``: metrics of the models as received and as fitted, of each job; in a long run of many jobs, quantiles
      over the jobs and the ten worst jobs instead;
    - ``trained``: layer by layer, the number of jobs that trained each component, and ``by_job``: the components that
      each job trained, as the bits of one hexadecimal number. Both are left out if all jobs trained all components;
    - ``importance``: group -> layer by layer, the importance of each component;
    - ``active``: number of active components of each layer, if a schedule lowers it;
    - ``groups``: group of each job, -1 for none;
    - ``points``: the clustered updates along their first two principal components.

    What would be large is written in every n-th round only, and for evenly spaced jobs. The first line says so
    (``every``, ``shown``), and keeps the file to a few megabytes. The callback only reads, and draws nothing at random.
    A resumed run removes the lines of later rounds, and then writes the same lines as an uninterrupted run.

    Args:
        folder: Folder of the run.
        tasks: Job -> its task.
        command: Command or line of Python that makes such a run. Empty if it isn't known.
        device: Device on which the run trains.
    """

    def __init__(self, folder: Path, tasks: Mapping[JobId, str], command: str, device: str) -> None:
        self.path, self.tasks, self.command, self.device = folder / RECORD, tasks, command, device
        self.header: Header | None = None
        """First line of the file. None if no line can be written, for example because the disk is full."""

    def on_fit_start(self, federator: Federator) -> None:
        """Writes the first line. After a resume, keeps it and the lines of the rounds that are done."""
        done = federator.state.rounds
        new = begin(federator, self.tasks, self.command, self.device)
        self.header, lines = _kept(self.path, done, new) if done else (new, [])
        with self._tolerated():
            text = "\n".join([_json(self.header.line), *lines])
            write_atomically(self.path, f"{text}\n".encode())

    def on_log(self, federator: Federator, metrics: dict[str, float]) -> None:
        """Appends the line of the round."""
        if self.header is None:
            return
        with self._tolerated(), self.path.open("ab") as file:
            file.write(f"{_json(_line(federator, self.header))}\n".encode())

    @contextlib.contextmanager
    def _tolerated(self) -> Iterator[None]:
        """Turns a failure to write into a warning, after which nothing more is recorded: no run is lost for it."""
        try:
            yield
        except (OSError, InputError) as error:
            self.header = None
            why = system_message(error) if isinstance(error, OSError) else error
            _log.warning("%s: %s; the report of this run will lack what comes from here on", RECORD, why)


def _line(federator: Federator, header: Header) -> dict[str, Any]:
    """Returns the line of a round. Parts without content are left out."""
    state, round = federator.state, federator.round
    line: dict[str, Any] = {"round": round}
    if header.is_due("clients", round):
        line["clients"] = _clients(federator.updates, header)
    if header.is_due("trained", round) and (trained := _trained(federator, header)):
        line |= trained
    if header.is_due("importance", round):
        line["importance"] = _importance(federator)
    if header.is_due("active", round) and federator.server.recipe.schedule.cuts:
        line["active"] = [len(state.active[name]) for name in header.layers]
    if header.is_due("groups", round) and len(state.groups) > 1:
        line["groups"] = [state.assignment.get(job, -1) for job in header.jobs]
    if header.is_due("points", round):
        line["points"] = _points(federator, header)
    return {key: value for key, value in line.items() if value}


def _clients(updates: Sequence[Update], header: Header) -> dict[str, Any]:
    """Returns metric -> its values over the jobs of the round, for the score and the loss of each stage."""
    found: dict[str, Any] = {}
    for stage, name in STAGES.items():
        metrics = {key.partition("/")[2] for update in updates for key in update.metrics if key.startswith(f"{stage}/")}
        for metric in filter(None, (formatting.score(sorted(metrics)), formatting.loss(sorted(metrics)))):
            measured = [(u.job, u.metrics[f"{stage}/{metric}"]) for u in updates if f"{stage}/{metric}" in u.metrics]
            summarise = _values if header.each_job else _quantiles
            found[f"{name}/{metric}"] = summarise(measured, metric, header)
    return found


def _values(measured: Sequence[tuple[JobId, float]], metric: str, header: Header) -> dict[str, Any]:
    """Returns the value of each job. ``jobs`` is left out if all jobs have one."""
    values = {"values": [_rounded(value) for _, value in measured]}
    places = [header.place[job] for job, _ in measured]
    return values if places == list(range(len(header.jobs))) else {"jobs": places, **values}


def _quantiles(measured: Sequence[tuple[JobId, float]], metric: str, header: Header) -> dict[str, Any]:
    """Returns the quantiles over the jobs, and the worst of them."""
    finite = [value for _, value in measured if math.isfinite(value)]
    sign = -1.0 if formatting.lower_is_better(metric) else 1.0
    ordered = sorted(measured, key=lambda entry: (sign * entry[1] if math.isfinite(entry[1]) else -math.inf, entry[0]))
    worst = [[*job, _rounded(value)] for job, value in ordered[:WORST]]
    quantiles = [_rounded(value) for value in np.quantile(finite, QUANTILES)] if finite else []
    return {"count": len(measured), "quantiles": quantiles, "worst": worst}


def _trained(federator: Federator, header: Header) -> dict[str, Any]:
    """Returns which components were trained. Empty if every job trained every component."""
    ranks, updates = header.layers, federator.updates
    everything = {name: tuple(range(rank)) for name, rank in ranks.items()}
    if all(dict(update.kept) == everything for update in updates):
        return {}
    counts = {name: np.zeros(rank, dtype=int) for name, rank in ranks.items()}
    for update in updates:
        for name, ids in update.kept.items():
            counts[name][list(ids)] += 1
    line: dict[str, Any] = {"trained": [count.tolist() for count in counts.values()]}
    if header.is_due(BY_JOB, federator.round):
        masks = {header.place[u.job]: _mask(u, ranks) for u in updates if u.job in header.place}
        line[BY_JOB] = {str(place): masks[place] for place in header.shown if place in masks}
    return line


def _mask(update: Update, ranks: Mapping[str, int]) -> str:
    """Returns the components that a job trained: bit i of a hexadecimal number is component i, over all layers."""
    bits, start = 0, 0
    for name, rank in ranks.items():
        for component in update.kept.get(name, ()):
            bits |= 1 << (start + component)
        start += rank
    return f"{bits:x}"


def _importance(federator: Federator) -> dict[str, list[list[float | None]]]:
    """Returns group -> layer by layer, the importance of each component. Groups without a measurement are left out."""
    state: ServerState = federator.state
    found = {}
    for gid in state.clusters:
        scores = [score.tolist() for score in state.groups[gid].scores.values()]
        if any(value > 0 for layer in scores for value in layer):
            found[str(gid)] = [[_rounded(value) for value in layer] for layer in scores]
    return dict(list(found.items())[:PANELS])


def _points(federator: Federator, header: Header) -> dict[str, Any]:
    """Returns the clustered updates of the round along their first two principal components."""
    found = next((callback.found for callback in federator.callbacks if isinstance(callback, Clusters)), None)
    if found is None:
        return {}
    points, shares = found.principal
    listed = [i for i, job in enumerate(found.jobs) if job in header.place]
    return {
        "jobs": [header.place[found.jobs[i]] for i in listed],
        "groups": [found.groups[i] for i in listed],
        "x": [_rounded(points[i, 0]) for i in listed],
        "y": [_rounded(points[i, 1]) for i in listed],
        "shares": [_rounded(share) for share in shares],
        "clusters": _clusters(federator),
    }


def _clusters(federator: Federator) -> list[dict[str, Any]]:
    """Returns the map of the clusters, with short numbers."""
    tasks = next(callback.tasks for callback in federator.callbacks if isinstance(callback, Clusters))
    return [
        {**row, "cosines": [_rounded(value) for value in row["cosines"]],
         **{key: _rounded(row[key]) for key in ("task_share", "length", "x", "y")}}
        for row in task_map(federator, tasks)
    ]  # fmt: skip


def _kept(path: Path, done: int, new: Header) -> tuple[Header, list[str]]:
    """Returns the first line of an earlier record, and its lines up to a round. Damaged lines are left out.

    If the earlier record is damaged or of other jobs, as in a folder that somebody has changed, the new header is
    returned, without lines.
    """
    try:
        with path.open("rb") as file:
            first, *rest = file.read(LARGEST).decode(errors="replace").splitlines()
        header = Header.of(json.loads(first))
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return new, []
    if not header.is_of(new):
        return new, []
    lines = []
    for text in rest:
        with contextlib.suppress(ValueError, TypeError, KeyError, RecursionError):
            if json.loads(text)["round"] <= done:
                lines.append(text)
    return header, lines


def _rounded(value: float) -> float | None:
    """Returns five significant digits of a number, which a picture can't tell from the number; None if not finite."""
    return float(f"{value:.5g}") if math.isfinite(value) else None


def _json(value: Any) -> str:
    return json.dumps(value, separators=(",", ":"), allow_nan=False)
