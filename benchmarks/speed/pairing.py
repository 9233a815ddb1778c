"""Paired rounds: all contestants run each round in turn, and ratios are taken within a round, never across."""

from __future__ import annotations

import dataclasses
import math
import random
import statistics
from collections.abc import Mapping, Sequence

from benchmarks.speed.contestant import Contestant, Round
from safetensors.torch import load_file

CHECKED = 2
"""Rounds before the timed ones, after which the weights are compared."""
FEWEST = 3
"""Undisturbed pairs, below which the disturbed ones are used too, and the table says so."""
TOLERANCE = 1e-5
"""Largest difference of two contestants' weights, for each round since they were equal; more only where float32's
rounding alone comes to more."""
ROUNDING = 2
"""A contestant may be this many times as far from the loop as the loop is from itself in float64: two sets of rounding
errors, of which neither is the right one."""


@dataclasses.dataclass(frozen=True)
class Ratio:
    """The median of paired rounds.

    Attributes:
        value: The median.
        low: Least.
        high: Greatest.
        pairs: Of how many pairs.
        dropped: Disturbed pairs that were left out.
        disturbed: Whether too few were undisturbed, so that all were taken.
    """

    value: float
    low: float
    high: float
    pairs: int
    dropped: int
    disturbed: bool


@dataclasses.dataclass
class Timed:
    """What came out of a size.

    Attributes:
        rounds: Contestant -> its timed rounds, in step.
        differences: Contestant -> largest difference of its weights to the reference's in the checked rounds, divided
            by the number of rounds: rounding errors of the first round are in the start of the second.
        allowed: How large they may be.
    """

    rounds: dict[str, list[Round]]
    differences: dict[str, float]
    allowed: float = TOLERANCE

    def ratio(self, one: str, other: str, measure: str) -> Ratio:
        """Of ``wall`` or ``cpu``."""
        return ratio(self.rounds[one], self.rounds[other], measure)

    def median(self, name: str, measure: str) -> float:
        """A contestant's median, in seconds."""
        return statistics.median(getattr(round, measure) for round in self.rounds[name])

    def fastest(self, names: Sequence[str]) -> str | None:
        """The contestant with the least median wall time, of those that ran."""
        return min((n for n in names if n in self.rounds), key=lambda n: self.median(n, "wall"), default=None)


def ratio(ones: Sequence[Round], others: Sequence[Round], measure: str) -> Ratio:
    """The median ratio of paired rounds, without the disturbed pairs."""
    pairs = list(zip(ones, others, strict=True))
    calm = [(one, other) for one, other in pairs if not (one.disturbed or other.disturbed)]
    too_few = len(calm) < FEWEST
    values = [getattr(one, measure) / getattr(other, measure) for one, other in (pairs if too_few else calm)]
    dropped = 0 if too_few else len(pairs) - len(calm)
    return Ratio(statistics.median(values), min(values), max(values), len(values), dropped, too_few)


def allowed(rounding: float) -> float:
    """How far a contestant's weights may be from the loop's.

    Args:
        rounding: How far the loop's are from the same loop's in float64.
    """
    return max(TOLERANCE, ROUNDING * rounding)


def compare(contestants: Mapping[str, Contestant], reference: str, rounds: int) -> Timed:
    """Compares the weights of the first rounds with the reference's, then times rounds of all in turn.

    Args:
        contestants: Those that are ready.
        reference: Whose weights the others are compared with.
        rounds: Timed ones.
    """
    found = differences(contestants, reference)
    return Timed(run(contestants, rounds), found)


def differences(contestants: Mapping[str, Contestant], reference: str) -> dict[str, float]:
    """How far the weights of each contestant's first rounds are from the reference's: ``Timed.differences``."""
    expected = first_rounds(contestants[reference])
    others = {name: first_rounds(its) for name, its in contestants.items() if name != reference}
    return {reference: 0.0, **{name: apart(files, expected) for name, files in others.items()}}


def first_rounds(contestant: Contestant) -> list[str]:
    """Runs the rounds that aren't timed; the files of their weights."""
    return [contestant.round().weights for _ in range(CHECKED)]


def apart(files: Sequence[str], expected: Sequence[str]) -> float:
    """The largest difference of the first rounds' weights, for each round since they were equal."""
    each = zip(files, expected, strict=True)
    return max(furthest(one, other) / number for number, (one, other) in enumerate(each, start=1))


def run(contestants: Mapping[str, Contestant], rounds: int, seed: int = 0) -> dict[str, list[Round]]:
    """Rounds of all in turn, each time in another order.

    Args:
        contestants: Those that are ready.
        rounds: How many.
        seed: Of the orders.
    """
    order, shuffle = list(contestants), random.Random(seed)
    timed: dict[str, list[Round]] = {name: [] for name in contestants}
    for number in range(rounds):
        shuffle.shuffle(order)
        for name in order:
            timed[name].append(contestants[name].round(number))
    return timed


def furthest(one: str, other: str) -> float:
    """The largest difference between the entries of two files of weights; infinite where they hold other tensors."""
    ours, theirs = load_file(one), load_file(other)
    if {name: t.shape for name, t in ours.items()} != {name: t.shape for name, t in theirs.items()}:
        return float("inf")
    found = [float((tensor - theirs[name]).abs().max()) for name, tensor in ours.items()]
    return max(found) if all(map(math.isfinite, found)) else float("inf")
