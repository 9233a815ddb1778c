"""The bases of the parts, whose defaults are the answers of most parts: a new part says only what is its own."""

from __future__ import annotations

import abc
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, ClassVar

from lightning.pytorch import Callback
from torch import Tensor

from flt.algorithm.view import View
from flt.client.fit import LocalFit
from flt.core.errors import InputError
from flt.protocol.job import Job
from flt.protocol.layout import Layout
from flt.protocol.messages import Ids, JobId, Payload, Plan, Update
from flt.protocol.state import GroupState, ServerState

if TYPE_CHECKING:
    from flt.algorithm.grouping.base import Groups
    from flt.algorithm.recipe import Recipe


class Part(abc.ABC):
    """One part of a recipe.

    A part says itself what it can't go with: :meth:`check_recipe` looks at the other parts by their properties, and
    :meth:`check_layout` at the module's tensors.
    """

    kind: ClassVar[str]
    """The part's group in conf/, which is also its name in a recipe."""
    works_on: ClassVar[tuple[str, ...]] = ()
    """Roles of the tensors that the part works on."""

    @property
    def needs(self) -> tuple[str, ...]:
        """Roles of which the module must have tensors: those that the part works on."""
        return self.works_on

    def check_recipe(self, recipe: Recipe) -> None:  # noqa: B027  # not abstract: most parts refuse nothing
        """Refuses a recipe in which this part has no meaning.

        Raises:
            InputError: Another part contradicts this one.
        """

    def check_layout(self, recipe: Recipe, layout: Layout) -> None:
        """Refuses a module that lacks what this part works on.

        Raises:
            InputError: The module has no tensor of a role that the part needs.
        """
        roles = {entry.role for entry in layout.entries.values()}
        if missing := sorted(set(self.needs) - roles):
            why = f"it works on rank-1 components, and the adapter has no {' and no '.join(missing)}"
            raise InputError.of(self.kind, self.name, f"another {self.kind}, or adapter=lora", why)

    def callbacks(self, fit: LocalFit) -> list[Callback]:
        """Returns the callbacks that change one local fit, or measure it; none by default."""
        return []

    @property
    def name(self) -> str:
        """The name of the part in error messages."""
        return type(self).__name__

    def clash(self, other: Part, why: str, allowed: str) -> InputError:
        """Builds the line that refuses this part beside another one."""
        return InputError(f"{self.kind} {self.name} with {other.kind} {other.name}: {why}; allowed is {allowed}")


class PlanPart(Part):
    """What trains and what travels in each round."""

    kind: ClassVar[str] = "plan"

    @property
    def initiating(self) -> int:
        """Rounds of a first stage, after which a schedule begins."""
        return 0

    @property
    @abc.abstractmethod
    def roles(self) -> frozenset[str]:
        """Roles that train in some round."""

    @abc.abstractmethod
    def __call__(self, round: int) -> Plan:
        """Returns the plan of the round that follows ``round`` finished rounds."""

    def check_recipe(self, recipe: Recipe) -> None:
        """Refuses a second part that writes into the base, and several groups that share the one base."""
        if "base" not in self.roles:
            return
        plan = f"plan {self.name}, which trains the base"
        if recipe.grouping.several:
            raise InputError(f"{plan}, with grouping {recipe.grouping.name}: there is one base; allowed is everyone")
        if recipe.rule.changes_base:
            raise InputError(f"{plan}, with rule {recipe.rule.name}: it writes into the base too; allowed is mean")


class SchedulePart(Part):
    """The rank budget of each round."""

    kind: ClassVar[str] = "schedule"

    @property
    def cuts(self) -> bool:
        """True if the budget changes."""
        return False

    @property
    def falls(self) -> bool:
        """True if components are cut in some round."""
        return False

    @property
    def heated(self) -> int | None:
        """The last round before the first cut of a budget that falls; None: not known yet."""
        return None

    @property
    def by(self) -> str:
        """The criterion of a cut: ``score``, or ``svd``, which writes new factors into the components that stay."""
        return "score"

    @abc.abstractmethod
    def __call__(self, state: ServerState, layout: Layout) -> ServerState:
        """Returns the state with the active components of the next round."""

    def check(self, rank: int) -> None:  # not abstract: most budgets fit any rank
        """Raises InputError if the budget doesn't fit the adapter's rank."""


