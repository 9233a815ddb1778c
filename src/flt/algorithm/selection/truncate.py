"""Selection for jobs that hold and train only their top components (HAFL)."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from flt.algorithm.selection.top import ComponentIds, Top
from flt.algorithm.view import View
from flt.protocol.job import Job


@dataclasses.dataclass(frozen=True)
class Truncate(Top):
    """A job of rank r_k holds, trains and sends only its top r_k components (HAFL). Its model lacks all others."""

    def __call__(self, view: View, job: Job, cohort: Sequence[Job]) -> tuple[ComponentIds, ComponentIds]:
        """Returns the held and the trained components, as ids by layer: in both cases the top components."""
        top = self.top(view, job, cohort)
        return top, top
