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
- *Better by m*: the 95 % interval of the paired difference (Student's t) leaves out zero, and the mean is at least the
  margin m. It doesn't hold if the interval excludes a lead of m.
- *Level within m*: two one-sided t tests at 5 % place the difference between -m and m. *Not worse by m*: one such test
  places it above -m. They don't hold if the interval leaves out zero and the mean is m or more on the wrong side.
- *At least*, *at most*: the figure itself is on the right side of the number on every seed. It doesn't hold if it is so
  on no seed.
- Everything between is **undecided**: the seeds are too few, or they disagree. A run that never reaches its target
  counts as one round more than it has, so its distance is understated (†).
- A claim **shows** if it holds in all cases, and **only when** the named cases are given if it holds in some. If it
  holds in none, it **does not show**, or is **undecided** if all cases are. Cases without cells don't count."""
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
    said = f"**{SHORT[found]}**" + (f" {'; '.join(held)}" if found == "only" else "")
    counts = Counter(of_case(case, book, tables) for case in claim.cases)
    others = {"missing": "without cells"} if found == "open" else {"open": "undecided", "missing": "without cells"}
    more = [f"{counts[key]} {word}" for key, word in others.items() if counts[key] and found != "missing"]
    more = [f"of {counts.total()} cases, {', '.join(more)}"] if more else []
    lacking = [compare(test, book, tables).lacking for case in claim.cases for test in case.tests]
    more += ["cells are missing"] if any(isinstance(count, int) and count for count in lacking) else []
    return said + (f" ({'; '.join(more)})" if more else "")


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
    words = {"better": "better by", "level": "level within", "not_worse": "not worse by"}
    words |= {"at_least": "at least", "at_most": "at most"}
    return f"{column.label} {words[test.expect]} {test.bound if test.absolute else margin:{column.format}}"


def figure(comparison: Comparison, found: Found, book: Book) -> str:
    """Mean, and interval of a difference or range of a figure; a dash without cells."""
    if len(found.values) < 2:
        return NONE
    form = ("" if comparison.absolute else "+z") + book.metrics[comparison.metric].format
    low, high = (min(found.values), max(found.values)) if comparison.absolute else found.interval
    spread = f"({low:{form}} to {high:{form}})" if comparison.absolute else f"[{low:{form}}, {high:{form}}]"
    return f"{found.mean:{form}} {spread}"


def _seeds(found: Found) -> str:
    return (f", {len(found.values)} seeds" if len(found.values) > 1 else "") + (" †" if found.cut else "")


def _result(test: Comparison, found: Found) -> str:
    said = WORDS[found.outcome] if found.outcome != "yes" else f"**{WORDS['yes']}**"
    if test.absolute and found.outcome == "open":
        said = f"on {within(test, found.values)} of {len(found.values)} seeds"
    if isinstance(found.lacking, str):
        return f"{said}: {found.lacking}"
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
    return said + (" ‡: the rule was written when cells of these rows were known." if book.seen else "")


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
