"""Base classes of the aggregation rules, and the type of a rule's result."""

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
"""Running sums over clients. A key is (kind of the summand, name of the tensor), such as ("value", name)."""


@dataclasses.dataclass(frozen=True)
class Combined:
    """Result of a rule for one group.

    Attributes:
        new: New weights of the group by name, at the initial rank. If the plan trains the base, they include the new
            base weights.
        slots: Extra tensors that the group keeps for later rounds: slot -> name of the tensor -> tensor.
        base: Changes of base weights, by the weight's name. ``(value,)`` replaces the weight. ``(B, A)`` adds B A to
            the weight.
    """

    new: dict[str, Tensor]
    slots: dict[str, dict[str, Tensor]] = dataclasses.field(default_factory=dict)
    base: dict[str, tuple[Tensor, ...]] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Rule(Part):
    """Aggregation of one group's updates.

    A rule that only needs sums over clients derives from :class:`Summable`. All other rules are listwise: they need all
    updates at once and implement ``combine``.

    Attributes:
        weights: Weight of each update in means. ``examples``: its number of training examples. ``uniform``: 1.
    """

    kind: ClassVar[str] = "rule"
    weights: str = "examples"

    weighings: ClassVar[tuple[str, ...]] = WEIGHTS
    """Allowed values of ``weights``."""
    sent_slots: ClassVar[tuple[str, ...]] = ()
    """Names of the group's slots that the server sends to clients together with the weights."""
    changes_base: ClassVar[bool] = False
    """True if the rule changes base weights."""
    sums_values: ClassVar[bool] = True
    """True if the rule sums the values of updates. Values that are too large for an exact sum are then refused."""
    robust: ClassVar[bool] = False
    """True if the rule limits the influence of a minority of hostile clients."""
    starts_afresh: ClassVar[bool] = False
    """True if each round begins with a new, randomly drawn adapter."""
    combines: ClassVar[tuple[str, ...]] = ()
    """Roles that the plan must train and send, because the rule needs them; empty if the rule works with any roles."""
    mixes_components: ClassVar[bool] = False
    """True if new components are mixtures of the received ones. Earlier scores don't apply to such components."""
    same_components: ClassVar[str] = ""
    """Reason why all clients must send the same components; empty if they may send different ones."""
    one_group: ClassVar[str] = ""
    """Reason why there may be only one group; empty if there may be several."""

    def __post_init__(self) -> None:
        if self.weights not in self.weighings:
            raise InputError.of("rule.weights", self.weights, self.weighings)

    @property
    def needs(self) -> tuple[str, ...]:
        """Roles that must occur among the module's tensors: those of ``combines``."""
        return self.combines

    @abc.abstractmethod
    def combine(self, view: View, gid: int, updates: Sequence[Update]) -> Combined:
        """Combines the updates of group ``gid``. There is at least one update, and they are sorted by job."""

    def check(self, updates: int) -> None:
        """Refuses a number of updates that is too small for the rule. This check is also made before a run begins.

        Raises:
            InputError: There are too few updates.
        """
        if updates < 1:
            raise InputError.of("updates", updates, "at least 1")

    def check_recipe(self, recipe: Recipe) -> None:
        """Refuses recipes whose groups, trained roles or components don't suit the rule.

        Raises:
            InputError: The rule can't be combined with another part.
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
        """Refuses parts that keep needed components from the rule. Also refuses scores if the rule mixes components."""
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
        """Returns the weight of an update. It is an integer, so that sums of weights are exact."""
        return 1 if self.weights == "uniform" else update.examples


@dataclasses.dataclass(frozen=True)
class Summable(Rule):
    """Rule whose result depends only on exact sums over clients.

    Updates can be added one by one, in any order and in any process. If several processes add updates, their totals are
    added up at the end.
    """

    def combine(self, view: View, gid: int, updates: Sequence[Update]) -> Combined:
        """Adds up the updates, and computes the group's result from the totals."""
        totals: Totals = {}
        for update in updates:
            self.include(view, update, totals)
        return self.finish(view, gid, totals)

    def include(self, view: View, update: Update, totals: Totals) -> None:
        """Adds one update to the totals, in place.

        Raises:
            InputError: The update's values are too large for an exact sum.
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
    """Adds a float64 tensor to the total with this key. The first term of a key creates its total."""
    if key not in totals:
        totals[key] = ExactSum.zeros(tuple(term.shape))
    totals[key].add(term)
