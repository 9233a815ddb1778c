"""Base classes of a recipe's parts. Their default methods suit most parts: a new part overrides only a few."""

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
from flt.protocol.messages import Ids, JobId, Plan, Update
from flt.protocol.state import GroupState, ServerState

if TYPE_CHECKING:
    from flt.algorithm.grouping.base import Groups
    from flt.algorithm.recipe import Recipe


class Part(abc.ABC):
    """One part of a recipe.

    Each part has two checks. :meth:`check_recipe` refuses recipes with which the part can't work.
    :meth:`check_layout` refuses modules that lack tensors that the part needs.
    """

    kind: ClassVar[str]
    """Kind of the part, such as ``rule``. A folder in conf/ and a field of :class:`Recipe` have this name too."""
    works_on: ClassVar[tuple[str, ...]] = ()
    """Roles (such as ``A``) of the tensors that the part works on; empty if it works on tensors of any role."""

    @property
    def needs(self) -> tuple[str, ...]:
        """Roles that must occur among the module's tensors; by default the roles that the part works on."""
        return self.works_on

    @property
    def needs_matrices(self) -> bool:
        """True if the part forms products B A, or takes A and B for matrices. By default it doesn't."""
        return False

    @property
    def reads_held_out(self) -> bool:
        """True if the server needs losses on examples that clients hold out. By default it needs none."""
        return False

    def check_recipe(self, recipe: Recipe) -> None:  # noqa: B027  # not abstract: most parts fit all others
        """Refuses a recipe with which this part can't work. By default, the part works with every recipe.

        Raises:
            InputError: The part can't be combined with another part of the recipe.
        """

    def check_layout(self, recipe: Recipe, layout: Layout) -> None:
        """Refuses a module that lacks tensors that this part needs.

        Raises:
            InputError: The module has no tensor of a role that the part needs, or has LoRA on a layer that isn't linear
                although the part needs matrices.
        """
        roles = {entry.role for entry in layout.entries.values()}
        if missing := sorted(set(self.needs) - roles):
            why = f"it works on rank-1 components, and the adapter has no {' and no '.join(missing)}"
            raise InputError.of(self.kind, self.name, f"another {self.kind}, or adapter=lora", why)
        others = [name for name, layer in layout.layers.items() if not layer.matrices]
        if others and self.needs_matrices:
            why = f"it works on products B A of matrices, and {others[0]} is a convolution"
            raise InputError.of(self.kind, self.name, f"another {self.kind}, or LoRA on linear layers alone", why)

    def callbacks(self, fit: LocalFit) -> list[Callback]:
        """Returns the Lightning callbacks with which the part changes or measures one local fit; none by default."""
        return []

    @property
    def name(self) -> str:
        """Name of the part in error messages."""
        return type(self).__name__

    def clash(self, other: Part, why: str, allowed: str) -> InputError:
        """Returns the error for a recipe that combines this part with ``other``."""
        return InputError(f"{self.kind} {self.name} with {other.kind} {other.name}: {why}; allowed is {allowed}")


class PlanPart(Part):
    """Plan of each round: the roles that are trained, the roles that are sent, and settings of local training."""

    kind: ClassVar[str] = "plan"

    @property
    def initiating(self) -> int:
        """Number of rounds in the plan's initiating stage; 0 without one. A rank schedule begins after this stage."""
        return 0

    @property
    @abc.abstractmethod
    def roles(self) -> frozenset[str]:
        """Roles that are trained in at least one round."""

    @abc.abstractmethod
    def __call__(self, round: int) -> Plan:
        """Returns the plan of the next round. ``round`` is the number of finished rounds."""

    def check_recipe(self, recipe: Recipe) -> None:
        """Refuses a plan that trains the base, if the rule changes the base too or there can be several groups."""
        if "base" not in self.roles:
            return
        plan = f"plan {self.name}, which trains the base"
        if recipe.grouping.several:
            raise InputError(f"{plan}, with grouping {recipe.grouping.name}: there is one base; allowed is everyone")
        if recipe.rule.changes_base:
            raise InputError(f"{plan}, with rule {recipe.rule.name}: it writes into the base too; allowed is mean")


class SchedulePart(Part):
    """Rank budget of each round: the number of active rank-1 components per layer."""

    kind: ClassVar[str] = "schedule"

    @property
    def cuts(self) -> bool:
        """True if the budget differs between rounds."""
        return False

    @property
    def falls(self) -> bool:
        """True if the server removes components after some round."""
        return False

    @property
    def heating_end(self) -> int | None:
        """Last round before the budget changes; None if the budget is constant or the number of rounds isn't set."""
        return None

    @property
    def reads_validation(self) -> bool:
        """True if the budget depends on the validation metrics of the earlier rounds."""
        return False

    def validated(self, metrics: Mapping[str, float]) -> float | None:
        """Returns the number that the budget reads from the metrics of a round, lower meaning better.

        None if the global model wasn't evaluated in the round, or if the budget reads no metrics.
        """
        return None

    @property
    def by(self) -> str:
        """Criterion for removing components: ``score`` or ``svd``. ``svd`` also changes the remaining components."""
        return "score"

    @abc.abstractmethod
    def __call__(self, state: ServerState, layout: Layout) -> ServerState:
        """Returns the server's state with the active components of the next round."""

    def check(self, rank: int) -> None:  # not abstract: most budgets fit any rank
        """Raises InputError if the budget doesn't fit the adapter's rank."""


