"""A job computes with all components and trains its top ones (HAFL)."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import ClassVar

from lightning.pytorch import Callback

from flt.algorithm.selection.top import Pairs, _Top
from flt.algorithm.view import View
from flt.client.fit import FrozenPairs, LocalFit
from flt.protocol.job import Job


@dataclasses.dataclass(frozen=True)
class Freeze(_Top):
    """A job holds all living pairs, computes with all, and trains and sends its top r_k (HAFL, arXiv 2411.06581)."""

    freezes: ClassVar[bool] = True

    def __call__(self, view: View, job: Job, cohort: Sequence[Job]) -> tuple[Pairs, Pairs]:
        """(held, kept) pair ids of a job."""
        return dict(view.state.alive), self._top(view, job, cohort)

    def callbacks(self, fit: LocalFit) -> list[Callback]:
        """What changes local training: the pairs that aren't kept stand still."""
        return [FrozenPairs(fit)]
