"""No importance."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from flt.algorithm.base import ImportancePart
from flt.algorithm.view import View
from flt.protocol.messages import Update
from flt.protocol.state import GroupState


@dataclasses.dataclass(frozen=True)
class NoImportance(ImportancePart):
    """No importance: nothing is measured, and all components keep the same score."""

    def __call__(self, view: View, before: GroupState, after: GroupState, updates: Sequence[Update]) -> GroupState:
        """Returns the state of the group unchanged."""
        return after
