"""Writes the rounds' figures as a table."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path

from flt.core.files import write_atomically
from flt.server.callback import FedCallback
from flt.server.federator import Federator


class MetricsCsv(FedCallback):
    """Writes all rounds so far to one CSV file, one line per round, after each of them.

    The file is made from the federation's history alone, so a resumed run's is that of the run that nothing stopped.

    Args:
        path: The file; it is replaced as a whole, so a reader never meets half of it.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)

    def on_log(self, federator: Federator, metrics: dict[str, float]) -> None:
        """Called when all callbacks have left their figures of the round."""
        self._write(federator)

    def on_fit_end(self, federator: Federator) -> None:
        """Called when the last round has ended: once more, for figures that were left after it."""
        self._write(federator)

    def _write(self, federator: Federator) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(self.path, text(federator.history).encode())


def text(history: Sequence[Mapping[str, float]]) -> str:
    """The rounds as CSV: ``round``, then all keys in name order; a figure that a round lacks is an empty cell.

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
    """A figure in as many digits as lead back to it."""
    if key not in metrics:
        return ""
    value = metrics[key]
    return str(value) if isinstance(value, int) else repr(float(value))
