"""What a rule is asked and what it answers."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import ClassVar

from lightning.pytorch import Callback
from torch import Tensor

from flt.callbacks.local import LocalFit
from flt.errors import InputError
from flt.messages import Update
from flt.view import View

WEIGHTS = ("examples", "uniform")


@dataclasses.dataclass(frozen=True)
class Combined:
    """A rule's answer for one group.

    Attributes:
        new: The group's weights, at the initial rank.
        slots: What the rule keeps in the group for the next round.
        base: Change of the base: name -> (value,) or (B, A).
    """

    new: dict[str, Tensor]
    slots: dict[str, dict[str, Tensor]] = dataclasses.field(default_factory=dict)
    base: dict[str, tuple[Tensor, ...]] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Rule:
    """Aggregation of one group's updates: ``combine`` is all that a new one has to write.

    Attributes:
        weights: ``examples``: a client weighs as much as it has examples; ``uniform``: all clients weigh the same.
    """

    weights: str = "examples"

    sends: ClassVar[tuple[str, ...]] = ()
    """Slots of the group that travel down with the weights."""
    changes_base: ClassVar[bool] = False
    """The rule writes into the frozen weights."""
    one_group: ClassVar[str] = ""
    """Why the rule has no meaning with several groups; empty where it has."""

    def __post_init__(self) -> None:
        if self.weights not in WEIGHTS:
            raise InputError.of("rule.weights", self.weights, WEIGHTS)

    def combine(self, view: View, gid: int, updates: Sequence[Update]) -> Combined:
        """Combines a group's updates, which come sorted by job; there is at least one."""
        raise NotImplementedError

    def callbacks(self, fit: LocalFit) -> list[Callback]:
        """What changes local training: nothing, for most rules."""
        return []

    def weight(self, update: Update) -> int:
        """A client's weight, an integer so that sums stay exact."""
        return update.examples if self.weights == "examples" else 1
