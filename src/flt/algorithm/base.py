"""Base classes of a recipe's parts. Their defaults suit most parts, so a new part overrides only what differs."""

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

    Each part checks whether the rest fits: :meth:`check_recipe` reads the properties of the other parts, and
    :meth:`check_layout` reads the layout of the module's tensors.
    """

    kind: ClassVar[str]
    """Name of the part's group in conf/ and of its field in a recipe."""
    works_on: ClassVar[tuple[str, ...]] = ()
    """Roles of the tensors that the part works on."""

    @property
    def needs(self) -> tuple[str, ...]:
        """Roles that the module's tensors must have; by default those that the part works on."""
        return self.works_on

    def check_recipe(self, recipe: Recipe) -> None:  # noqa: B027  # not abstract: most parts fit all others
        """Refuses a recipe in which this part has no meaning.

        Raises:
            InputError: Another part contradicts this one.
        """

    def check_layout(self, recipe: Recipe, layout: Layout) -> None:
        """Refuses a module without the tensors that this part works on.

        Raises:
            InputError: The module has no tensor of a role that the part needs.
        """
        roles = {entry.role for entry in layout.entries.values()}
        if missing := sorted(set(self.needs) - roles):
            why = f"it works on rank-1 components, and the adapter has no {' and no '.join(missing)}"
            raise InputError.of(self.kind, self.name, f"another {self.kind}, or adapter=lora", why)

    def callbacks(self, fit: LocalFit) -> list[Callback]:
        """Returns the callbacks that change or measure one local fit; none by default."""
        return []

    @property
    def name(self) -> str:
        """Name of the part in error messages."""
        return type(self).__name__

    def clash(self, other: Part, why: str, allowed: str) -> InputError:
        """Returns the error that refuses this part in combination with another one."""
        return InputError(f"{self.kind} {self.name} with {other.kind} {other.name}: {why}; allowed is {allowed}")


class PlanPart(Part):
    """Plan of each round: the roles that train, the roles that travel, and settings of local training."""

    kind: ClassVar[str] = "plan"

    @property
    def initiating(self) -> int:
        """Number of rounds in the plan's first stage. A schedule begins after them."""
        return 0

    @property
    @abc.abstractmethod
    def roles(self) -> frozenset[str]:
        """Roles that train in some round."""

    @abc.abstractmethod
    def __call__(self, round: int) -> Plan:
        """Returns the plan of the round that follows ``round`` finished rounds."""

    def check_recipe(self, recipe: Recipe) -> None:
        """Refuses a second part that changes the base weights, and several groups, which would share the one base."""
        if "base" not in self.roles:
            return
        plan = f"plan {self.name}, which trains the base"
        if recipe.grouping.several:
            raise InputError(f"{plan}, with grouping {recipe.grouping.name}: there is one base; allowed is everyone")
        if recipe.rule.changes_base:
            raise InputError(f"{plan}, with rule {recipe.rule.name}: it writes into the base too; allowed is mean")


class SchedulePart(Part):
    """Rank budget of each round."""

    kind: ClassVar[str] = "schedule"

    @property
    def cuts(self) -> bool:
        """True if the budget changes."""
        return False

    @property
    def falls(self) -> bool:
        """True if some round removes components."""
        return False

    @property
    def heating_end(self) -> int | None:
        """Last round before the first cut of a falling budget; None: not known yet."""
        return None

    @property
    def by(self) -> str:
        """Criterion of a cut: ``score``, or ``svd``, which writes new factors into the components that stay."""
        return "score"

    @abc.abstractmethod
    def __call__(self, state: ServerState, layout: Layout) -> ServerState:
        """Returns the state with the active components of the next round."""

    def check(self, rank: int) -> None:  # not abstract: most budgets fit any rank
        """Raises InputError if the budget doesn't fit the adapter's rank."""


