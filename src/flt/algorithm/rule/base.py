"""Base classes of the aggregation rules, and their result."""

from __future__ import annotations

import abc
import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar

from torch import Tensor

from flt.algorithm.base import Part
from flt.algorithm.rule.exact_sum import ExactSum
from flt.algorithm.view import View
from flt.core.errors import InputError, diverged
from flt.protocol.messages import Update

if TYPE_CHECKING:
    from flt.algorithm.recipe import Recipe

WEIGHTS = ("examples", "uniform")
Totals = dict[tuple[str, str], ExactSum]
"""Running sums, by kind of the summand (such as ``value`` or ``weight``) and name of the tensor."""


@dataclasses.dataclass(frozen=True)
class Combined:
    """Result of a rule for one group.

    Attributes:
        new: New weights of the group at the initial rank; if the plan trains the base, also the new base weights.
        slots: Tensors that the rule keeps in the group for the next rounds.
        base: Changes of base weights by name: (value,) replaces a weight, (B, A) adds B A.
    """

    new: dict[str, Tensor]
    slots: dict[str, dict[str, Tensor]] = dataclasses.field(default_factory=dict)
    base: dict[str, tuple[Tensor, ...]] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Rule(Part):
    """Aggregation of one group's updates.

    A listwise rule, which needs all updates at once, implements ``combine``. A rule that only needs sums over clients
    is a :class:`Summable`.

    Attributes:
        weights: ``examples``: a client's weight is its number of examples; ``uniform``: all clients weigh the same.
    """

    kind: ClassVar[str] = "rule"
    weights: str = "examples"

    weighings: ClassVar[tuple[str, ...]] = WEIGHTS
    """Allowed values of ``weights``."""
    sent_slots: ClassVar[tuple[str, ...]] = ()
    """Names of the group's slots that the server sends to clients with the weights."""
    changes_base: ClassVar[bool] = False
    """True if the rule changes the frozen weights."""
    sums_values: ClassVar[bool] = True
    """True if the rule sums numbers of the updates. Numbers that are too large for a sum are then refused."""
    starts_afresh: ClassVar[bool] = False
    """True if each round begins with a newly drawn adapter."""
    combines: ClassVar[tuple[str, ...]] = ()
    """Roles that the rule combines. They must train and travel."""
    mixes_components: ClassVar[bool] = False
    """True if new components are mixtures of the received ones, so that earlier scores don't apply to them."""
    same_components: ClassVar[str] = ""
    """Reason why the rule needs the same components from all clients; empty if it doesn't."""
    one_group: ClassVar[str] = ""
    """Reason why the rule needs a single group; empty if it doesn't."""

    def __post_init__(self) -> None:
        if self.weights not in self.weighings:
            raise InputError.of("rule.weights", self.weights, self.weighings)

    @property
    def needs(self) -> tuple[str, ...]:
        """Roles that the module's tensors must have: those that the rule combines."""
        return self.combines

    @abc.abstractmethod
    def combine(self, view: View, gid: int, updates: Sequence[Update]) -> Combined:
        """Combines a group's updates, at least one, sorted by job."""

    def check(self, updates: int) -> None:
        """Refuses a number of updates that is too small for the rule. It is also called before a run begins.

        Raises:
            InputError: There are too few updates.
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
        if self.same_components or self.mixes_components:
            self._check_components(recipe)
        plan = recipe.plan(0)
        if missing := set(self.combines) - (set(plan.train) - set(plan.private)):
            why = f"{self.name} combines {', '.join(sorted(missing))}"
            raise InputError.of("plan.train", plan.train, f"{', '.join(self.combines)} among them", why)

    def _check_components(self, recipe: Recipe) -> None:
        """Refuses parts that withhold components which the rule needs, or that keep scores of mixed components."""
        selection = recipe.selection
        if self.same_components and not selection.holds_all:
            raise self.clash(selection, self.same_components, "all")
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
        """Returns a client's weight, an integer so that sums are exact."""
        return 1 if self.weights == "uniform" else update.examples


@dataclasses.dataclass(frozen=True)
class Summable(Rule):
    """Rule whose result depends only on exact sums over clients.

    Updates can be added one by one, in any order and on any process. Totals of several processes merge by addition.
    """

    def combine(self, view: View, gid: int, updates: Sequence[Update]) -> Combined:
        """Sums the updates and computes the group's result."""
        totals: Totals = {}
        for update in updates:
            self.include(view, update, totals)
        return self.finish(view, gid, totals)

    def include(self, view: View, update: Update, totals: Totals) -> None:
        """Adds one update to the totals, in place.

        Raises:
            InputError: The update's numbers are too large for an exact sum.
        """
        try:
            self.summand(view, update, totals)
        except OverflowError as error:
            who = f"update of client {update.job[0]}, job {update.job[1]}"
            raise diverged(who, error, "smaller numbers") from error

    @abc.abstractmethod
    def summand(self, view: View, update: Update, totals: Totals) -> None:
        """Adds one update to the totals in place, with :func:`add`."""

    @abc.abstractmethod
    def finish(self, view: View, gid: int, totals: Totals) -> Combined:
        """Computes the group's result from the totals."""


def add(totals: Totals, key: tuple[str, str], term: Tensor) -> None:
    """Adds a float64 tensor to one of the totals."""
    if key not in totals:
        totals[key] = ExactSum.zeros(tuple(term.shape))
    totals[key].add(term)