class SelectionPart(Part):
    """The components that a job holds, and those among them that it trains."""

    kind: ClassVar[str] = "selection"
    holds_all: ClassVar[bool] = False
    """True if every job holds and trains all active components."""
    freezes: ClassVar[bool] = False
    """True if a job computes with components that it doesn't send."""
    together: ClassVar[tuple[str, ...]] = ()
    """Roles that have to train in the same round, from some round on."""

    @property
    def personal(self) -> bool:
        """True if the selection reads the scores that a job measured by itself."""
        return False

    @abc.abstractmethod
    def __call__(self, view: View, job: Job, cohort: Sequence[Job]) -> tuple[dict[str, Ids], dict[str, Ids]]:
        """Returns the held and the kept component ids of a job, each by layer and ascending.

        Kept components are among the held ones, and held components are among the active ones.
        """

    def ranks(self, updates: Sequence[Update]) -> dict[JobId, int]:
        """Returns the ranks to which jobs have come down by themselves in this round."""
        return {}

    def check(self, ranks: Sequence[int], rank: int) -> None:  # not abstract: most serve any ranks
        """Raises InputError if the clients' ranks don't fit the adapter's rank."""

    def check_recipe(self, recipe: Recipe) -> None:
        """Refuses scores that no client measures, and components that never train together or never last."""
        rule, plan, importance = recipe.rule, recipe.plan, recipe.importance
        if self.personal and importance.source != "clients":
            why = f"clients measure nothing for {importance.name}"
            raise InputError.of("selection.scores", "client", "server, or importance=gradient", why)
        roles = set(self.together)
        if not any(roles <= set(plan(done).train) for done in range(plan.initiating + 1)):
            raise self.clash(plan, f"no round trains {' and '.join(sorted(roles))} together", "one that does")
        if roles and rule.starts_afresh:
            why = "each round begins with a fresh adapter, and no component of it fades"
            raise self.clash(rule, why, "all, truncate or freeze")


class ImportancePart(Part):
    """The score of each component."""

    kind: ClassVar[str] = "importance"
    source: ClassVar[str] = "nothing"
    """Where scores come from: ``nothing``, ``clients`` that measure them, or the aggregate's ``change`` or
    ``weights``."""

    @abc.abstractmethod
    def __call__(self, view: View, before: GroupState, after: GroupState, updates: Sequence[Update]) -> GroupState:
        """Returns the group after the aggregation with its new scores.

        Args:
            view: The state before the aggregation.
            before: The group before the aggregation.
            after: The group after it, with the scores of ``before`` and the slots of the rule alone.
            updates: The group's updates.
        """

    def own(self, view: View, update: Update) -> dict[str, Tensor]:
        """Returns a job's own scores after its update, by layer, nan where it has none."""
        return {}

    def check_recipe(self, recipe: Recipe) -> None:
        """Refuses scores of an adapter that each round draws anew."""
        if self.source in ("change", "weights") and recipe.rule.starts_afresh:
            raise self.clash(recipe.rule, "each round begins with a fresh adapter", "gradient or none")


class GroupingPart(Part):
    """Which jobs are averaged with each other."""

    kind: ClassVar[str] = "grouping"
    clusters: ClassVar[bool] = False
    """True if groups are clusters of jobs."""

    @property
    def several(self) -> bool:
        """True if there can be more than one group."""
        return False

    @property
    def reads_changes(self) -> bool:
        """True if jobs are clustered by what their training changed."""
        return False

    @abc.abstractmethod
    def __call__(self, view: View, updates: Sequence[Update]) -> Groups:
        """Returns the groups of the updates; every update is a member of one group, or only joins one."""

    def with_tasks(self, tasks: Mapping[JobId, str]) -> GroupingPart:
        """Returns the grouping for a federation with these true tasks, which only an oracle reads."""
        return self

    def check(self, jobs: int) -> None:  # not abstract: most serve any number of jobs
        """Raises InputError if a client with so many jobs can't be served."""


class CompressionPart(Part):
    """The precision of what travels."""

    kind: ClassVar[str] = "compression"
    packs: ClassVar[bool] = False
    """True if what arrives differs from what was sent."""

    @property
    def down(self) -> bool:
        """True if payloads are packed too."""
        return False

    def upward(self, layout: Layout, updates: list[Update]) -> list[Update]:
        """Returns what a client sends in the place of the updates of its jobs, of which there is at least one."""
        return updates

    def downward(self, layout: Layout, payload: Payload, scores: Mapping[str, Tensor], jobs: int) -> Payload:
        """Returns what a job is sent in the place of this payload; its client has so many jobs in the round."""
        return payload

    def check_recipe(self, recipe: Recipe) -> None:
        """Refuses parts that need what was sent to arrive exactly."""
        if not self.packs:
            return
        if recipe.rule.sends:
            why = f"{recipe.rule.name} derives from exact weights what the clients keep"
            raise InputError.of("compression", self.name, "none", why)
        if self.down:
            self._check_down(recipe)

    def _check_down(self, recipe: Recipe) -> None:
        selection, importance = recipe.selection, recipe.importance
        refused = {
            f"selection {selection.name}": (
                bool(selection.together), "a client takes the components that it is sent for its rank"),
            f"importance {importance.name}": (
                importance.source == "change", "the change would have the rounding on the way down in it"),
            "grouping.features=changes": (
                recipe.grouping.reads_changes, "the changes would have the rounding on the way down in them"),
            "a transfer between clusters": (
                recipe.transfer.mixes, "the clusters' changes would have the rounding on the way down in them"),
        }  # fmt: skip
        for part, (clashes, why) in refused.items():
            if clashes:
                raise InputError.of("compression.down", "true", f"false with {part}", why)
