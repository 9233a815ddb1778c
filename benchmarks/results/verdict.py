"""From the cells of the tables to the outcome of a comparison, a case and a claim."""

from __future__ import annotations

import dataclasses
import math
import statistics
from collections.abc import Mapping, Sequence

from benchmarks.results import page, prices
from benchmarks.results.cell import Record
from benchmarks.results.claims import Book, Case, Claim, Comparison
from benchmarks.results.statistics import LEVEL, equivalence, interval, not_worse
from benchmarks.results.table import Column, Table

Tables = Mapping[str, tuple[Table, Mapping[str, Sequence[Record]]]]
"""Name -> the table, and its finished runs by row."""


@dataclasses.dataclass(frozen=True)
class Found:
    """What the cells say about a comparison.

    Attributes:
        outcome: yes, no, open (the seeds can't decide, or don't agree) or missing.
        values: By seed: the differences, or the figures where there is a bound.
        lacking: Cells that aren't there, of those that the table asks for; or why there are none.
        equal: Prices that the two rows have in common.
        cut: For each row, seeds that didn't reach its target, which are counted as one round more than they have.
        without: Finished runs without the figure, such as the loss of a run that diverged.
    """

    outcome: str
    values: tuple[float, ...] = ()
    lacking: int | str = 0
    equal: tuple[str, ...] = ()
    cut: tuple[int, ...] = ()
    without: int = 0

    @property
    def mean(self) -> float:
        """Mean over the seeds."""
        return statistics.fmean(self.values)

    @property
    def interval(self) -> tuple[float, float]:
        """The 95 % interval of the mean."""
        found = interval(self.values)
        assert found is not None, "a comparison of fewer than two seeds is missing"
        return found


def compare(test: Comparison, book: Book, tables: Tables) -> Found:
    """Decides one comparison by the rule of its ``expect``."""
    if test.table not in tables:
        return Found("missing", lacking=f"there is no table `{test.table}` yet")
    table, records = tables[test.table]
    if unknown := [id for id in test.rows if id not in records]:
        return Found("missing", lacking=f"`{test.table}` has no row {', '.join(f'`{id}`' for id in unknown)} yet")
    column = book.metrics[test.metric]
    asked = sum(len(table.seeds_of(table.row(id))) for id in test.rows)
    lacking = asked - sum(len(records[id]) for id in test.rows)
    columns = [column, book.metrics[test.second_metric or test.metric], column, column]
    of_rows = [_figures(table, id, own, records[id]) for id, own in zip(test.rows, columns, strict=False)]
    values, cut = _combined([figures for figures, _ in of_rows]), tuple(count for _, count in of_rows)
    without = sum(len(records[id]) - len(figures) for id, (figures, _) in zip(test.rows, of_rows, strict=False))
    common = prices.equal(records[test.first], records[test.second]) if test.second else []
    found = Found("missing", values, lacking or ("no figure" if len(values) < 2 else 0), tuple(common), cut, without)
    if len(values) < 2:
        return found
    outcome = "open" if without else censored(decide(test, column, book.margin(test), values), test, column, cut)
    return dataclasses.replace(found, outcome=outcome)


def censored(outcome: str, test: Comparison, column: Column, cut: Sequence[int]) -> str:
    """The outcome; open where runs that would have gone on to a higher figure could turn it round.

    The true figure of such a run is above the one that is counted. That lowers the lead of the first row of a pair if
    less is better, and raises that of the second.
    """
    raised, lowered = (any(cut[place] for place in places if place < len(cut)) for places in ((0, 3), (1, 2)))
    if test.expect == "level":
        return "open" if raised or lowered else outcome
    if test.expect == "at_most" or (not test.absolute and column.better == "lower"):
        raised, lowered = lowered, raised
    return "open" if (outcome == "yes" and lowered) or (outcome == "no" and raised) else outcome


def _figures(table: Table, id: str, column: Column, records: Sequence[Record]) -> tuple[dict[int, float], int]:
    """Seed -> figure of a row, and on how many seeds it is a bound: a missed target is a round further at least."""
    row = table.row(id)
    found = page.by_seed(table, row, column, records)
    short = [seed for seed, value in found.items() if math.isinf(value)]
    for record in records:
        if record.seed in short:
            further = 1 if column.reduce == "rounds_to_target" else 0
            found[record.seed] = page.limit(table, row, column, [record]) + further
    return found, len(short)


def _combined(rows: Sequence[Mapping[int, float]]) -> tuple[float, ...]:
    """A row's figures, the differences of two rows, or the differences of two differences, on the seeds of all."""
    seeds = sorted(set.intersection(*(set(row) for row in rows)))
    signs = (1, -1, -1, 1)
    return tuple(math.fsum(sign * row[seed] for sign, row in zip(signs, rows, strict=False)) for seed in seeds)


def decide(test: Comparison, column: Column, margin: float | None, values: Sequence[float]) -> str:
    """Yes, no or open.

    Args:
        test: What is expected.
        column: Which direction is better.
        margin: Of the comparison.
        values: Differences, first minus second, or figures; two at least.
    """
    if test.absolute:
        reached = within(test, values)
        return "yes" if reached == len(values) else "no" if reached == 0 else "open"
    assert margin is not None, "the file is refused otherwise"
    sign = -1 if column.better == "lower" else 1
    ahead = [sign * value for value in values]
    (low, high), mean = _interval(ahead), statistics.fmean(ahead)
    if test.expect == "better":
        return "yes" if low > 0 and mean >= margin else "no" if high < margin else "open"
    p = equivalence(ahead, margin) if test.expect == "level" else not_worse(ahead, margin)
    behind = high < 0 and mean <= -margin
    apart = behind or (test.expect == "level" and low > 0 and mean >= margin)
    return "yes" if p is not None and p < LEVEL else "no" if apart else "open"


def within(test: Comparison, values: Sequence[float]) -> int:
    """On how many seeds a figure is on the right side of the bound."""
    sign, bound = 1 if test.expect == "at_least" else -1, test.bound or 0.0
    return sum(sign * value >= sign * bound for value in values)


def _interval(values: Sequence[float]) -> tuple[float, float]:
    found = interval(values)
    assert found is not None, "two values at least"
    return found


def of_case(case: Case, book: Book, tables: Tables) -> str:
    """Yes where all comparisons are; no where one is; missing or open else."""
    found = {compare(test, book, tables).outcome for test in case.tests}
    return next((outcome for outcome in ("no", "missing", "open") if outcome in found), "yes")


def of_claim(claim: Claim, book: Book, tables: Tables) -> str:
    """Shows, only, not, open or missing; cases without cells don't count."""
    found = [outcome for case in claim.cases if (outcome := of_case(case, book, tables)) != "missing"]
    if not found:
        return "missing"
    if "yes" in found:
        return "shows" if set(found) == {"yes"} else "only"
    return "not" if "no" in found else "open"
