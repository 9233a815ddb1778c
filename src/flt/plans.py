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
        lr_decay: What the learning rate is multiplied by from round to round, in (0, 1]. FedAvg needs a decay to
            converge with heterogeneous clients (Li et al., arXiv 1907.02189, theorem 4); that it is exponential is our
            choice. It doesn't depend on the number of rounds, so a longer run has the same first rounds.
        lr_floor: The smallest factor that the learning rate comes down to, in [0, 1].
    """

    train: list[str] = dataclasses.field(default_factory=lambda: list(TRAVELLING))
    mu: float = 0.0
    lr_decay: float = 1.0
    lr_floor: float = 0.0

    def __post_init__(self) -> None:
        if not self.train or not set(self.train) <= set(TRAVELLING):
            raise InputError.of("plan.train", self.train, f"some of {', '.join(TRAVELLING)}")
        if not 0 <= self.mu < float("inf"):
            raise InputError.of("plan.mu", self.mu, "a number >= 0")
        if not 0 < self.lr_decay <= 1:
            raise InputError.of("plan.lr_decay", self.lr_decay, "a number in (0, 1]")
        if not 0 <= self.lr_floor <= 1:
            raise InputError.of("plan.lr_floor", self.lr_floor, "a number in [0, 1]")

    def __call__(self, round: int) -> Plan:
        """The plan of the round that follows ``round`` finished ones."""
        factor = max(self.lr_floor, self.lr_decay**round)
        return Plan(train=tuple(self.train), mu=self.mu, lr_factor=factor)
