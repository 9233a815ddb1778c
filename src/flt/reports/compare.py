"""Comparison of runs: means and differences over seeds, and figures for papers. Nothing here imports torch."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Protocol

from flt.core.errors import InputError
from flt.reports.compare_result import Comparison
from flt.reports.compare_runs import Method, Problem, names_of_runs, read_runs, sort_runs
from flt.reports.compare_statistics import measure, problems_with, unmeasured
from flt.reports.compare_tables import View


class HasPath(Protocol):
    """Object with the folder of its run, such as the result of ``flt.fit``."""

    path: Path


def compare(
    runs: str | Path | HasPath | Iterable[str | Path | HasPath],
    *,
    metric: str | None = None,
    target: float | None = None,
    baseline: str | None = None,
    root: str | Path = "lightning_logs",
) -> Comparison:
    """Compares runs: mean and standard deviation over seeds, and paired differences between methods.

    The runs of a method differ only in their seed. A method is a recipe with its settings. Methods are compared if
    their runs solve the same problem: the same data, partition, model, clients, rounds and so on. Otherwise, each
    problem has a table of its own. Of several runs with the same settings and seed, the newest counts. Runs that
    haven't finished are left out, and so are problems in which no run has the metric; the notes say so.

    Args:
        runs: Folders of runs, folders that contain runs, ``last``, results of ``flt.fit``, or several of these.
        metric: ``test``, ``validation`` (the last round), ``best`` (the round with the best validation score),
            ``clients`` (the models as received by the clients), or a column of metrics.csv. None: the first of test,
            validation and clients that the runs have.
        target: Value of the validation score. The rounds, bytes and seconds until it is reached are compared.
        baseline: Recipe or method from which the differences of the others are taken. None: the first method, in the
            order of the runs.
        root: Folder in which ``last`` is looked for.

    Returns:
        The comparison. ``print()`` shows it, ``table``, ``runs`` and ``settings`` are DataFrames, and ``to_csv``,
        ``to_latex``, ``figure`` and ``save`` write it.

    Raises:
        InputError: A run can't be read, none has finished or has measured a model, or the metric, the target or
            the baseline doesn't exist.
    """
    if target is not None and (isinstance(target, bool) or not math.isfinite(target)):
        raise InputError.of("target", target, "a finite number")
    found, unread = read_runs(_paths(runs), root)
    problems, notes = sort_runs(found)
    measures = [measure(problem, metric) for problem in problems]
    measured = [(problem, at) for problem, at in zip(problems, measures, strict=True) if at is not None]
    if not measured:
        raise unmeasured(problems, metric)
    bases = _baselines([problem for problem, _ in measured], baseline)
    views = [View(problem, at, base, target) for (problem, at), base in zip(measured, bases, strict=True)]
    if target is not None and all(view.at.curve is None for view in views):
        raise InputError.of("target", target, "null", "no run has a metric of the validation in its rounds")
    if without := [problem for problem, at in zip(problems, measures, strict=True) if at is None]:
        notes.append(f"left out, as they have no {metric or 'metrics of a model'}: {names_of_runs(without)}")
    notes += [note for view in views for note in problems_with(view.methods, view.at)]
    return Comparison(tuple(views), (*unread, *dict.fromkeys(notes)))


def _paths(runs: str | Path | HasPath | Iterable[str | Path | HasPath]) -> list[str | Path]:
    several = [runs] if isinstance(runs, str | Path) or hasattr(runs, "path") else list(runs)
    return [run if isinstance(run, str | Path) else run.path for run in several]


def _baselines(problems: Sequence[Problem], baseline: str | None) -> list[Method]:
    """Returns the baseline of each problem: the named method, and the first method of problems that don't have it.

    Raises:
        InputError: No problem has the method, or a recipe's name stands for several methods of a problem.
    """
    chosen: list[Method] = []
    for problem in problems:
        exact = [method for method in problem.methods if method.label == baseline]
        named = exact or [method for method in problem.methods if method.recipe == baseline]
        if len(named) > 1:
            raise InputError.of("baseline", baseline, [method.label for method in named], "several methods have it")
        chosen += named or problem.methods[:1]
    if baseline is not None and all(baseline not in (method.label, method.recipe) for method in chosen):
        names = dict.fromkeys(method.label for problem in problems for method in problem.methods)
        raise InputError.of("baseline", baseline, names)
    return chosen
