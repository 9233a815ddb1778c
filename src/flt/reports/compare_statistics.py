"""Figures of runs, their mean and deviation over seeds, and paired differences between methods."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from flt.core import formatting
from flt.core.errors import InputError
from flt.reports.compare_runs import Method, Problem, names_of_runs
from flt.run.stored import StoredRun

LEVEL = 0.95
"""Confidence level of the intervals."""
PREFIXES = {"test": "test/", "validation": "round/", "best": "round/", "clients": "clients/"}
"""Value of ``metric=`` -> prefix of the columns of metrics.csv from which it is taken."""
UP, DOWN, SECONDS = "comm/total_up", "comm/total_down", "time/total_seconds"
COSTS = (UP, DOWN, SECONDS)


@dataclasses.dataclass(frozen=True)
class Summary:
    """Mean and sample standard deviation (n - 1) of the values of several seeds.

    Attributes:
        mean: Mean of the values. NaN if there are none.
        deviation: Sample standard deviation. NaN with fewer than two values.
        values: Seed -> value.
    """

    mean: float
    deviation: float
    values: dict[int, float]


@dataclasses.dataclass(frozen=True)
class Difference:
    """Mean of the paired differences between a method and the baseline, with its interval from Student's t.

    Attributes:
        mean: Mean over the seeds that both have. NaN if they share none.
        low: Lower end of the interval of confidence LEVEL. NaN with fewer than two pairs.
        high: Upper end of the interval.
        pairs: Number of seeds that both have.
    """

    mean: float
    low: float
    high: float
    pairs: int


@dataclasses.dataclass(frozen=True)
class Measure:
    """Metrics that are compared.

    Attributes:
        source: ``test``, ``validation``, ``best``, ``clients``, or a column of metrics.csv.
        columns: Columns of metrics.csv. The first one decides which method is better, and is tested for differences.
        curve: Column that is drawn over the rounds and compared with the target. None: there is no such column.
    """

    source: str
    columns: tuple[str, ...]
    curve: str | None


def measure(problem: Problem, metric: str | None = None) -> Measure | None:
    """Chooses the columns to compare: those of the test examples, else of the validation, else of the clients' models.

    Args:
        problem: Methods to compare.
        metric: ``test``, ``validation`` (the last round), ``best`` (the round with the best validation score),
            ``clients`` (models as received by the clients), or a column of metrics.csv (its last value).

    Returns:
        The columns, or None if no run has such metrics.
    """
    known, by_prefix = _known([problem])
    curves = {column: None for found in (by_prefix["validation"], by_prefix["clients"]) for column in found[:1]}
    if metric in known:
        per_round = any(_is_curve(run, metric) for method in problem.methods for run in method.runs.values())
        return Measure(metric, (metric,), metric if per_round else next(iter(curves), None))
    source = metric or next((name for name in ("test", "validation", "clients") if by_prefix[name]), "test")
    if not by_prefix.get(source):
        return None
    columns = by_prefix[source]
    return Measure(source, columns, columns[0] if source != "test" else next(iter(curves), None))


def unmeasured(problems: Sequence[Problem], metric: str | None) -> InputError:
    """Builds the error for runs of which none has the metric."""
    known, by_prefix = _known(problems)
    words = [word for word, columns in by_prefix.items() if columns]
    others = [column for column in known if not column.startswith("time/")]
    what = "no run on " + "; ".join(problem.name for problem in problems) + " has it"
    why = what if metric else f"no metrics of a model in {names_of_runs(problems)}"
    return InputError.of("metric", metric or "null", [*words, *others], why)


def _known(problems: Iterable[Problem]) -> tuple[dict[str, None], dict[str, tuple[str, ...]]]:
    """Returns the columns of the problems' runs, and the columns for each value of ``metric=`` in PREFIXES."""
    runs = [run for problem in problems for method in problem.methods for run in method.runs.values()]
    known = dict.fromkeys(key for run in runs for key in _columns(run))
    return known, {source: _two(known, prefix) for source, prefix in PREFIXES.items()}


def _columns(run: StoredRun) -> list[str]:
    return [key for key in dict.fromkeys(key for row in run.history for key in row) if key != "round"]


def _two(known: Iterable[str], prefix: str) -> tuple[str, ...]:
    """Returns the columns of the best measure of a model and of the loss, as far as there are such columns."""
    names = [key.removeprefix(prefix) for key in known if key.startswith(prefix)]
    if prefix == PREFIXES["clients"]:
        names = [name for name in names if f"{name}{formatting.WORST}" in names]
    chosen = (formatting.score(sorted(names)), formatting.loss(sorted(names)))
    return tuple(f"{prefix}{name}" for name in dict.fromkeys(chosen) if name is not None)


def _is_curve(run: StoredRun, column: str) -> bool:
    return sum(column in row for row in run.history) > 1


def value(run: StoredRun, column: str, at: Measure) -> float | None:
    """Returns a run's value in a column: the last one, or with ``best`` the one in the best round of the run."""
    rows = [row for row in run.history if column in row]
    if at.source == "best" and column in at.columns:
        rows = [row for row in rows if at.columns[0] in row]
        best = min if formatting.lower_is_better(at.columns[0]) else max
        return best(rows, key=lambda row: row[at.columns[0]])[column] if rows else None
    return rows[-1][column] if rows else None


