"""Every job holds and trains all components."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import ClassVar

from lightning.pytorch import Callback

from flt.algorithm.selection.top import ComponentIds
from flt.algorithm.view import View
from flt.client.fit import LocalFit
from flt.core.errors import InputError
from flt.protocol.job import Job
from flt.protocol.messages import JobId, Update


@dataclasses.dataclass(frozen=True)
class All:
    """Every job holds and trains all living pairs: what FedAvg on LoRA does."""

    needs: ClassVar[tuple[str, ...]] = ()
    together: ClassVar[tuple[str, ...]] = ()
    personal: ClassVar[bool] = False
    freezes: ClassVar[bool] = False

    def __call__(self, view: View, job: Job, cohort: Sequence[Job]) -> tuple[ComponentIds, ComponentIds]:
        """(held, kept) pair ids of a job."""
        return dict(view.state.active), dict(view.state.active)

    def callbacks(self, fit: LocalFit) -> list[Callback]:
        """What changes local training: nothing."""
        return []

    def ranks(self, updates: Sequence[Update]) -> dict[JobId, int]:
        """Every job keeps its rank."""
        return {}

    def check(self, ranks: Sequence[int], rank: int) -> None:
        """Refuses clients that can't hold all pairs.

        Raises:
            InputError: A client's rank is below the adapter's.
        """
        if min(ranks) < rank:
            why = f"a client of rank {min(ranks)} can't train all {rank} components"
            raise InputError.of("selection", "all", "truncate or freeze where ranks differ", why)
