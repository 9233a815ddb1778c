"""Curves of one run or of several: accuracy and loss over rounds, and against bytes and time."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

from flt.core import formatting
from flt.reports.charts import COLOURS, DASHES, Chart, Series, Table, lines, score
from flt.run.stored import StoredRun

Pick = Callable[[Sequence[str]], str | None]
GLOBAL, TRAINING, RECEIVED, FITTED = "round/", "train/", "clients/", "clients/fitted_"


def of_one(run: StoredRun) -> list[Chart]:
    """Returns the charts of one run: score and loss over rounds, and the score against bytes and time."""
    charts = []
    for id, pick, others in (("score", formatting.score, "accuracy"), ("loss", formatting.loss, "loss")):
        found = {name: (key, name) for name, key in _keys(run, pick).items()}
        series = [
            Series(named(name, [run]), *points(run, "round", key), _PLACE[name], _DASH[name])
            for name, (key, _) in found.items()
        ]
        if series:
            word = word_of(next(iter(found.values()))[0]) if id == "score" else others
            charts.append(lines(f"chart-{id}", f"{word.capitalize()} over rounds", "round", word, series))
    return charts + _costs([run])


def of_several(runs: Sequence[StoredRun], names: Sequence[str]) -> list[Chart]:
    """Returns the charts that compare runs. Each run has the same colour and dash in all charts."""
    charts, drawn = [], looks(runs)
    for id, pick, name in (
        ("score", formatting.score, "global model"),
        ("received", formatting.score, "received, mean"),
        ("worst", formatting.score, "received, worst 10 %"),
        ("loss", formatting.loss, "global model"),
    ):
        keys = [_keys(run, pick).get(name) for run in runs]
        if any(keys):
            word = word_of(next(filter(None, keys)))
            series = [
                Series(label, *points(run, "round", key), *look)
                for run, label, key, look in zip(runs, names, keys, drawn, strict=True)
                if key
            ]
            alone = id in ("score", "loss")
            title = f"{word.capitalize()} of the {name}" if alone else f"{word.capitalize()}, {named(name, runs)}"
            charts.append(lines(f"chart-{id}", title, "round", word, series))
    return charts + _costs(runs, names)


def results(runs: Sequence[StoredRun], names: Sequence[str]) -> Table:
    """Returns the table of the last round of each run."""
    columns: dict[str, list[str]] = {"run": list(names), "rounds": [f"{len(run.history)}" for run in runs]}
    for prefix, title in (("test/", "test"), (GLOBAL, "validation"), (RECEIVED, "received")):
        for pick in (formatting.score, *([formatting.loss] if prefix != RECEIVED else [])):
            keys = [_key(run, prefix, pick) for run in runs]
            if any(keys):
                word = word_of(next(filter(None, keys)))
                columns[f"{title} {word}"] = [last(run, key) for run, key in zip(runs, keys, strict=True)]
    worst = [_keys(run, formatting.score).get("received, worst 10 %") for run in runs]
    if any(worst):
        columns[named("worst 10 %", runs)] = [last(run, key) for run, key in zip(runs, worst, strict=True)]
    for way in ("up", "down"):
        totals = [run.history[-1].get(f"comm/total_{way}") if run.history else None for run in runs]
        columns[f"bytes {way}"] = ["–" if total is None else formatting.size(total) for total in totals]
    seconds = [run.history[-1].get("time/total_seconds") if run.history else None for run in runs]
    columns["time"] = ["–" if s is None else formatting.duration(s) for s in seconds]
    hours = [run.history[-1].get(_TIMES["simulated"]) if run.history else None for run in runs]
    if any(h is not None for h in hours):
        columns["simulated time"] = ["–" if h is None else formatting.short_duration(3600 * h) for h in hours]
    return Table("Results after the last round of each run", list(columns), list(zip(*columns.values(), strict=True)))


def key_figures(run: StoredRun) -> list[tuple[str, str, str]]:
    """Returns (label, figure, remark) of what matters most, for the head of the report."""
    if not run.history:
        return []
    final, found = run.history[-1], list[tuple[str, str, str]]()
    for prefix, name, remark in (
        ("test/", "test", "global model, at the end"),
        (GLOBAL, "validation", "global model"),
        (RECEIVED, "received", "mean over clients, own examples"),
    ):
        if key := _key(run, prefix, formatting.score):
            loss = _key(run, prefix, formatting.loss)
            tail = f", loss {score(final[loss])}" if loss and loss in final else ""
            found.append((f"{name} {word_of(key)}", last(run, key), f"{remark}{tail}"))
    if (key := _keys(run, formatting.score).get("received, worst 10 %")) and key in final:
        found.append((named("worst 10 %", [run]), last(run, key), f"{word_of(key)} of the received models"))
    totals = [final.get(f"comm/total_{way}") for way in ("up", "down")]
    if all(total is not None for total in totals):
        up, down = (float(total or 0) for total in totals)
        remark = f"{formatting.size(up)} up, {formatting.size(down)} down"
        found.append(("bytes sent", formatting.size(up + down), remark))
    if (seconds := final.get("time/total_seconds")) is not None:
        found.append(
            ("time", formatting.duration(seconds), f"{formatting.duration(seconds / len(run.history))} a round")
        )
    if (hours := final.get("time/simulated_hours")) is not None:
        remark = f"{formatting.short_duration(3600 * hours / len(run.history))} a round, {final['fleet/energy']:.4g} J"
        found.append(("simulated time", formatting.short_duration(3600 * hours), remark))
    found.append(("rounds", f"{len(run.history)}", f"of {run.setting('rounds', len(run.history))} planned"))
    return found


def points(run: StoredRun, x: str, y: str) -> tuple[list[float], list[float]]:
    """Returns two metrics in the rounds that have both."""
    found = [(metrics[x], metrics[y]) for metrics in run.history if x in metrics and y in metrics]
    return [a for a, _ in found], [b for _, b in found]


def last(run: StoredRun, key: str | None) -> str:
    """Returns the newest value of a metric as a text."""
    return next((score(metrics[key]) for metrics in reversed(run.history) if key in metrics), "–") if key else "–"


def looks(runs: Sequence[StoredRun]) -> list[tuple[int, str]]:
    """Returns the number of the colour, and the dash, of each run.

    The runs of a recipe have one colour and differ in their dash. With more recipes than colours, or more runs of a
    recipe than dashes, each run has the next colour, and the dash changes when the colours repeat.
    """
    recipes = [str(run.setting("algo", run.label)) for run in runs]
    known = list(dict.fromkeys(recipes))
    if len(known) > COLOURS or max(map(recipes.count, known), default=0) > len(DASHES):
        return [(i, DASHES[i // COLOURS % len(DASHES)]) for i in range(len(runs))]
    return [(known.index(name), DASHES[recipes[:i].count(name)]) for i, name in enumerate(recipes)]


def _costs(runs: Sequence[StoredRun], names: Sequence[str] = ("",)) -> list[Chart]:
    """Returns the charts of the score against bytes and against time."""
    charts = []
    for id, title, axis in (
        ("bytes", "bytes sent, up and down", {"tickformat": "~s", "ticksuffix": "B"}),
        ("time", "seconds of training", {"ticksuffix": " s"}),
        ("simulated", f"simulated {_unit_of(runs)}", {}),
    ):
        series, words = [], []
        for run, name, look in zip(runs, names, looks(runs), strict=True):
            found = _keys(run, formatting.score)
            of = next((label for label in ("global model", "received, mean") if label in found), None)
            if of is not None:
                scale = _UNITS[_unit_of(runs)] if id == "simulated" else 1.0
                xs, ys = _against(run, id, found[of], scale)
                words.append(word_of(found[of]))
                series += [Series(name or of, xs, ys, *look)] if xs else []
        if series:
            word = words[0]
            heading = f"{word.capitalize()} against {_COSTS[id]}"
            charts.append(lines(f"chart-{id}", heading, title, word, series, xaxis={**axis, "rangemode": "tozero"}))
    return charts


def _unit_of(runs: Sequence[StoredRun]) -> str:
    """Returns the unit of simulated time in which the longest of the runs takes at least one: hours, or a smaller."""
    longest = max((metrics.get(_TIMES["simulated"], 0.0) for run in runs for metrics in run.history), default=0.0)
    return next((unit for unit, per_hour in _UNITS.items() if longest * per_hour >= 1), "seconds")


def _against(run: StoredRun, cost: str, key: str, scale: float) -> tuple[list[float], list[float]]:
    def spent(metrics: Mapping[str, float]) -> float:
        if cost in _TIMES:
            return metrics.get(_TIMES[cost], math.nan) * scale
        return metrics.get("comm/total_up", math.nan) + metrics.get("comm/total_down", math.nan)

    found = [(spent(metrics), metrics[key]) for metrics in run.history if key in metrics]
    return [x for x, _ in found if math.isfinite(x)], [y for x, y in found if math.isfinite(x)]


def _keys(run: StoredRun, pick: Pick) -> dict[str, str]:
    """Returns name of a curve -> its metric, for the metric that ``pick`` chooses."""
    received = _key(run, RECEIVED, pick)
    keys = {
        "global model": _key(run, GLOBAL, pick),
        "global model, training examples": _key(run, TRAINING, pick),
        "received, mean": received,
        "received, worst 10 %": f"{received}{formatting.WORST}" if received else None,
        "fitted, mean": f"{FITTED}{received.removeprefix(RECEIVED)}" if received else None,
    }
    known = {key for metrics in run.history for key in metrics}
    return {name: key for name, key in keys.items() if key in known}


def _key(run: StoredRun, prefix: str, pick: Pick) -> str | None:
    """Returns the metric with a prefix that ``pick`` chooses. Received metrics are those with a worst 10 %."""
    known: dict[str, float] = {key: value for metrics in run.history for key, value in metrics.items()}
    names = formatting.received_metrics(known) if prefix == RECEIVED else formatting.between(known, prefix)
    name = pick(list(names))
    return f"{prefix}{name}" if name else None


def named(name: str, runs: Sequence[StoredRun]) -> str:
    """Returns the name of a figure in the words of the run's summary: the worst 10 % are those of clients or of jobs.

    Example:
        >>> named("received, worst 10 %", [])
        'received, worst 10 % of clients'
    """
    jobs = bool(runs) and all(run.setting("jobs") == "per_task" for run in runs)
    return name.replace("worst 10 %", f"worst 10 % of {'jobs' if jobs else 'clients'}")


def word_of(key: str) -> str:
    """Returns the word for a metric, such as accuracy for ``round/val_acc``."""
    name = key.rpartition("/")[2].removeprefix("fitted_").removesuffix(formatting.WORST).removeprefix("val_")
    return {"acc": "accuracy"}.get(name, name.replace("_", " "))


_COSTS = {"bytes": "bytes", "time": "time", "simulated": "simulated time"}
_TIMES = {"time": "time/total_seconds", "simulated": "time/simulated_hours"}
_UNITS = {"hours": 1.0, "minutes": 60.0, "seconds": 3600.0}
_PLACE = {
    "global model": 0,
    "global model, training examples": 4,
    "received, mean": 2,
    "received, worst 10 %": 1,
    "fitted, mean": 3,
}
_DASH = {
    "global model": "solid",
    "global model, training examples": "dot",
    "received, mean": "solid",
    "received, worst 10 %": "dot",
    "fitted, mean": "dash",
}
