"""What each part of a recipe is asked, and what it answers. A new part has these methods and needs no base class."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

from lightning.pytorch import Callback
from torch import Tensor

from flt.algorithm.grouping.base import Groups
from flt.algorithm.rule.base import Combined
from flt.algorithm.view import View
from flt.client.fit import LocalFit
from flt.protocol.job import Job
from flt.protocol.layout import Layout
from flt.protocol.messages import Ids, JobId, Payload, Plan, Update
from flt.protocol.state import GroupState, ServerState


class PlanPart(Protocol):
    """What trains and what travels."""

    @property
    def needs(self) -> tuple[str, ...]:
        """Roles that the module must have: A and B, or none."""

    @property
    def initiating(self) -> int:
        """Rounds of a first stage, after which a schedule begins."""

    @property
    def roles(self) -> frozenset[str]:
        """Roles that train in some round."""

    def __call__(self, round: int) -> Plan:
        """The plan of the round that follows ``round`` finished ones."""


class SchedulePart(Protocol):
    """The rank budget."""

    @property
    def needs(self) -> tuple[str, ...]:
        """Roles that the module must have: A and B, or none."""

    @property
    def cuts(self) -> bool:
        """Whether the budget changes."""

    @property
    def falls(self) -> bool:
        """Whether pairs go at some time."""

    @property
    def heated(self) -> int | None:
        """The last round before the first cut, of a budget that falls; None where it isn't known yet."""

    @property
    def by(self) -> str:
        """What decides which pairs go: ``score``, or ``svd``, which writes new factors into those that stay."""

    def __call__(self, state: ServerState, layout: Layout) -> ServerState:
        """The state with ``alive`` cut for the next round."""

    def check(self, rank: int) -> None:
        """Raises InputError where the budget doesn't fit the adapter's rank."""


class SelectionPart(Protocol):
    """Which pairs a job holds and which of these it trains."""

    @property
    def needs(self) -> tuple[str, ...]:
        """Roles that the module must have: A and B, or none."""

    def __call__(self, view: View, job: Job, cohort: Sequence[Job]) -> tuple[dict[str, Ids], dict[str, Ids]]:
        """(held, kept) pair ids by layer, ascending; kept is a part of held, held of the living pairs."""

    def callbacks(self, fit: LocalFit) -> list[Callback]:
        """What changes local training."""

    @property
    def freezes(self) -> bool:
        """Whether a job computes with pairs that it doesn't send."""

    @property
    def personal(self) -> bool:
        """Whether it reads the scores that a job measured by itself."""

    @property
    def together(self) -> tuple[str, ...]:
        """Roles that it needs to train in one round, from some round on."""

    def ranks(self, updates: Sequence[Update]) -> dict[JobId, int]:
        """The ranks that jobs came down to in this round by themselves."""

    def check(self, ranks: Sequence[int], rank: int) -> None:
        """Raises InputError where the clients' ranks don't fit the adapter's."""


class ImportancePart(Protocol):
    """The score of each pair."""

    @property
    def needs(self) -> tuple[str, ...]:
        """Roles that the module must have: A and B, or none."""

    @property
    def source(self) -> str:
        """Where scores come from: ``nothing``, ``clients`` measure them, the aggregate's ``change`` or ``weights``."""

    def __call__(self, view: View, before: GroupState, after: GroupState, updates: Sequence[Update]) -> GroupState:
        """The group after the aggregation with its new scores; it may keep slots of its own, and changes nothing else.

        ``after`` has the scores of ``before``, and the slots of the rule alone.
        """

    def own(self, view: View, update: Update) -> dict[str, Tensor]:
        """A job's own scores after its update, of any group; nan where it has none."""

    def callbacks(self, fit: LocalFit) -> list[Callback]:
        """What changes local training, such as a meter."""


class ServerOptimizerPart(Protocol):
    """How far the server goes along the change that the rule found."""

    @property
    def steps(self) -> bool:
        """Whether the group becomes anything else than what the rule made of it."""

    def __call__(
        self, view: View, gid: int, updates: Sequence[Update], out: Combined, start: Mapping[str, Tensor]
    ) -> Combined:
        """The rule's answer for a group, with the server's step in the place of its change from ``start``."""


class TransferPart(Protocol):
    """What clusters take over from each other."""

    def __call__(self, view: View, new: Mapping[int, dict[str, Tensor]]) -> dict[int, dict[str, Tensor]]:
        """The weights of the groups that had members, from those that the rule gave them."""


class GroupingPart(Protocol):
    """Who is averaged with whom."""

    @property
    def several(self) -> bool:
        """Whether there can be more than one group."""

    def __call__(self, view: View, updates: Sequence[Update]) -> Groups:
        """Who is averaged in which group; every update is a member of one, or only joins one."""

    def check(self, jobs: int) -> None:
        """Raises InputError where a client with so many jobs can't be served."""


class CompressionPart(Protocol):
    """How precisely things travel."""

    @property
    def needs(self) -> tuple[str, ...]:
        """Roles that the module must have: A and B, or none."""

    @property
    def packs(self) -> bool:
        """Whether anything arrives other than it was sent."""

    @property
    def down(self) -> bool:
        """Whether payloads are packed too."""

    def upward(self, layout: Layout, updates: list[Update]) -> list[Update]:
        """What a client's jobs send instead of these updates of theirs, of which there is at least one."""

    def downward(self, layout: Layout, payload: Payload, scores: Mapping[str, Tensor], jobs: int) -> Payload:
        """What a job is sent instead of this payload; its client has so many jobs in the round."""
