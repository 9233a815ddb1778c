"""From the rounds of a run to one figure, and from the figures of the seeds to what the page says."""

from __future__ import annotations

import dataclasses
import math
import statistics
from collections.abc import Mapping, Sequence

from benchmarks.results.cell import Record
from benchmarks.results.statistics import interval
from benchmarks.results.table import Column

CROSSED = "comm/total_up + comm/total_down"
MB = 1e-6


def curve(record: Record, key: str) -> list[float | None]:
    """A metric, or the sum of several joined by ``+``, in each round; empty where the run has none of it."""
    parts = [record.history.get(part.strip()) for part in key.split("+")]
    if any(part is None for part in parts):
        return []
    return [_sum(values) for values in zip(*filter(None, parts), strict=True)]


def _sum(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return math.fsum(known) if len(known) == len(values) else None


def figure(record: Record, column: Column, target: float | None, target_key: str) -> float | None:
    """The figure of a run in a column; None where it has none, infinity where the target isn't reached.

    Args:
        record: The run.
        column: What is asked for.
        target: What the metric is to reach; None: there is no target.
        target_key: The metric.
    """
    if column.reduce.endswith("_to_target"):
        reached = rounds_to(curve(record, target_key), target)
        if reached is None or column.reduce == "rounds_to_target" or math.isinf(reached):
            return reached
        bytes_ = curve(record, CROSSED)[int(reached) - 1]
        return None if bytes_ is None else bytes_ * column.scale
    if column.reduce == "test":
        found = record.test.get(column.key.removeprefix("test/"))
    else:
        found = reduced(column, curve(record, column.key))
    return None if found is None else found * column.scale


def reduced(column: Column, values: Sequence[float | None]) -> float | None:
    """The last, best, mean or summed value of the column's rounds, their number, or the last less the first.

    None without a value.
    """
    if column.reduce == "count":
        return float(len(values)) if values else None
    if column.reduce == "last":
        return values[-1] if values else None
    known = [value for value in values[column.first - 1 : column.last] if value is not None]
    if not known:
        return None
    if column.reduce == "best":
        return min(known) if column.better == "lower" else max(known)
    if column.reduce == "rise":
        return known[-1] - known[0]
    return math.fsum(known) if column.reduce == "total" else math.fsum(known) / len(known)


def rounds_to(values: Sequence[float | None], target: float | None) -> float | None:
    """The first round in which the target is reached; infinity where it never is, None without a target or values.

    Example:
        >>> rounds_to([0.2, 0.5, 0.4], 0.5)
        2.0
    """
    if target is None or not values:
        return None
    rounds = (float(n) for n, value in enumerate(values, 1) if value is not None and value >= target)
    return next(rounds, math.inf)


@dataclasses.dataclass(frozen=True)
class Spread:
    """Figures of several seeds.

    Attributes:
        values: In the order of the seeds; infinite where a target wasn't reached.
    """

    values: tuple[float, ...]

    @property
    def finite(self) -> list[float]:
        """Those that there are."""
        return [value for value in self.values if math.isfinite(value)]

    @property
    def mean(self) -> float:
        """Infinite as soon as one value is."""
        return math.inf if len(self.finite) < len(self.values) else statistics.fmean(self.values)

    @property
    def deviation(self) -> float | None:
        """Sample standard deviation; None for one value."""
        return statistics.stdev(self.values) if len(self.finite) == len(self.values) > 1 else None


@dataclasses.dataclass(frozen=True)
class Paired:
    """Differences of two rows on the same seeds.

    Attributes:
        differences: First minus second, by seed; finite.
    """

    differences: tuple[float, ...]

    @property
    def mean(self) -> float:
        """Mean difference."""
        return statistics.fmean(self.differences)

    @property
    def deviation(self) -> float | None:
        """Sample standard deviation; None for one seed."""
        return statistics.stdev(self.differences) if len(self.differences) > 1 else None

    @property
    def agreeing(self) -> int:
        """Seeds on which the difference has the sign of the mean."""
        return sum(difference * self.mean > 0 for difference in self.differences)

    def interval(self, level: float = 0.95) -> tuple[float, float] | None:
        """Student's t interval of the mean, not corrected for several comparisons; None for one seed."""
        return interval(self.differences, level)


def paired(first: Mapping[int, float], second: Mapping[int, float]) -> Paired | None:
    """The differences on the seeds that both have; None without any, or where a target wasn't reached on one of them.

    Leaving that seed out would keep only those on which the slower row did well.
    """
    differences = tuple(first[seed] - second[seed] for seed in sorted(first) if seed in second)
    return Paired(differences) if differences and all(map(math.isfinite, differences)) else None
