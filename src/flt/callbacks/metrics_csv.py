"""CSV file with the metrics of all rounds."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from flt.core.files import remove_leftovers, reported, write_atomically
from flt.server.callback import FedCallback
from flt.server.federator import Federator


class MetricsCsv(FedCallback):
    """After each round, writes the metrics of all finished rounds to one CSV file. Each round has one line.

    The file depends only on the federation's history. A resumed run therefore writes the same file as an uninterrupted
    run, apart from measured times.

    Args:
        path: Path of the file. The file is replaced as a whole, so that no reader ever sees an incomplete file.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)

    def on_fit_start(self, federator: Federator) -> None:
        """Creates the folder of the file, and removes what a killed process left of the file."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        remove_leftovers(self.path.parent, re.compile(re.escape(self.path.name)))

    def on_log(self, federator: Federator, metrics: dict[str, float]) -> None:
        """Writes the file, after all callbacks have logged their metrics."""
        self._write(federator)

    def on_fit_end(self, federator: Federator) -> None:
        """Writes the file again, with the metrics that were measured after the last round."""
        self._write(federator)

    def _write(self, federator: Federator) -> None:
        with reported(self.path.name, "?", "a folder that stays and can be written"):
            write_atomically(self.path, text(federator.history).encode())


def text(history: Sequence[Mapping[str, float]]) -> str:
    """Returns the metrics of the rounds as CSV. The column ``round`` comes first, then the other keys, sorted by name.

    If a round lacks a metric, the metric's cell is empty.

    Example:
        >>> text([{"round": 1, "round/val_acc": 0.1}, {"round": 2}]).split()
        ['round,round/val_acc', '1,0.1', '2,']
    """
    keys = ["round", *sorted({key for metrics in history for key in metrics} - {"round"})]
    lines = io.StringIO()
    writer = csv.writer(lines, lineterminator="\n")
    writer.writerow(keys)
    writer.writerows([_cell(metrics, key) for key in keys] for metrics in history)
    return lines.getvalue()


def _cell(metrics: Mapping[str, float], key: str) -> str:
    """Returns a metric with enough digits to read it back exactly, or an empty text if the metric is missing."""
    if key not in metrics:
        return ""
    value = metrics[key]
    return str(value) if isinstance(value, int) else repr(float(value))
