"""What claims.yaml holds: the papers' claims, the comparisons that decide them, and the advice that follows."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path
from typing import Any

import yaml
from benchmarks.results.table import Column

from flt.core.errors import InputError
from flt.core.typed import typed

EXPECTED = ("better", "level", "not_worse", "at_least", "at_most")
OUTCOMES = ("shows", "only", "not", "open", "missing")
"""Of a claim: in all cases, in some, in none, undecided in all, or without cells."""


@dataclasses.dataclass
class Comparison:
    """One comparison of two rows on the same seeds, or of one row with a number, and what it has to give.

    Attributes:
        table: Name of the table.
        metric: One of the metrics of the file.
        first: Id of the row that the claim is about.
        second: Id of the row that it is compared with; empty for ``at_least`` and ``at_most``.
        second_metric: Of the second row, where it isn't that of the first; the two rows may then be the same.
        than: Two more rows: the difference is compared with theirs.
        expect: One of :data:`EXPECTED`.
        margin: Smallest lead that matters, or largest difference that counts as none; None: the metric's.
        bound: Number for ``at_least`` and ``at_most``.
    """

    table: str
    metric: str
    first: str
    second: str = ""
    second_metric: str = ""
    than: list[str] = dataclasses.field(default_factory=list)
    expect: str = "better"
    margin: float | None = None
    bound: float | None = None

    def __post_init__(self) -> None:
        if self.expect not in EXPECTED:
            raise InputError.of("tests.expect", self.expect, EXPECTED)
        if self.margin is not None and not self.margin > 0:
            raise InputError.of("tests.margin", self.margin, "a number above zero, or null")
        if self.absolute != (self.bound is not None) or self.absolute == bool(self.second):
            allowed = "a bound and no second row for at_least and at_most; else a second row and no bound"
            raise InputError.of("tests.second, bound", (self.second, self.bound), allowed)
        if len(self.than) not in (0, 2) or (self.than and self.absolute):
            raise InputError.of("tests.than", self.than, "two rows, beside a first and a second one")
        if self.second_metric and (self.than or self.absolute):
            raise InputError.of("tests.second_metric", self.second_metric, "nothing beside than, at_least and at_most")

    @property
    def absolute(self) -> bool:
        """Whether a figure is compared with a number."""
        return self.expect in ("at_least", "at_most")

    @property
    def rows(self) -> list[str]:
        """Ids of all its rows."""
        return [self.first, *([self.second] if self.second else []), *self.than]


@dataclasses.dataclass
class Case:
    """A situation in which a claim may hold.

    Attributes:
        when: The situation, as it stands after "only when".
        tests: The claim holds in it where all of them give what they have to.
    """

    when: str
    tests: list[Comparison]


@dataclasses.dataclass
class Claim:
    """One sentence of an abstract.

    Attributes:
        id: What the advice calls it.
        name: Heading, of letters, digits, spaces and hyphens.
        claim: The sentence, in our words.
        experiment: What was run, and why it decides.
        cases: The situations.
    """

    id: str
    name: str
    claim: str
    experiment: str
    cases: list[Case]

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[a-zA-Z0-9 -]+", self.name):
            raise InputError.of(
                "claims.name", self.name, "letters, digits, spaces and hyphens: it is the anchor of a link"
            )


@dataclasses.dataclass
class Paper:
    """A paper and its claims.

    Attributes:
        name: Of the method.
        source: Authors, title and number.
        page: Of the method, relative to docs/results.
        claims: In the order of the abstract.
    """

    name: str
    source: str
    page: str
    claims: list[Claim]


@dataclasses.dataclass
class Advice:
    """A line of the table at the end: what to use in a situation.

    Attributes:
        situation: The reader's.
        claim: Id of the claim whose outcome chooses the sentence.
        say: Outcome, or ``else``, -> the sentence.
        figures: What is compared, in words -> the comparison whose difference or value stands beside the sentence.
    """

    situation: str
    claim: str
    say: dict[str, str]
    figures: dict[str, Comparison] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        for outcome in self.say:
            if outcome not in (*OUTCOMES, "else"):
                raise InputError.of("guide.say", outcome, (*OUTCOMES, "else"))
        if "else" not in self.say:
            raise InputError.of("guide.say", list(self.say), "a sentence for else, among others")


@dataclasses.dataclass
class Book:
    """The whole file.

    Attributes:
        title: The page's heading.
        text: What stands before the claims.
        metrics: Name -> how a run's figure is made, and its margin.
        papers: In the order of the page.
        guide: When to use which.
        guide_text: Above the guide.
        seen: Tables whose cells were known when the rules were written.
        unseen: Their rows, as ``table/row``, that had no cells then.
    """

    title: str
    text: str
    metrics: dict[str, Column]
    papers: list[Paper]
    guide: list[Advice] = dataclasses.field(default_factory=list)
    guide_text: str = ""
    seen: list[str] = dataclasses.field(default_factory=list)
    unseen: list[str] = dataclasses.field(default_factory=list)

    def __post_init__(self) -> None:
        ids = [claim.id for claim in self.claims]
        for id in ids:
            if ids.count(id) > 1:
                raise InputError.of("papers.claims.id", id, "an id of its own for each claim")
        for advice in self.guide:
            if advice.claim not in ids:
                raise InputError.of("guide.claim", advice.claim, ids, "there is no such claim")
        for test in self.tests:
            for metric in (test.metric, test.second_metric or test.metric):
                if metric not in self.metrics:
                    raise InputError.of("tests.metric", metric, list(self.metrics), "there is no such metric")
            if not test.absolute and (self.margin(test) is None or self.metrics[test.metric].better is None):
                raise InputError.of("tests.metric", test.metric, "a metric with better and margin")

    @property
    def claims(self) -> list[Claim]:
        """All papers' claims."""
        return [claim for paper in self.papers for claim in paper.claims]

    @property
    def tests(self) -> list[Comparison]:
        """All comparisons, those of the advice too."""
        of_claims = [test for claim in self.claims for case in claim.cases for test in case.tests]
        return of_claims + [test for advice in self.guide for test in advice.figures.values()]

    def known(self, test: Comparison) -> bool:
        """Whether the cells of all rows of a comparison were known when its rule was written."""
        return test.table in self.seen and not any(f"{test.table}/{id}" in self.unseen for id in test.rows)

    def margin(self, test: Comparison) -> float | None:
        """The margin of a comparison."""
        return self.metrics[test.metric].margin if test.margin is None else test.margin


def load(path: Path) -> Book:
    """Reads the file of the claims.

    Raises:
        InputError: The file isn't one; the message is one line.
    """
    try:
        found: Any = yaml.safe_load(path.read_text())
    except yaml.YAMLError as error:
        raise InputError.of(path.name, "?", "YAML", " ".join(str(error).split())) from None
    if not isinstance(found, dict):
        raise InputError.of(path.name, "?", "the keys title, text, metrics, papers")
    for key in ("title", "text", "metrics", "papers"):
        if key not in found:
            raise InputError.of(path.name, key, "the keys title, text, metrics, papers", "the key is missing")
    book: Book = typed(Book, found, path.stem)
    return book