def summary(method: Method, column: str, at: Measure) -> Summary:
    """Returns the mean and deviation of a column over the seeds that have it."""
    found = {seed: value(run, column, at) for seed, run in method.runs.items()}
    return summarise({seed: number for seed, number in found.items() if number is not None})


def summarise(values: Mapping[int, float]) -> Summary:
    """Returns the mean and the sample standard deviation of the values.

    Example:
        >>> summarise({0: 1.0, 1: 3.0})
        Summary(mean=2.0, deviation=1.4142135623730951, values={0: 1.0, 1: 3.0})
    """
    numbers = list(values.values())
    with np.errstate(invalid="ignore"):  # values may be infinite
        mean = float(np.mean(numbers)) if numbers else math.nan
        return Summary(mean, float(np.std(numbers, ddof=1)) if len(numbers) > 1 else math.nan, dict(values))


def difference(found: Summary, baseline: Summary) -> Difference:
    """Returns the mean of the differences per seed, with the interval of Student's t with n - 1 degrees of freedom."""
    from scipy.special import stdtrit  # scipy.stats would take a second to import

    gaps = summarise(
        {seed: found.values[seed] - baseline.values[seed] for seed in found.values if seed in baseline.values}
    )
    pairs = len(gaps.values)
    half = math.nan if pairs < 2 else float(stdtrit(pairs - 1, (1 + LEVEL) / 2)) * gaps.deviation / math.sqrt(pairs)
    return Difference(gaps.mean, gaps.mean - half, gaps.mean + half, pairs)


@dataclasses.dataclass(frozen=True)
class Reached:
    """Costs of a method's runs up to the target, for the runs that reached it.

    Attributes:
        runs: Number of runs.
        rounds: Seed -> first round whose value reaches the target.
        bytes: Seed -> bytes up and down of all rounds until then.
        seconds: Seed -> time until then.
    """

    runs: int
    rounds: Summary
    bytes: Summary
    seconds: Summary


def reached(method: Method, column: str, target: float) -> Reached:
    """Returns what the runs of a method needed until a column reached the target."""
    rows = {seed: row for seed, run in method.runs.items() if (row := _first(run, column, target)) is not None}
    return Reached(
        len(method.runs),
        summarise({seed: row["round"] for seed, row in rows.items()}),
        summarise({seed: row[UP] + row[DOWN] for seed, row in rows.items() if UP in row and DOWN in row}),
        summarise({seed: row[SECONDS] for seed, row in rows.items() if SECONDS in row}),
    )


def _first(run: StoredRun, column: str, target: float) -> dict[str, float] | None:
    for number, row in enumerate(run.history, start=1):
        found = row.get(column, math.nan)
        if found <= target if formatting.lower_is_better(column) else found >= target:
            return {"round": number, **row}
    return None


@dataclasses.dataclass(frozen=True)
class Curve:
    """Mean and deviation of a method's metric over rounds that all its runs have measured.

    Attributes:
        x: Rounds, or mean MB up and down until each round.
        mean: Means over the seeds.
        deviation: Sample standard deviations. NaN with one seed.
    """

    x: list[float]
    mean: list[float]
    deviation: list[float]


def curve(method: Method, column: str, over_bytes: bool = False) -> Curve:
    """Returns a method's curve over the rounds, or over the bytes that have been sent."""
    runs = [{int(row.get("round", n)): row for n, row in enumerate(run.history, 1)} for run in method.runs.values()]
    needed = {column, *((UP, DOWN) if over_bytes else ())}
    runs = [{n: row for n, row in run.items() if needed <= set(row)} for run in runs]
    runs = [run for run in runs if run]
    shared = sorted(set.intersection(*map(set, runs))) if runs else []
    points = [summarise({seed: run[n][column] for seed, run in enumerate(runs)}) for n in shared]
    x = [float(np.mean([run[n][UP] + run[n][DOWN] for run in runs])) / 1e6 for n in shared] if over_bytes else shared
    return Curve([float(at) for at in x], [point.mean for point in points], [point.deviation for point in points])


def problems_with(methods: Sequence[Method], at: Measure) -> list[str]:
    """Returns notes about runs without the metric, and about methods with one seed or other seeds than the rest."""
    notes = []
    lacking = [(m, len(m.runs) - len(summary(m, at.columns[0], at).values)) for m in methods]
    if some := [f"{method.label} ({count} of {len(method.runs)})" for method, count in lacking if count]:
        notes.append(f"runs without {at.columns[0]}: {', '.join(some)}")
    if len({tuple(method.seeds) for method in methods}) > 1:
        seeds = "; ".join(f"{method.label}: {', '.join(map(str, method.seeds))}" for method in methods)
        notes.append(f"the methods have different seeds ({seeds}), and differences are taken over those of both")
    if single := [method.label for method in methods if len(method.runs) == 1]:
        notes.append(f"one seed, so no deviation and no interval: {', '.join(single)}")
    if len({str(run.setting("threads")) for method in methods for run in method.runs.values()}) > 1:
        notes.append("runs had different numbers of threads, so their times can't be compared")
    return notes