class SelectionPart(Part):
    """Chooses the components that a job holds (has in its model), and which of these components it trains."""

    kind: ClassVar[str] = "selection"
    holds_all: ClassVar[bool] = False
    """True if every job holds and trains all active components."""
    freezes: ClassVar[bool] = False
    """True if a job can hold components that it neither trains nor sends."""
    together: ClassVar[tuple[str, ...]] = ()
    """Roles that the plan must train together in at least one round. If empty, any plan is allowed."""

    @property
    def uses_own_scores(self) -> bool:
        """True if the selection reads each job's own scores, besides the scores of the job's group."""
        return False

    @abc.abstractmethod
    def __call__(self, view: View, job: Job, cohort: Sequence[Job]) -> tuple[dict[str, Ids], dict[str, Ids]]:
        """Returns the components that a job holds, and the components that it trains.

        Each is a dict: layer -> ids in ascending order. A job trains only components that it holds, and holds only
        active components.
        """

    def ranks(self, updates: Sequence[Update]) -> dict[JobId, int]:
        """Returns the new rank of each job that has reduced its own rank in this round."""
        return {}

    def check(self, ranks: Sequence[int], rank: int) -> None:  # not abstract: most accept any ranks
        """Raises InputError if the clients' ranks don't fit the adapter's rank."""

    def check_recipe(self, recipe: Recipe) -> None:
        """Refuses parts with which the selection can't work.

        - An importance that clients don't measure, if the selection reads each job's own scores.
        - A plan that never trains all roles of ``together`` in the same round.
        - A rule that draws a new adapter in each round, if ``together`` isn't empty.
        """
        rule, plan, importance = recipe.rule, recipe.plan, recipe.importance
        if self.uses_own_scores and importance.source != "clients":
            why = f"clients measure nothing for {importance.name}"
            raise InputError.of("selection.scores", "client", "server, or importance=gradient or ablation", why)
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
    """Source of the scores. ``clients``: clients measure them. ``change``: the server computes them from the change
    that the aggregation made to a group's weights. ``weights``: the server computes them from the group's weights after
    the aggregation. ``nothing``: there is no source, and all components keep the same score."""

    @property
    def carries(self) -> bool:
        """True if clients keep something of single components from one fit to the next, to measure with it."""
        return False

    @abc.abstractmethod
    def __call__(self, view: View, before: GroupState, after: GroupState, updates: Sequence[Update]) -> GroupState:
        """Returns the state of the group after the aggregation, with new scores.

        Args:
            view: View of the state before the aggregation.
            before: State of the group before the aggregation.
            after: State of the group after the aggregation, with the old scores. The slots are those that the rule and
                the server optimiser returned. The importance can add slots.
            updates: The group's updates.
        """

    def own_scores(self, view: View, update: Update) -> dict[str, Tensor]:
        """Returns a job's own scores after its update, by layer. Components that the job never measured have nan."""
        return {}

    def check_recipe(self, recipe: Recipe) -> None:
        """Refuses scores computed from the aggregate if the rule draws a new adapter in each round."""
        if self.source in ("change", "weights") and recipe.rule.starts_afresh:
            raise self.clash(recipe.rule, "each round begins with a fresh adapter", "gradient or none")


class GroupingPart(Part):
    """Division of a round's updates into groups that are averaged separately."""

    kind: ClassVar[str] = "grouping"
    clusters: ClassVar[bool] = False
    """True if the groups are clusters of jobs; False if all jobs are in one group."""
    detects_tasks: ClassVar[bool] = False
    """True if clusters stay from round to round, and new ones are opened for new tasks without being told."""

    @property
    def several(self) -> bool:
        """True if there can be more than one group."""
        return False

    @property
    def reads_changes(self) -> bool:
        """True if jobs are clustered by the changes that their training made to the weights."""
        return False

    @abc.abstractmethod
    def __call__(self, view: View, updates: Sequence[Update]) -> Groups:
        """Returns the updates of each group, and the jobs that join a group from the next round on."""

    def with_tasks(self, tasks: Mapping[JobId, str]) -> GroupingPart:
        """Returns the grouping for a federation whose jobs have these true tasks. Only an oracle uses the tasks."""
        return self

    def check(self, jobs: int) -> None:  # not abstract: most accept any number
        """Raises InputError if the grouping doesn't work for a client with this number of jobs."""
