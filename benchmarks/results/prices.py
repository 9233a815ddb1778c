"""What a run costs, and which of these prices two rows have in common."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence

from benchmarks.results.cell import Record
from benchmarks.results.reduce import MB, curve
from benchmarks.results.table import PRICES, Table

WITHIN = 0.05
"""Mean prices that differ by no more than this share of the larger one count as equal."""


def _last(key: str) -> Callable[[Record], float | None]:
    return lambda record: next(reversed(curve(record, key)), None)


def _steps(record: Record) -> float | None:
    values = curve(record, "clients/steps")
    return None if not values or None in values else sum(value or 0.0 for value in values)


OF: dict[str, Callable[[Record], float | None]] = {
    "rounds": lambda record: float(max(map(len, record.history.values()), default=0)) or None,
    "steps": _steps,
    "bytes up": _last("comm/total_up"),
    "bytes down": _last("comm/total_down"),
    "simulated hours": _last("time/simulated_hours"),
}
"""Price -> its value for a whole run; steps are those of all clients together. A run without it has None."""
SHOWN = {"bytes up": (MB, " MB"), "bytes down": (MB, " MB")}


def equal(first: Sequence[Record], second: Sequence[Record]) -> list[str]:
    """The prices that two rows have in common, on average over the seeds that both have.

    Example:
        >>> equal([], [])
        []
    """
    seeds = {record.seed for record in first} & {record.seed for record in second}
    rows = [[record for record in row if record.seed in seeds] for row in (first, second)]
    return [name for name in PRICES if seeds and _same(*(_mean(name, row) for row in rows))]


def _mean(name: str, records: Sequence[Record]) -> float | None:
    known = [price for record in records if (price := OF[name](record)) is not None]
    return statistics.fmean(known) if len(known) == len(records) else None


def _same(first: float | None, second: float | None) -> bool:
    return first is not None and second is not None and abs(first - second) <= WITHIN * max(first, second)


def sentence(table: Table, records: Mapping[str, Sequence[Record]]) -> str:
    """What the rows under each heading have in common, which rows are exceptions, and how far the other prices reach.

    Args:
        table: Its ``equal`` names the prices that are meant to be equal. Its control is no competitor: it has no price.
        records: Row id -> its runs.
    """
    others: dict[str, list[str]] = {}
    for name in table.equal:
        if rows := _exceptions(name, table, records):
            others.setdefault(", ".join(f"`{id}`" for id in rows), []).append(name)
    headed = " under each heading" if len({row.group for row in table.rows}) > 1 else ""
    parts = [f"**Equal price{headed}:** {_listed(table.equal)}, within {WITHIN * 100:.0f} % on average over the seeds."]
    parts += [f"Not equal in {_listed(names)}: {rows}." for rows, names in others.items()]
    paid = [record for id, found in records.items() if id != table.control for record in found]
    if ranges := [said for name in PRICES if name not in table.equal and (said := _range(name, paid))]:
        parts.append(f"The rows differ in {_listed(ranges)}.")
    return " ".join(parts)


def _listed(names: Sequence[str]) -> str:
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)


def _exceptions(name: str, table: Table, records: Mapping[str, Sequence[Record]]) -> list[str]:
    """The rows whose price isn't that of most rows under their heading."""
    groups: dict[str, list[str]] = {}
    for row in table.rows:
        if records[row.id] and row.id != table.control:
            groups.setdefault(row.group, []).append(row.id)
    found = []
    for rows in groups.values():
        alike = ([other for other in rows if name in equal(records[id], records[other])] for id in rows)
        usual = max(alike, key=len)
        found += [id for id in rows if id not in usual]
    return found


def _range(name: str, records: Sequence[Record]) -> str:
    """Least and greatest price of all runs; empty where they are equal."""
    known = sorted(price for record in records if (price := OF[name](record)) is not None)
    if not known or _same(known[0], known[-1]):
        return ""
    scale, unit = SHOWN.get(name, (1.0, ""))
    low, high = (f"{value:,.0f}" if value >= 100 else f"{value:.3g}" for value in (known[0] * scale, known[-1] * scale))
    return f"{name} ({low} to {high}{unit})"
