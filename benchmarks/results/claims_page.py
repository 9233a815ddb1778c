"""The page of the claims: docs/results/claims.md."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

from benchmarks.results import claims
from benchmarks.results.cell import Store, write
from benchmarks.results.claims import Advice, Book, Case, Claim, Comparison, Paper
from benchmarks.results.markdown import grid
from benchmarks.results.page import NONE, finished
from benchmarks.results.statistics import LEVEL
from benchmarks.results.table import Table
from benchmarks.results.verdict import Found, Tables, compare, of_case, of_claim, within

FILE = "claims.md"
RULES = """\
The *figure* of two rows is the first minus the second, the mean over the seeds that both have, with its 95 % interval
in brackets. Where less is better, such as a loss or bytes, a lead is negative, and the rule says *lower*. The figure of
one row is the mean, with the least and the greatest of the seeds in brackets. *Equal price* is what both rows spend
alike.

- *At least m higher (lower)*, which is the better side: the 95 % interval of the paired difference (Student's t) leaves
  out zero, and the mean is m or more on that side. It doesn't hold if the interval excludes a lead of m.
- *At most m lower (higher)*, which is the worse side: one one-sided t test at 5 % says that the first row is not worse
  by m. *Level within m*: two such tests place the difference between -m and m. They don't hold if the interval leaves
  out zero and the mean is m or more on the wrong side.
- *At least*, *at most* a number: the figure itself is on the right side of it on every seed. It doesn't hold if it is
  so on no seed.
- Everything between is **undecided**: the seeds are too few, or they disagree, or a run has no figure because it
  diverged.
- A claim **shows** if it holds in all cases, and **only when** the named cases are given if it holds in some. A case
  with several lines holds if all of them do. A claim that holds in no case **does not show**, or is **undecided** if
  all its cases are. Cases without cells don't count, and *so far* says that cells are missing."""
TARGET = (
    "†: a run never reached its target. It counts as one round more than it has, or as all of its bytes. Where more "
    "could turn the outcome round, the comparison is undecided."
)
WORDS = {"yes": "holds", "no": "does not hold", "open": "undecided", "missing": "cells are missing"}
SHORT = {"shows": "shows", "only": "only when", "not": "does not show", "open": "undecided", "missing": "missing cells"}


def publish(path: Path, tables: Sequence[Table], store: Store, folder: Path) -> list[Path]:
    """Writes the page, where there is a file of claims.

    Args:
        path: Of the file.
        tables: All of them.
        store: Of their cells.
        folder: Of the page.

    Returns:
        What was written; nothing where the page says the same already.
    """
    if not path.is_file():
        return []
    known = {table.name: (table, finished(table, store)) for table in tables}
    return [folder / FILE] if write(folder / FILE, text(claims.load(path), known).encode()) else []


def text(book: Book, tables: Tables) -> str:
    """The whole page as Markdown."""
    parts = [f"# {book.title}", book.text.strip(), "## In short", _overview(book, tables)]
    parts += ["## How a claim is decided", RULES, _margins(book), _caution(book, tables)]
    for paper in book.papers:
        parts += [f"## {paper.name}", f"{paper.source} [The method]({paper.page})."]
        parts += [part for claim in paper.claims for part in _claim(claim, book, tables)]
    if book.guide:
        parts += ["## When to use which", book.guide_text.strip(), _guide(book, tables)]
    return "\n\n".join(part for part in parts if part) + "\n"


def _overview(book: Book, tables: Tables) -> str:
    lines = [(paper.name, _link(claim), _outcome(claim, book, tables)) for paper, claim in _all(book)]
    return grid(["", "claim", "outcome"], lines, left=3)


def _link(claim: Claim) -> str:
    """The claim's heading, whose words are the anchor too."""
    return f"[{claim.name}](#{claim.name.lower().replace(' ', '-')})"


def _all(book: Book) -> Iterator[tuple[Paper, Claim]]:
    for paper in book.papers:
        yield from ((paper, claim) for claim in paper.claims)


def _outcome(claim: Claim, book: Book, tables: Tables) -> str:
    """The outcome in a few words, with the cases in which it holds, and the number of those that are open."""
    found = of_claim(claim, book, tables)
    held = [case.when for case in claim.cases if of_case(case, book, tables) == "yes"]
    lacking = any(compare(test, book, tables).lacking for case in claim.cases for test in case.tests)
    said = "so far " * (lacking and found != "missing") + f"**{SHORT[found]}**"
    said += f" {'; '.join(held)}" if found == "only" else ""
    counts = Counter(of_case(case, book, tables) for case in claim.cases)
    others = {"missing": "without cells"} if found == "open" else {"open": "undecided", "missing": "without cells"}
    more = [f"{counts[key]} {word}" for key, word in others.items() if counts[key] and found != "missing"]
    return said + (f" (of {counts.total()} cases, {', '.join(more)})" if more else "")


def _claim(claim: Claim, book: Book, tables: Tables) -> Iterator[str]:
    yield f"### {claim.name}"
    yield f"**The claim:** {claim.claim}"
    yield f"**The experiment:** {claim.experiment.strip()}"
    lines = [line for case in claim.cases for line in _case(case, book, tables)]
    yield grid(["when", "compared", "holds if", "figure", "equal price", "result"], lines, left=6)
    yield f"**The outcome:** {_outcome(claim, book, tables)}."


def _case(case: Case, book: Book, tables: Tables) -> Iterator[list[str]]:
    """A line for each comparison; the case stands at the first of them."""
    for test, name in zip(case.tests, itertools.chain([case.when], itertools.repeat("")), strict=False):
        found = compare(test, book, tables)
        rule = _rule(test, book) + (" ‡" if book.known(test) else "")
        price = ", ".join(found.equal) or ("none" if test.second and found.values else NONE)
        shown = figure(test, found, book) + _seeds(found)
        yield [name, _rows(test, book, tables), rule, shown, price, _result(test, found)]


def _rows(test: Comparison, book: Book, tables: Tables) -> str:
    """The rows, and a link to their table where it has a page."""
    there = test.table in tables and any(tables[test.table][1].values())
    where = f"[{test.table}]({test.table}.md)" if there else test.table
    pair = f"`{test.first}`" + (f" − `{test.second}`" if test.second else "")
    if test.second_metric:
        pair += f" ({book.metrics[test.second_metric].label})"
    if test.than:
        pair = f"({pair}) − (`{test.than[0]}` − `{test.than[1]}`)"
    return f"{where}: {pair}"


def _rule(test: Comparison, book: Book) -> str:
    column, margin = book.metrics[test.metric], book.margin(test)
    worse, better = ("higher", "lower") if column.better == "lower" else ("lower", "higher")
    number = f"{test.bound if test.absolute else margin:{column.format}}"
    words = {"better": f"at least {number} {better}", "level": f"level within {number}"}
    words |= {
        "not_worse": f"at most {number} {worse}",
        "at_least": f"at least {number}",
        "at_most": f"at most {number}",
    }
    return f"{column.label} {words[test.expect]}"


def figure(comparison: Comparison, found: Found, book: Book) -> str:
    """Mean, and interval of a difference or range of a figure; a dash without cells."""
    if len(found.values) < 2:
        return NONE
    form = ("" if comparison.absolute else "+z") + book.metrics[comparison.metric].format
    low, high = (min(found.values), max(found.values)) if comparison.absolute else found.interval
    spread = f"({low:{form}} to {high:{form}})" if comparison.absolute else f"[{low:{form}}, {high:{form}}]"
    return f"{found.mean:{form}} {spread}"


def _seeds(found: Found) -> str:
    return (f", {len(found.values)} seeds" if len(found.values) > 1 else "") + (" †" if any(found.cut) else "")


def _result(test: Comparison, found: Found) -> str:
    said = WORDS[found.outcome] if found.outcome != "yes" else f"**{WORDS['yes']}**"
    if test.absolute and found.outcome == "open":
        said = f"on {within(test, found.values)} of {len(found.values)} seeds"
    if isinstance(found.lacking, str):
        return f"{said}: {found.lacking}"
    if found.without:
        said += f", {found.without} run{'s' * (found.without > 1)} without a figure"
    return said + (
        f" so far, {found.lacking} cells are missing" if found.lacking and found.outcome != "missing" else ""
    )


def _margins(book: Book) -> str:
    used = dict.fromkeys(test.metric for test in book.tests if not test.absolute)
    listed = [f"{book.metrics[name].margin:{book.metrics[name].format}} in {book.metrics[name].label}" for name in used]
    return f"Margins, unless a line has another: {'; '.join(listed)}." if listed else ""


def _caution(book: Book, tables: Tables) -> str:
    """How many leads chance alone would give, and which rules came after their cells."""
    asked = [test for claim in book.claims for case in claim.cases for test in case.tests if test.expect == "better"]
    decided = [test for test in asked if compare(test, book, tables).outcome != "missing"]
    said = (
        f"The intervals are not corrected for the number of comparisons. {len(decided)} comparisons with cells ask for "
        f"a lead. Without any true difference, about {len(decided) * LEVEL / 2:.1f} of them would have an interval "
        "above zero."
    )
    said += " ‡: the rule was written when cells of these rows were known." if book.seen else ""
    with_target = any(book.metrics[test.metric].reduce.endswith("_to_target") for test in book.tests)
    return said + (f" {TARGET}" if with_target else "")


def _guide(book: Book, tables: Tables) -> str:
    lines = [(advice.situation, _said(advice, book, tables), _figures(advice, book, tables)) for advice in book.guide]
    return grid(["you have", "use", "figures"], lines, left=3)


def _said(advice: Advice, book: Book, tables: Tables) -> str:
    """The sentence of the claim's outcome."""
    claim = next(claim for claim in book.claims if claim.id == advice.claim)
    return advice.say.get(of_claim(claim, book, tables), advice.say["else"])


def _figures(advice: Advice, book: Book, tables: Tables) -> str:
    found = {name: (one, compare(one, book, tables)) for name, one in advice.figures.items()}
    label = {name: book.metrics[one.metric].label for name, (one, _) in found.items()}
    return "<br>".join(f"{name}, {label[name]}: {figure(one, what, book)}" for name, (one, what) in found.items())
