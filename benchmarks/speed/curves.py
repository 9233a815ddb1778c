"""Cost against cohort, clients, rank and processes: one changes, the rest is the tiny size."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from pathlib import Path

from benchmarks.speed import cases, pairing, workload

STEPS = 2
"""Fewer than elsewhere: what a client costs beside its steps is what these curves are about."""
ENGINES = (cases.REFERENCE, *cases.ONE_PROCESS)
CURVES = {"cohort": (10, 40), "clients": (10, 10_000), "rank": (2, 8, 32), "processes": (1, 2)}
IN_TWO = {"two": "serial", "two-batched": "batched"}
"""Contestant of two processes -> the engine in each of them."""


@dataclasses.dataclass(frozen=True)
class Point:
    """One contestant at one place of a curve.

    Attributes:
        curve: What changes.
        at: Its value.
        name: The contestant; of several processes the engine in each.
        wall: Median seconds of a round.
        cpu: Median CPU seconds of a round.
        peak_mb: Largest resident memory, of the first process.
        difference: Largest difference of its weights to the loop's.
    """

    curve: str
    at: int
    name: str
    wall: float
    cpu: float
    peak_mb: float
    difference: float


def sizes(rounds: int) -> Iterator[tuple[str, int, workload.Size]]:
    """Curve, value and size of each place."""
    base = workload.Size(steps=STEPS, rounds=rounds + pairing.CHECKED)
    for at in CURVES["cohort"]:
        yield "cohort", at, dataclasses.replace(base, clients=at, cohort=at)
    for at in CURVES["clients"]:
        yield "clients", at, dataclasses.replace(base, clients=at)
    for at in CURVES["rank"]:
        yield "rank", at, dataclasses.replace(base, rank=at)
    for at in CURVES["processes"]:
        yield "processes", at, base


def measure(folder: Path, rounds: int) -> Iterator[Point]:
    """All points of all curves, as soon as they are there.

    Args:
        folder: Of workloads, logs and weights.
        rounds: Timed ones, at each place.
    """
    done: dict[tuple[workload.Size, bool], list[Point]] = {}  # the curves cross in one place
    for curve, at, size in sizes(rounds):
        two = (curve, at) == ("processes", 2)
        if (size, two) not in done:
            ours = tuple(IN_TWO) if two else cases.ONE_PROCESS
            done[size, two] = list(_measured(folder / f"{curve}-{at}", size, rounds, ours))
        yield from (dataclasses.replace(point, curve=curve, at=at) for point in done[size, two])


def _measured(folder: Path, size: workload.Size, rounds: int, ours: Sequence[str]) -> Iterator[Point]:
    source = workload.make(folder, size)
    contestants = [cases.contestant(name, source, folder) for name in (cases.REFERENCE, *ours)]
    with cases.started(contestants, {}) as there:
        timed = pairing.compare(there, cases.REFERENCE, rounds)
    for name, ran in timed.rounds.items():
        times = timed.median(name, "wall"), timed.median(name, "cpu")
        yield Point("", 0, IN_TWO.get(name, name), *times, ran[-1].peak_mb, timed.differences[name])
