"""A cell of a table: one run, and the small file that is kept of it.

::

    docs/results/cells/<table>/<row>-<seed>.json
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

FORMAT = 1
"""Changes when what a cell holds comes to mean something else: all cells run anew."""
KEPT = (
    "round/", "train/", "gap/", "distributed/", "clients/", "client_test/", "task/", "ranks/", "cluster/",
    "comm/params_up", "comm/reduction", "comm/total_", "faults/", "fleet/",
    "time/total_seconds", "time/simulated_hours",
)  # fmt: skip
"""How the keys begin that are kept of each round."""
DIGITS = 6
"""Significant digits that are kept."""
UNSTEADY = ("time/total_seconds",)
"""How the keys begin that differ from one run to the next."""

Series = dict[str, list[float | None]]


@dataclasses.dataclass(frozen=True)
class Cell:
    """One run of a table.

    Attributes:
        table: Name of the table.
        row: Id of the row.
        seed: Of the run.
        overrides: As for ``flt train``.
    """

    table: str
    row: str
    seed: int
    overrides: list[str]

    @property
    def name(self) -> str:
        """Such as ``hafl/freeze-0``."""
        return f"{self.table}/{self.row}-{self.seed}"

    @property
    def fingerprint(self) -> str:
        """SHA-256 of all that the figures depend on, short of the code; the order of the overrides isn't part of it."""
        said = json.dumps([FORMAT, self.seed, sorted(self.overrides)])
        return hashlib.sha256(said.encode()).hexdigest()[:16]


@dataclasses.dataclass(frozen=True)
class Record:
    """What is kept of a finished cell.

    Attributes:
        table: Name of the table.
        row: Id of the row.
        seed: Of the run.
        overrides: As given.
        fingerprint: Of the cell that was run.
        history: Metric -> its value in each round, None where a round hasn't any.
        test: Metric -> its value on the test split.
        versions: Package -> its version.
        hardware: Class of the hardware.
        threads: Of torch.
        seconds: Wall time of the run.
        task_map: The clusters at the end of the run, as ``flt.callbacks.task_map`` has them; left out where empty.
    """

    table: str
    row: str
    seed: int
    overrides: list[str]
    fingerprint: str
    history: Series
    test: dict[str, float]
    versions: dict[str, str]
    hardware: str
    threads: int
    seconds: float
    task_map: list[dict[str, Any]] = dataclasses.field(default_factory=list)


class Store:
    """The folder of the cells.

    Args:
        folder: ``docs/results/cells``.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def path(self, cell: Cell) -> Path:
        """Where the cell's record is, or will be."""
        return self.folder / f"{cell.name}.json"

    def read(self, cell: Cell) -> Record | None:
        """The cell's record; None where there is none, or one of other overrides."""
        try:
            record = Record(**json.loads(self.path(cell).read_text()))
        except (OSError, TypeError, json.JSONDecodeError):
            return None
        return record if record.fingerprint == cell.fingerprint else None

    def write(self, cell: Cell, record: Record) -> None:
        """Keeps the record of a cell."""
        write(self.path(cell), to_json(record).encode())

    def strangers(self, table: str, cells: Sequence[Cell]) -> list[Path]:
        """Files of a table that are no cells of it any more."""
        known = {self.path(cell) for cell in cells}
        return sorted(path for path in (self.folder / table).glob("*.json") if path not in known)


def series(history: Sequence[Mapping[str, float]]) -> Series:
    """The kept metrics of all rounds, rounded, by their names.

    Example:
        >>> series([{"round/val_acc": 1 / 3, "comm/bytes_up": 4}, {"round/val_acc": 0.5}])
        {'round/val_acc': [0.333333, 0.5]}
    """
    keys = sorted({key for metrics in history for key in metrics if key.startswith(KEPT)})
    return {key: [rounded(metrics[key]) if key in metrics else None for metrics in history] for key in keys}


def rounded(value: float) -> float | None:
    """A value to six significant digits; None for what no JSON number is."""
    value = float(value)
    if not math.isfinite(value):
        return None
    short = float(f"{value:.{DIGITS}g}")
    return int(short) if short.is_integer() else short


def differences(old: Record, new: Record) -> dict[str, tuple[Any, Any]]:
    """Metric -> the two values at the first place where they differ by more than the last digit; times aside."""
    found: dict[str, tuple[Any, Any]] = {}
    olds, news = _figures(old), _figures(new)
    for key in sorted(olds.keys() | news.keys()):
        a, b = olds.get(key), news.get(key)
        if a is None or b is None or not math.isclose(a, b, rel_tol=2 * 10.0 ** (1 - DIGITS)):
            found[key] = (a, b)
    return found


def _figures(record: Record) -> dict[str, float]:
    """All figures that should be the same again, such as ``round/val_acc in round 3``."""
    listed = {f"test/{key}": value for key, value in record.test.items()}
    for key, values in record.history.items():
        if not key.startswith(UNSTEADY):
            listed |= {f"{key} in round {n}": value for n, value in enumerate(values, 1) if value is not None}
    return listed


def to_json(record: Record) -> str:
    """One line for each metric, so that a change can be read."""
    fields = {key: value for key, value in dataclasses.asdict(record).items() if key != "task_map" or value}
    return "{\n" + ",\n".join(f" {json.dumps(key)}: {_value(value)}" for key, value in fields.items()) + "\n}\n"


def _value(value: Any) -> str:
    if not isinstance(value, dict) or not value:
        return json.dumps(value)
    return "{\n" + ",\n".join(f"  {json.dumps(key)}: {json.dumps(item)}" for key, item in value.items()) + "\n }"


def write(path: Path, data: bytes) -> bool:
    """Writes a file in one go, unless it holds the same already; returns whether it did."""
    if path.is_file() and path.read_bytes() == data:
        return False
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_bytes(data)
    os.replace(temporary, path)
    return True
