"""Rank budgets: how many pairs live in a round."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import TYPE_CHECKING, ClassVar

from flt.algorithm import pruning
from flt.algorithm.base import SchedulePart
from flt.algorithm.plan import of_rounds
from flt.core.errors import InputError
from flt.protocol.layout import LORA_FACTORS, Layout
from flt.protocol.state import ServerState

if TYPE_CHECKING:
    from flt.algorithm.recipe import Recipe

SHAPES: dict[str, Callable[[float, float, float], float]] = {
    "cubic": lambda start, end, x: end + (start - end) * (1 - x) ** 3,
    "linear": lambda start, end, x: end + (start - end) * (1 - x),
    "cosine": lambda start, end, x: end + (start - end) * (1 + math.cos(math.pi * x)) / 2,
    "exponential": lambda start, end, x: start * (end / start) ** x,
}
"""Shape -> the budget at a share x of the annealing, in [0, 1], from ``start`` to ``end``."""
CRITERIA = ("score", "svd")


@dataclasses.dataclass(frozen=True)
class Constant(SchedulePart):
    """Every component is active from the first round to the last."""

    def __call__(self, state: ServerState, layout: Layout) -> ServerState:
        """Returns the state as it is."""
        return state


@dataclasses.dataclass(frozen=True)
class Annealed(SchedulePart):
    """SA-FedLoRA's rank budget: it heats, anneals and cools (arXiv 2405.09394v1).

        b(t) = b_0                                            t <= T0 + t_h            heating
        b(t) = floor(b_T + (b_0 - b_T) (1 - x)^3)             else                     annealing
        b(t) = b_T                                            t > T - t_c              cooling
        x = (t - T0 - t_h) / (T - T0 - t_h - t_c)

    The abstract has the phases; the formula is AdaLoRA's (arXiv 2303.10512) over rounds, and with the other shapes our
    reconstruction. b_0 is the adapter's rank. After round t the server cuts to b(t + 1), at most b(T). The pairs that
    go are the same for everyone; the scale alpha / r stays, so the product changes by them and nothing else.

    Attributes:
        end: b_T, pairs per layer in the end.
        shape: ``cubic``, ``linear``, ``cosine`` or ``exponential``.
        heat: t_h, rounds at b_0 after the first stage: a number, or a fraction as a share of all, at least one round.
        cool: t_c, rounds at b_T in the end, alike. Shares are shortened where a run is too short for them.
        reversed: From b_T up to b_0, for the ablation.
        by: ``score``: the pairs of the lowest importance go; ``svd``: the best approximation takes the product's place.
        allocation: ``layer``: b(t) pairs in each layer; ``global``: b(t) on average, the best of all layers.
        initiating: T0, rounds of the first stage; None: the plan's.
        rounds: Rounds in all, T; None: the run's.
    """

    works_on: ClassVar[tuple[str, ...]] = LORA_FACTORS

    end: int = 4
    shape: str = "cubic"
    heat: int | float = 0.1
    cool: int | float = 0.2
    reversed: bool = False
    by: str = "score"
    allocation: str = "layer"
    initiating: int | None = None
    rounds: int | None = None

    def __post_init__(self) -> None:
        for key, allowed in (("shape", SHAPES), ("by", CRITERIA), ("allocation", pruning.ALLOCATIONS)):
            if getattr(self, key) not in allowed:
                raise InputError.of(f"schedule.{key}", getattr(self, key), allowed)
        if self.end < 1:
            raise InputError.of("schedule.end", self.end, "an integer >= 1")
        if self.rounds is not None:
            self._phases()
        if self.reversed and self.by == "svd":
            why = "a budget that rises cuts nothing"
            raise InputError.of("schedule.by", self.by, "score with schedule.reversed", why)
        if self.reversed and self.allocation == "global":
            why = "a budget that rises wakes components in order"
            raise InputError.of("schedule.allocation", self.allocation, "layer with schedule.reversed", why)

    @property
    def cuts(self) -> bool:
        """True: the budget changes."""
        return True

    @property
    def falls(self) -> bool:
        """Whether pairs go: a budget that rises only wakes them."""
        return not self.reversed

    @property
    def heated(self) -> int | None:
        """The last round before the first cut; None: not known before the run's rounds are."""
        return None if self.rounds is None else self._phases()[0]

    def check_recipe(self, recipe: Recipe) -> None:
        """Refuses components whose importance nobody knows, and an SVD where others remember the factors.

        Raises:
            InputError: Another part contradicts this one.
        """
        if recipe.rule.starts_afresh:
            raise self.clash(recipe.rule, "each round begins with a fresh adapter", "constant")
        if not self.falls:
            return
        if self.by == "score" and recipe.importance.source == "nothing":
            raise InputError.of("importance", "none", "gradient, delta or magnitude", f"{self.name} cuts by it")
        if self.by == "svd" and (
            recipe.grouping.several or recipe.rule.sends or recipe.selection.personal or recipe.server_optimizer.steps
        ):
            why = "the groups' factors, or what is kept of them, would no longer belong together"
            allowed = "score with several groups, slots, clients' own scores or a server optimiser"
            raise InputError.of("schedule.by", "svd", allowed, why)
        self._check_plan(recipe)

    def _check_plan(self, recipe: Recipe) -> None:
        plan, heated = recipe.plan, self.heated
        private = sorted(set(LORA_FACTORS) & set(plan(max(0, (heated or 1) - 1)).private))
        if private and (self.by == "svd" or recipe.importance.source != "clients"):
            why = f"the server would cut by what it has, and plan.private keeps {', '.join(private)} at the clients"
            raise InputError.of("schedule.by", self.by, "score with importance=gradient", why)
        if heated is not None and not any(set(LORA_FACTORS) & set(plan(done).train) for done in range(heated)):
            why = "no round before the first cut trains the components"
            raise self.clash(plan, why, "schedule.heat >= 1, with a plan that trains them")

    def check(self, rank: int) -> None:
        """Refuses an end above the adapter's rank, from which the budget starts.

        Raises:
            InputError: It is above.
        """
        if self.end > rank:
            raise InputError.of("schedule.end", self.end, f"1 to {rank}, the adapter's rank")

    def budget(self, round: int, start: int) -> int:
        """b(t), pairs per layer.

        Args:
            round: t, from 1 to T.
            start: b_0.
        """
        assert self.rounds is not None, "build fills in the run's"
        first, last = (self.end, start) if self.reversed else (start, self.end)
        heated, cooling = self._phases()
        if round <= heated:
            return first
        if round > self.rounds - cooling:
            return last
        x = (round - heated) / (self.rounds - heated - cooling)
        return math.floor(SHAPES[self.shape](first, last, x) + 1e-9)  # 4 may come out as 3.9999999999999996

    def __call__(self, state: ServerState, layout: Layout) -> ServerState:
        """Cuts ``alive`` for the next round."""
        assert self.rounds is not None, "build fills in the run's"
        round = min(state.rounds + 1, self.rounds)
        budgets = {name: self.budget(round, layer.rank) for name, layer in layout.layers.items()}
        if self.reversed:
            return pruning.grow(state, budgets)
        if sum(map(len, state.active.values())) <= sum(budgets.values()):
            return state
        cut = pruning.svd if self.by == "svd" else pruning.by_score
        return cut(state, layout, budgets, self.allocation)

    def _phases(self) -> tuple[int, int]:
        """(last round of the heating, rounds of the cooling); in a short run shares give way, and numbers don't."""
        rounds, first = self.rounds or 1, self.initiating or 0
        heat, cool = (of_rounds(f"schedule.{key}", getattr(self, key), rounds) for key in ("heat", "cool"))
        if isinstance(self.heat, float):
            heat = min(max(heat, 1), rounds - first)
        cool = max(0, min(cool, rounds - first - heat)) if isinstance(self.cool, float) else cool
        if not 1 <= first + heat <= rounds - cool:
            allowed = f"at least one round before the first cut, and at most the run's {rounds} in all"
            why = f"{first} initiating, {heat} heating, {cool} cooling"
            raise InputError.of("schedule.heat", self.heat, allowed, why)
        return first + heat, cool
