"""A job holds and trains its top components only (HAFL)."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from flt.algorithm.selection.top import ComponentIds, Top
from flt.algorithm.view import View
from flt.protocol.job import Job


@dataclasses.dataclass(frozen=True)
class Truncate(Top):
    """A job holds, trains and sends its top r_k only: its model is smaller than the server's (HAFL)."""

    def __call__(self, view: View, job: Job, cohort: Sequence[Job]) -> tuple[ComponentIds, ComponentIds]:
        """(held, kept) pair ids of a job."""
        top = self.top(view, job, cohort)
        return top, top