class SelectionPart(Part):
    """Choice of the components that a job holds, and of the held ones that it trains."""

    kind: ClassVar[str] = "selection"
    holds_all: ClassVar[bool] = False
    """True if every job holds and trains all active components."""
    freezes: ClassVar[bool] = False
    """True if a job computes with components that it doesn't send."""
    together: ClassVar[tuple[str, ...]] = ()
    """Roles that the plan must train together in some round."""

    @property
    def uses_own_scores(self) -> bool:
        """True if the selection reads the scores that a job measured by itself."""
        return False

    @abc.abstractmethod
    def __call__(self, view: View, job: Job, cohort: Sequence[Job]) -> tuple[dict[str, Ids], dict[str, Ids]]:
        """Returns the held and the kept component ids of a job, each by layer and ascending.

        Kept components are among the held ones, and held components are among the active ones.
        """

    def ranks(self, updates: Sequence[Update]) -> dict[JobId, int]:
        """Returns the ranks of the jobs that have reduced their own rank in this round."""
        return {}

    def check(self, ranks: Sequence[int], rank: int) -> None:  # not abstract: most accept any ranks
        """Raises InputError if the clients' ranks don't fit the adapter's rank."""

    def check_recipe(self, recipe: Recipe) -> None:
        """Refuses scores that no client measures, roles that never train together, and adapters drawn anew."""
        rule, plan, importance = recipe.rule, recipe.plan, recipe.importance
        if self.uses_own_scores and importance.source != "clients":
            why = f"clients measure nothing for {importance.name}"
            raise InputError.of("selection.scores", "client", "server, or importance=gradient", why)
        roles = set(self.together)
        if not any(roles <= set(plan(done).train) for done in range(plan.initiating + 1)):
            raise self.clash(plan, f"no round trains {' and '.join(sorted(roles))} together", "one that does")
        if roles and rule.starts_afresh:
            why = "each round begins with a fresh adapter, and no component of it fades"
            raise self.clash(rule, why, "all, truncate or freeze")


class ImportancePart(Part):
    """Importance score of each component."""

    kind: ClassVar[str] = "importance"
    source: ClassVar[str] = "nothing"
    """Source of the scores: ``nothing``, measurements by ``clients``, or the aggregate's ``change`` or ``weights``."""

    @abc.abstractmethod
    def __call__(self, view: View, before: GroupState, after: GroupState, updates: Sequence[Update]) -> GroupState:
        """Returns the group after the aggregation with its new scores.

        Args:
            view: View of the state before the aggregation.
            before: The group before the aggregation.
            after: The group after the aggregation, with the scores of ``before`` and only the rule's slots.
            updates: The group's updates.
        """

    def own_scores(self, view: View, update: Update) -> dict[str, Tensor]:
        """Returns a job's own scores after its update, by layer; nan for components without an own score."""
        return {}

    def check_recipe(self, recipe: Recipe) -> None:
        """Refuses scores from the aggregate if each round draws a new adapter."""
        if self.source in ("change", "weights") and recipe.rule.starts_afresh:
            raise self.clash(recipe.rule, "each round begins with a fresh adapter", "gradient or none")


class GroupingPart(Part):
    """Division of a round's updates into groups that are averaged separately."""

    kind: ClassVar[str] = "grouping"
    clusters: ClassVar[bool] = False
    """True if groups are clusters of jobs."""

    @property
    def several(self) -> bool:
        """True if there can be more than one group."""
        return False

    @property
    def reads_changes(self) -> bool:
        """True if jobs are clustered by the changes that their training made."""
        return False

    @abc.abstractmethod
    def __call__(self, view: View, updates: Sequence[Update]) -> Groups:
        """Returns the groups of the updates. Every update is a member of one group, or its job only joins one."""

    def with_tasks(self, tasks: Mapping[JobId, str]) -> GroupingPart:
        """Returns the grouping for a federation with these true tasks. Only an oracle uses them."""
        return self

    def check(self, jobs: int) -> None:  # not abstract: most accept any number
        """Raises InputError if the grouping can't serve a client with this number of jobs."""


class CompressionPart(Part):
    """Compression of the messages between server and clients."""

    kind: ClassVar[str] = "compression"
    packs: ClassVar[bool] = False
    """True if a message's values as received differ from the values before compression."""

    @property
    def down(self) -> bool:
        """True if payloads are compressed too, not only updates."""
        return False

    def compress_updates(self, layout: Layout, updates: list[Update]) -> list[Update]:
        """Returns the updates of one client's jobs as the client sends them; there is at least one."""
        return updates

    def compress_payload(self, layout: Layout, payload: Payload, scores: Mapping[str, Tensor], jobs: int) -> Payload:
        """Returns a job's payload as the server sends it.

        Args:
            layout: Names and roles of the tensors.
            payload: The payload before compression.
            scores: Scores of the job's group, by layer.
            jobs: Number of jobs that the job's client has in the round.
        """
        return payload

    def check_recipe(self, recipe: Recipe) -> None:
        """Refuses parts that need exact values from the other side."""
        if not self.packs:
            return
        if recipe.rule.sent_slots:
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
