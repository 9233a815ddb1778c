"""Selection for jobs that hold and train all components."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import ClassVar

from flt.algorithm.base import SelectionPart
from flt.algorithm.selection.top import ComponentIds
from flt.algorithm.view import View
from flt.core.errors import InputError
from flt.protocol.job import Job


@dataclasses.dataclass(frozen=True)
class All(SelectionPart):
    """Selection of all components: every job holds and trains all active components, as in FedAvg on LoRA."""

    holds_all: ClassVar[bool] = True

    def __call__(self, view: View, job: Job, cohort: Sequence[Job]) -> tuple[ComponentIds, ComponentIds]:
        """Returns the held and the trained components, as ids by layer: in both cases all active components."""
        return dict(view.state.active), dict(view.state.active)

    def check(self, ranks: Sequence[int], rank: int) -> None:
        """Refuses clients that can't hold all components.

        Raises:
            InputError: A client's rank is below the adapter's rank.
        """
        if min(ranks) < rank:
            why = f"a client of rank {min(ranks)} can't train all {rank} components"
            raise InputError.of("selection", "all", "truncate or freeze where ranks differ", why)
