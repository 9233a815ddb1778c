"""The clients of a run: the spread of their models over the rounds, the worst of them, and the partition."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from flt.callbacks.record_format import QUANTILES, evenly
from flt.core import formatting
from flt.reports.charts import POINTS, TABLE, Chart, Table, finite, heatmap, number, plain, round_axis, score
from flt.reports.curves import word_of
from flt.reports.read import Recorded

WORST = 10
BANDS = ((0, 8, "all clients", 0.10), (2, 6, "80 % of clients", 0.16), (3, 5, "half of the clients", 0.26))
"""Places of two quantiles, the name of the band between them, and its opacity."""


def spread(recorded: Recorded) -> list[Chart]:
    """Returns a chart with the quantiles, over the clients of each round, of the score of their received models."""
    found = [(line["round"], line["clients"][key]) for line, key in _scored(recorded)]
    if not found:
        return []
    kept = evenly(range(len(found)), POINTS)
    rounds = [found[i][0] for i in kept]
    values = [_quantiles(found[i][1]) for i in kept]
    word = word_of(_scored(recorded)[-1][1])
    traces = [trace for band in BANDS for trace in _band(rounds, values, *band)]
    traces.append({
        "type": "scatter", "name": "median", "x": rounds, "y": [row[4] for row in values],
        "mode": "lines+markers" if len(rounds) <= 30 else "lines", "line": {"color": "@0", "width": 2.5},
        "marker": {"size": 5},
    })  # fmt: skip
    layout = {"xaxis": round_axis(rounds), "yaxis": {"title": {"text": word}}}
    columns = ["round", "smallest", "10 %", "25 %", "median", "75 %", "90 %", "largest"]
    rows = [[number(r), *(score(v[i]) for i in (0, 2, 3, 4, 5, 6, 8))] for r, v in zip(rounds, values, strict=True)]
    title, final = f"{word.capitalize()} of the received models, over clients", values[-1]
    label = (
        f"{title}. In round {rounds[-1]} the median is {score(final[4])}, half of the clients lie between "
        f"{score(final[3])} and {score(final[5])}, and all between {score(final[0])} and {score(final[8])}."
    )
    note = "Each client evaluates the model that it receives on the examples that it holds out."
    table = Table(title, columns, [rows[i] for i in evenly(range(len(rows)), TABLE)])
    return [Chart("chart-clients", title, label, traces, layout, table, note, 360, wide=True)]


def worst(recorded: Recorded) -> list[Table]:
    """Returns the table of the clients whose received models are worst in the newest round."""
    scored = _scored(recorded)
    if not scored:
        return []
    line, key = scored[-1]
    part, lower = line["clients"][key], formatting.lower_is_better(key)
    if "worst" in part:
        places = {tuple(job): place for place, job in enumerate(recorded.head["jobs"])}
        named = [(_job_name(job[:2]), job[2], places.get(tuple(job[:2]))) for job in part["worst"]]
    else:
        jobs = part.get("jobs", range(len(recorded.jobs)))
        pairs = sorted(zip(part["values"], jobs, strict=True), key=lambda pair: (_badness(pair[0], lower), pair[1]))
        named = [(recorded.jobs[place], value, int(place)) for value, place in pairs[:WORST]]
    fitted = _fitted(recorded, line, key)
    columns = ["client", "examples", f"{word_of(key)} as received", *(["after local training"] if fitted else [])]
    several = len(recorded.head["tasks"]) > 1
    if several:
        columns.insert(1, "task")
    if len(set(recorded.head["ranks"])) > 1:
        columns.insert(2 + several, "rank")
    rows = []
    for name, value, place in named:
        about = [recorded.head[part][place] if place is not None else None for part in ("examples", "ranks")]
        cells = [
            name,
            *([_task(recorded, place)] if several else []),
            number(about[0]),
            *([number(about[1])] if "rank" in columns else []),
            score(value),
        ]
        rows.append([*cells, *([score(fitted.get(place) if place is not None else None)] if fitted else [])])
    title = f"The {len(rows)} worst of {number(recorded.head['of'])} {unit(recorded)}s in round {line['round']}"
    return [Table(title, [unit(recorded), *columns[1:]], rows, left=1 + several)]


def _task(recorded: Recorded, place: int | None) -> str:
    return "–" if place is None else str(recorded.head["tasks"][recorded.head["task"][place]])


def partition(recorded: Recorded) -> list[Chart]:
    """Returns the heat map of the examples of each class and client, or the numbers of examples without classes."""
    if not recorded.head:
        return []
    head, names = recorded.head, recorded.jobs
    several = len(head["tasks"]) > 1
    rows = [
        f"{name}  {head['tasks'][task]}" if several else name for name, task in zip(names, head["task"], strict=True)
    ]
    each = unit(recorded)
    total = f"{number(sum(head['examples']))} training examples of {head['clients']} clients."
    if len(names) < head["of"]:
        total = f"{number(len(names))} of {number(head['of'])} {each}s are recorded, evenly spaced."
    if head["classes"] and any(head["counts"]):
        title = f"Examples of each class and {each}"
        about = (each, "class", "examples")
        counts = [[None if count is None else int(count) for count in row] for row in head["counts"]]
        return [heatmap("chart-partition", title, counts, rows, [str(n) for n in head["classes"]], about, total)]
    return [_sizes(rows, [int(count) for count in head["examples"]], each, total)]


def unit(recorded: Recorded) -> str:
    """Returns what a row stands for: a client, or a job if any client has several."""
    return "client" if all(index == 0 for _, index in recorded.head["jobs"]) else "job"


def _sizes(rows: Sequence[str], sizes: Sequence[int], each: str, note: str) -> Chart:
    title, kept = f"Examples of each {each}", evenly(range(len(rows)), 200)
    trace = {"type": "bar", "x": kept, "y": [sizes[i] for i in kept], "text": [plain(rows[i]) for i in kept],
             "textposition": "none", "marker": {"color": "@0"},
             "hovertemplate": "%{text}: %{y}<extra></extra>"}  # fmt: skip
    layout = {"xaxis": {"title": {"text": each}}, "yaxis": {"title": {"text": "examples"}}}
    label = f"{title}: {len(sizes)} bars from {number(min(sizes))} to {number(max(sizes))} examples."
    table = Table(title, [each, "examples"], [[rows[i], number(sizes[i])] for i in kept])
    return Chart("chart-partition", title, label, [trace], layout, table, note, 280, wide=True)


def _scored(recorded: Recorded) -> list[tuple[dict[str, Any], str]]:
    """Returns the lines that have a score of the received models, or else a loss, each with its key."""
    found = []
    for line in recorded.having("clients"):
        names = [key for key in line["clients"] if key.startswith("received/")]
        key = formatting.score(names) or formatting.loss(names)
        if key and any(_quantiles(line["clients"][key])):
            found.append((line, key))
    return found


def _quantiles(part: dict[str, Any]) -> list[float | None]:
    """Returns the quantiles of QUANTILES, by linear interpolation as in NumPy."""
    if "quantiles" in part:
        return [finite(value) for value in part["quantiles"]] or [None] * len(QUANTILES)
    values = sorted(value for value in part["values"] if value is not None and math.isfinite(value))
    if not values:
        return [None] * len(QUANTILES)
    found = list[float | None]()
    for share in QUANTILES:
        below, rest = divmod(share * (len(values) - 1), 1)
        low, high = values[int(below)], values[min(int(below) + 1, len(values) - 1)]
        found.append(low + rest * (high - low))
    return found


def _band(
    rounds: Sequence[int], values: Sequence[Sequence[float | None]], low: int, high: int, name: str, opacity: float
) -> list[dict[str, Any]]:
    """Returns two traces, of which the second fills the space below it down to the first."""
    common = {"type": "scatter", "x": rounds, "mode": "lines", "line": {"width": 0, "color": "@0"}, "hoverinfo": "skip"}
    lower = {**common, "y": [row[low] for row in values], "showlegend": False}
    upper = {
        **common,
        "y": [row[high] for row in values],
        "name": name,
        "fill": "tonexty",
        "fillcolor": f"@0/{opacity}",
    }
    return [lower, upper]


def _fitted(recorded: Recorded, line: dict[str, Any], key: str) -> dict[int, float]:
    part = line["clients"].get(key.replace("received/", "fitted/"), {})
    if "values" not in part:
        return {}
    return dict(zip(part.get("jobs", range(len(recorded.jobs))), part["values"], strict=True))


def _badness(value: float | None, lower: bool) -> float:
    return -math.inf if value is None else -value if lower else value


def _job_name(job: Sequence[int]) -> str:
    return f"{int(job[0])}.{int(job[1])}" if job[1] else f"{int(job[0])}"
