"""Schedules. A schedule sets the rank budget of each round: the number of active components per layer."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, ClassVar

from flt.algorithm import pruning
from flt.algorithm.base import SchedulePart
from flt.algorithm.plan import to_rounds
from flt.core import formatting
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
"""For each shape, a function (start, end, x) -> budget. x in [0, 1] is the share of the annealing that is finished."""
CRITERIA = ("score", "svd")
ENDS = ("hold", "cool")


@dataclasses.dataclass(frozen=True)
class Constant(SchedulePart):
    """Constant rank budget: all components are active in every round."""

    def __call__(self, state: ServerState, layout: Layout) -> ServerState:
        """Returns the state unchanged."""
        return state


@dataclasses.dataclass(frozen=True)
class Annealed(SchedulePart):
    """SA-FedLoRA's rank budget with three phases: heating, annealing and cooling (arXiv 2405.09394v1).

        b(t) = b_0                                            t <= T0 + t_h            heating
        b(t) = floor(b_T + (b_0 - b_T) (1 - x)^3)             between                  annealing
        b(t) = b_T                                            t > T - t_c              cooling
        x = (t - T0 - t_h) / (T - T0 - t_h - t_c)

    t is the number of the round, and b_0 is the adapter's rank. The other symbols are explained under Attributes. The
    phases are from the paper's abstract. The formula above is that of the shape ``cubic``. It is AdaLoRA's formula
    (arXiv 2303.10512), with rounds instead of steps. The other shapes are our reconstruction.

    After round t, the server reduces the number of active components per layer to b(t + 1), and after the last round
    to b(T). All groups and clients lose the same components. The scale alpha / r stays constant, so the product B A
    loses exactly the removed components.

    Attributes:
        end: Number b_T of components per layer at the end (with ``reversed``, at the start).
        shape: ``cubic``, ``linear``, ``cosine`` or ``exponential``.
        heat: Number t_h of rounds with the budget b_0 after the plan's initiating stage. An integer is a number of
            rounds, a float is a share of all rounds. A share gives at least one round, even the share 0.0.
        cool: Number t_c of rounds with the budget b_T at the end. An integer is a number of rounds, a float is a share
            of all rounds. In a short run, a share means at most the rounds that are left after the initiating stage and
            the heating.
        reversed: If True, the budget rises from b_T to b_0 instead of falling (for ablations).
        by: ``score``: the components with the lowest importance are removed. ``svd``: the product B A is replaced by
            its best approximation of lower rank.
        allocation: ``layer``: each layer keeps b(t) components. ``global``: the best components of all layers stay,
            on average b(t) per layer.
        initiating: Number T0 of rounds in the plan's initiating stage. If None, the plan's number is used.
        rounds: Total number T of rounds. If None, the run's number of rounds is used.
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
        """Always True, since the budget differs between rounds."""
        return True

    @property
    def falls(self) -> bool:
        """True if the budget falls, so that components are removed. A rising budget only activates components."""
        return not self.reversed

    @property
    def needs_matrices(self) -> bool:
        """True if components are removed, because the norm of the removed product B A is measured."""
        return self.falls

    @property
    def heating_end(self) -> int | None:
        """Last round before the budget changes. None as long as the run's number of rounds isn't set."""
        return None if self.rounds is None else self._phases()[0]

    def check_recipe(self, recipe: Recipe) -> None:
        """Refuses parts with which the budget can't work.

        A falling budget with ``by: score`` needs scores. With ``by: svd``, there must be a single group, and no other
        part may keep data that belong to the old factors, such as slots, moments or a job's own scores.

        Raises:
            InputError: The schedule can't be combined with another part of the recipe.
        """
        if recipe.rule.starts_afresh:
            raise self.clash(recipe.rule, "each round begins with a fresh adapter", "constant")
        if not self.falls:
            return
        if self.by == "score" and recipe.importance.source == "nothing":
            raise InputError.of(
                "importance", "none", "gradient, ablation, delta or magnitude", f"{self.name} cuts by it"
            )
        if self.by == "svd" and (
            recipe.grouping.several
            or recipe.rule.sent_slots
            or recipe.selection.uses_own_scores
            or recipe.importance.carries
            or recipe.server_optimizer.steps
        ):
            why = "the groups' factors, or what is kept of them, would no longer belong together"
            allowed = "score with several groups, slots, clients' own scores, carried averages or a server optimiser"
            raise InputError.of("schedule.by", "svd", allowed, why)
        self._check_plan(recipe)

    def _check_plan(self, recipe: Recipe) -> None:
        plan, heating_end = recipe.plan, self.heating_end
        private = sorted(set(LORA_FACTORS) & set(plan(max(0, (heating_end or 1) - 1)).private))
        if private and (self.by == "svd" or recipe.importance.source != "clients"):
            why = f"the server would cut by what it has, and plan.private keeps {', '.join(private)} at the clients"
            raise InputError.of("schedule.by", self.by, "score with importance=gradient", why)
        if heating_end is not None and not any(
            set(LORA_FACTORS) & set(plan(done).train) for done in range(heating_end)
        ):
            why = "no round before the first cut trains the components"
            raise self.clash(plan, why, "schedule.heat >= 1, with a plan that trains them")

    def check(self, rank: int) -> None:
        """Refuses a final budget ``end`` that is larger than the adapter's rank b_0.

        Raises:
            InputError: ``end`` is above the rank.
        """
        if self.end > rank:
            raise InputError.of("schedule.end", self.end, f"1 to {rank}, the adapter's rank")

    def budget(self, round: int, start: int) -> int:
        """Returns b(t), the number of active components per layer in round t.

        Args:
            round: Number t of the round, from 1 to T.
            start: The adapter's rank b_0.
        """
        assert self.rounds is not None, "build fills in the run's"
        first, last = (self.end, start) if self.reversed else (start, self.end)
        heating_end, cooling = self._phases()
        if round <= heating_end:
            return first
        if round > self.rounds - cooling:
            return last
        x = (round - heating_end) / (self.rounds - heating_end - cooling)
        return math.floor(SHAPES[self.shape](first, last, x) + 1e-9)  # rounding can give 3.9999999999999996 for 4

    def __call__(self, state: ServerState, layout: Layout) -> ServerState:
        """Returns the server's state with the active components of the next round."""
        round = self.position(state)
        budgets = {name: self.budget(round, layer.rank) for name, layer in layout.layers.items()}
        if self.reversed:
            return pruning.grow(state, budgets)
        if sum(map(len, state.active.values())) <= sum(budgets.values()):
            return state
        cut = pruning.svd if self.by == "svd" else pruning.by_score
        return cut(state, layout, budgets, self.allocation)

    def position(self, state: ServerState) -> int:
        """Returns the round of the budget's curve whose budget applies to the next round."""
        assert self.rounds is not None, "build fills in the run's"
        return min(state.rounds + 1, self.rounds)

    def _phases(self) -> tuple[int, int]:
        """Returns the last round of the heating and the number of cooling rounds.

        If the run is too short for heating and cooling, settings that are shares of all rounds are reduced.
        Integers are never reduced.
        """
        rounds, first = self.rounds or 1, self.initiating or 0
        heat, cool = (to_rounds(f"schedule.{key}", getattr(self, key), rounds) for key in ("heat", "cool"))
        if isinstance(self.heat, float):
            heat = min(max(heat, 1), rounds - first)
        cool = max(0, min(cool, rounds - first - heat)) if isinstance(self.cool, float) else cool
        if not 1 <= first + heat <= rounds - cool:
            allowed = f"at least one round before the first cut, and at most the run's {rounds} in all"
            why = f"{first} initiating, {heat} heating, {cool} cooling"
            raise InputError.of("schedule.heat", self.heat, allowed, why)
        return first + heat, cool


