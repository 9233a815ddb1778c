"""What a rule is asked and what it answers."""

from __future__ import annotations

import abc
import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar

from torch import Tensor

from flt.algorithm.base import Part
from flt.algorithm.rule.exact_sum import ExactSum
from flt.algorithm.view import View
from flt.core.errors import InputError
from flt.protocol.messages import Update

if TYPE_CHECKING:
    from flt.algorithm.recipe import Recipe

WEIGHTS = ("examples", "uniform")
Totals = dict[tuple[str, str], ExactSum]
"""(what is summed, tensor) -> its running sum."""


@dataclasses.dataclass(frozen=True)
class Combined:
    """A rule's answer for one group.

    Attributes:
        new: The group's weights, at the initial rank; where the plan trains the base, its new values too.
        slots: What the rule keeps in the group for the next round.
        base: Change of the base: name -> (value,) or (B, A).
    """

    new: dict[str, Tensor]
    slots: dict[str, dict[str, Tensor]] = dataclasses.field(default_factory=dict)
    base: dict[str, tuple[Tensor, ...]] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Rule(Part):
    """Aggregation of one group's updates: a listwise rule writes ``combine``, sums over clients are :class:`Summable`.

    Attributes:
        weights: ``examples``: a client weighs as much as it has examples; ``uniform``: all clients weigh the same.
    """

    kind: ClassVar[str] = "rule"
    weights: str = "examples"

    weighings: ClassVar[tuple[str, ...]] = WEIGHTS
    """What ``weights`` may be."""
    sends: ClassVar[tuple[str, ...]] = ()
    """Slots of the group that travel down with the weights."""
    changes_base: ClassVar[bool] = False
    """The rule writes into the frozen weights."""
    adds: ClassVar[bool] = True
    """The answer has sums of the updates' numbers in it, for which they may be too large."""
    starts_afresh: ClassVar[bool] = False
    """Each round begins with an adapter that was drawn anew."""
    combines: ClassVar[tuple[str, ...]] = ()
    """Roles without which the rule has nothing to combine: they have to train and to travel."""
    mixes_components: ClassVar[bool] = False
    """Pairs are new mixtures of those that were sent: what was known of one says nothing of it any more."""
    whole: ClassVar[str] = ""
    """Why the rule has no meaning where clients send different pairs; empty where it has."""
    one_group: ClassVar[str] = ""
    """Why the rule has no meaning with several groups; empty where it has."""

    def __post_init__(self) -> None:
        if self.weights not in self.weighings:
            raise InputError.of("rule.weights", self.weights, self.weighings)

    @property
    def needs(self) -> tuple[str, ...]:
        """Roles that the module must have: what the rule combines, or weighs by."""
        return self.combines

    @abc.abstractmethod
    def combine(self, view: View, gid: int, updates: Sequence[Update]) -> Combined:
        """Combines a group's updates, which come sorted by job; there is at least one."""

    def check(self, updates: int) -> None:
        """Whether so many updates of a group suffice, before a run begins too.

        Raises:
            InputError: They don't.
        """
        if updates < 1:
            raise InputError.of("updates", updates, "at least 1")

    def check_recipe(self, recipe: Recipe) -> None:
        """Refuses several groups, missing roles, and components that the rule can't combine.

        Raises:
            InputError: Another part contradicts this one.
        """
        if recipe.grouping.several and self.one_group:
            raise self.clash(recipe.grouping, self.one_group, "one group")
        if self.whole or self.mixes_components:
            self._check_components(recipe)
        plan = recipe.plan(0)
        if missing := set(self.combines) - (set(plan.train) - set(plan.private)):
            why = f"{self.name} combines {', '.join(sorted(missing))}"
            raise InputError.of("plan.train", plan.train, f"{', '.join(self.combines)} among them", why)

    def _check_components(self, recipe: Recipe) -> None:
        """Refuses parts that keep some components from a rule on whole products, or that remember them."""
        selection = recipe.selection
        if self.whole and not selection.holds_all:
            raise self.clash(selection, self.whole, "all")
        if recipe.compression.packs:
            why = "a budget of bytes drops components, and the rule needs all that a client trained"
            raise recipe.compression.clash(self, why, "none")
        if self.mixes_components and selection.freezes:
            why = "frozen components are a part of a client's product, and aren't sent"
            raise self.clash(selection, why, "truncate, all")
        if self.mixes_components and recipe.importance.source != "nothing":
            why = "its components are new mixtures, of which nothing was measured"
            raise recipe.importance.clash(self, why, "none")

    def weight(self, update: Update) -> int:
        """A client's weight, an integer so that sums stay exact."""
        return 1 if self.weights == "uniform" else update.examples


@dataclasses.dataclass(frozen=True)
class Summable(Rule):
    """A rule that is a function of exact sums over clients.

    Updates can stream through it in any order and on any process: two sets of totals merge by adding their sums.
    """

    def combine(self, view: View, gid: int, updates: Sequence[Update]) -> Combined:
        """Sums, then finishes."""
        totals: Totals = {}
        for update in updates:
            self.include(view, update, totals)
        return self.finish(view, gid, totals)

    def include(self, view: View, update: Update, totals: Totals) -> None:
        """Adds one update to the totals, in place.

        Raises:
            InputError: Its numbers are too large for an exact sum.
        """
        try:
            self.summand(view, update, totals)
        except OverflowError as error:
            who = f"update of client {update.job[0]}, job {update.job[1]}"
            raise InputError.of(who, error, "smaller numbers; lower local.lr") from error

    @abc.abstractmethod
    def summand(self, view: View, update: Update, totals: Totals) -> None:
        """Adds one update to the totals, in place, by :func:`add`."""

    @abc.abstractmethod
    def finish(self, view: View, gid: int, totals: Totals) -> Combined:
        """Makes the group's answer of the totals."""


def add(totals: Totals, key: tuple[str, str], term: Tensor) -> None:
    """Adds a float64 tensor to one of the totals."""
    if key not in totals:
        totals[key] = ExactSum.zeros(tuple(term.shape))
    totals[key].add(term)
