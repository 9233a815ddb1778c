"""Plans: what trains and what travels in a round."""

from __future__ import annotations

import dataclasses

from flt.errors import InputError
from flt.layout import TRAVELLING
from flt.messages import Plan


@dataclasses.dataclass(frozen=True)
class AdapterPlan:
    """The adapter and the head train, in every round alike.

    Attributes:
        train: Roles that train: A, B, adapter, head. The head alone is the control of every adapter.
        mu: Weight of FedProx's proximal term (mu / 2) |w - w_t|^2 (arXiv 1812.06127).
    """

    train: list[str] = dataclasses.field(default_factory=lambda: list(TRAVELLING))
    mu: float = 0.0

    def __post_init__(self) -> None:
        if not self.train or not set(self.train) <= set(TRAVELLING):
            raise InputError.of("plan.train", self.train, f"some of {', '.join(TRAVELLING)}")
        if not 0 <= self.mu < float("inf"):
            raise InputError.of("plan.mu", self.mu, "a number >= 0")

    def __call__(self, round: int) -> Plan:
        """The plan of the round that follows ``round`` finished ones."""
        return Plan(train=tuple(self.train), mu=self.mu)