@dataclasses.dataclass(frozen=True)
class Stalling(Annealed):
    """Annealed rank budget whose annealing ends when the validation loss stalls. This is ours, not SA-FedLoRA's.

        s = first round that ends `patience` evaluations in a row without a loss below the best one minus min_delta
        b(t) = Annealed's b(t)                                   t <= s + 1
        b(t) = b(s + 1) with then=hold, or b_T with then=cool    t > s + 1

    The evaluation after the last round of heating is the first one that counts. The server cuts before the global model
    of a round is evaluated, so that b(t + 1) depends on the evaluations up to round t - 1. If the module logs no loss,
    its score is watched.

    Attributes:
        patience: Number of evaluations in a row without a better loss after which the annealing ends.
        min_delta: A loss counts as better only if it is below the best one by more than this number.
        then: ``hold``: the budget stays as it is. ``cool``: the budget falls to b_T at once.
    """

    patience: int = 2
    min_delta: float = 0.0
    then: str = "hold"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.patience < 1:
            raise InputError.of("schedule.patience", self.patience, "an integer >= 1")
        if not 0 <= self.min_delta < math.inf:
            raise InputError.of("schedule.min_delta", self.min_delta, "a number >= 0")
        if self.then not in ENDS:
            raise InputError.of("schedule.then", self.then, ENDS)

    @property
    def reads_validation(self) -> bool:
        """Always True."""
        return True

    def validated(self, metrics: Mapping[str, float]) -> float | None:
        """Returns the loss of the global model, or its score with the sign with which lower is better."""
        figures = formatting.between(metrics, "round/")
        name = formatting.loss(figures) or formatting.score(figures)
        if name is None:
            return None
        value = figures[name] if formatting.lower_is_better(name) else -figures[name]
        return math.inf if math.isnan(value) else value

    def check_layout(self, recipe: Recipe, layout: Layout) -> None:
        """Refuses a recipe without a global model, which has no validation loss.

        Raises:
            InputError: Clients train private tensors or keep private buffers, or see :meth:`Part.check_layout`.
        """
        super().check_layout(recipe, layout)
        plan = recipe.plan(recipe.plan.initiating)
        if set(plan.train) & set(plan.private) or not recipe.buffers.has_global(recipe, layout):
            raise self.clash(recipe.plan, "clients keep what they train, and no global model is evaluated", "annealed")

    def position(self, state: ServerState) -> int:
        """Returns the round of the budget's curve whose budget applies to the next round."""
        round, stalled = super().position(state), self.stalled(state.validation)
        if stalled is None or round <= stalled + 1:
            return round
        return stalled + 1 if self.then == "hold" else self.rounds or round

    def stalled(self, validation: Mapping[int, float]) -> int | None:
        """Returns the round s whose evaluation ends the annealing, or None if there is none so far.

        Args:
            validation: Number of a round -> its validation loss.
        """
        best, since = math.inf, 0
        for round, loss in sorted(validation.items()):
            if round < (self.heating_end or 0):
                continue
            better = loss < best - self.min_delta
            best, since = (loss, 0) if better else (best, since + 1)
            if since >= self.patience:
                return round
        return None
