"""What fresh processes take: to the end of round 1 with all imports, and with many clients beside few."""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys
from pathlib import Path

from benchmarks.speed import cases, pairing, workload
from benchmarks.speed.cases import Verdict
from benchmarks.speed.contestant import AS_INSTALLED, LIMIT, ONE_THREAD, ContestantError, MissingError, Round

MANY, FEW = 10_000, 10
READY = 100_000
"""Clients of which none has been drawn."""
LARGE = workload.Size(clients=1000, cohort=1000, steps=1, batch=4, examples=4, length=16, rounds=pairing.CHECKED)
"""A cohort whose updates would take half as much memory again as the process, were they kept."""


def first_round(source: Path, folder: Path, pairs: int) -> Verdict:
    """From the start of the process to the end of round 1: ``flt.fit`` as it is, in two processes, and Flower, in turn.

    Args:
        source: The workload.
        folder: Of logs and weights.
        pairs: How many times.
    """
    taken: dict[str, list[Round]] = {"start": [], "flower": []}
    difference = 0.0
    for i in range(pairs):
        weights = []
        for name in sorted(taken, reverse=i % 2 == 1):
            its = cases.contestant(name, source, folder, ["--whole"], "two-forked" if name == "start" else "")
            try:
                taken[name].append(its.first())
            except (OSError, MissingError, ContestantError) as error:
                return Verdict(*_missing(cases.FIRST_ROUND, f"{name}: {error}"))
            finally:
                its.stop()
            weights.append(taken[name][-1].weights)
        difference = max(difference, pairing.furthest(*weights))
    name, bound = cases.FIRST_ROUND
    seconds = pairing.Timed(taken, {})
    said = f"{seconds.median('start', 'wall'):.1f} s against {seconds.median('flower', 'wall'):.1f} s"
    return Verdict(name, seconds.ratio("start", "flower", "wall"), bound, difference, said)


def many_clients(folder: Path, rounds: int) -> list[Verdict]:
    """A cohort of ten of 10,000 clients beside one of ten: the time of a round, and the peak of the memory.

    Args:
        folder: Of workloads, logs and weights.
        rounds: Timed ones.
    """
    why: dict[str, str] = {}
    sizes = {clients: workload.Size(clients=clients, rounds=rounds + pairing.CHECKED) for clients in (MANY, FEW)}
    made = {clients: workload.make(folder / f"clients-{clients}", size) for clients, size in sizes.items()}
    ours = [cases.contestant(f"of-{clients}", path, folder, engine="serial") for clients, path in made.items()]
    loops = [cases.contestant(f"loop-{clients}", its, folder, engine=cases.REFERENCE) for clients, its in made.items()]
    with cases.started([*loops, *ours], why):
        if why:
            said = "; ".join(why.values())
            return [Verdict(*_missing(its, said)) for its in (cases.ROUND_OF_MANY, cases.MEMORY_OF_MANY)]
        difference = 0.0
        for loop, its in zip(loops, ours, strict=True):  # both, so that both have as many rounds behind them
            difference = max(difference, pairing.differences({loop.name: loop, its.name: its}, loop.name)[its.name])
            loop.stop()
        timed = pairing.Timed(pairing.run({its.name: its for its in ours}, rounds), {})
    one, other = f"of-{MANY}", f"of-{FEW}"
    time = timed.ratio(one, other, "wall")
    said = f"{timed.median(one, 'wall'):.2f} s against {timed.median(other, 'wall'):.2f} s"
    memory = _memory(cases.MEMORY_OF_MANY, *(timed.rounds[name][-1].peak_mb for name in (one, other)), difference)
    return [Verdict(cases.ROUND_OF_MANY[0], time, cases.ROUND_OF_MANY[1], difference, said), memory]


def large_cohort(folder: Path) -> Verdict:
    """The peak of the memory of a cohort of a thousand beside one of ten, of the same clients.

    Args:
        folder: Of workloads, logs and weights.
    """
    sizes = {at: dataclasses.replace(LARGE, cohort=at) for at in (LARGE.cohort, FEW)}
    peaks: dict[int, float] = {}
    difference = 0.0
    for at, size in sizes.items():
        source, why = workload.make(folder / f"cohort-{at}", size), dict[str, str]()
        ours = cases.contestant(f"cohort-{at}", source, folder, engine="serial")
        loop = cases.contestant(f"loop-{at}", source, folder, engine=cases.REFERENCE)
        with cases.started([loop, ours], why) as there:
            if why:
                return Verdict(*_missing(cases.COHORT, "; ".join(why.values())))
            difference = max(difference, pairing.differences(there, loop.name)[ours.name])
            peaks[at] = ours.peak_mb
    return _memory(cases.COHORT, peaks[LARGE.cohort], peaks[FEW], difference)


def ready(folder: Path) -> Verdict:
    """What 100,000 clients take from the end of the imports until the first round may begin, as a share of the bound.

    Args:
        folder: Of the workload and the run.
    """
    source = workload.make(folder / "ready", workload.TINY)
    command = [sys.executable, "-m", "benchmarks.speed.ready", str(source), str(folder / "runs"), str(READY)]
    environment = {**os.environ, **ONE_THREAD, **AS_INSTALLED, "PYTHONPATH": str(cases.ROOT)}
    ran = subprocess.run(command, env=environment, text=True, capture_output=True, timeout=LIMIT, check=False)
    if ran.returncode:
        return Verdict(*_missing(cases.READY, ran.stderr.strip().rpartition("\n")[2]))
    seconds = float(ran.stdout.split()[-1])
    return Verdict(cases.READY[0], _once(seconds / 10), cases.READY[1], None, f"{seconds:.1f} s")


def _memory(of: tuple[str, float], one: float, other: float, difference: float) -> Verdict:
    return Verdict(of[0], _once(one / other), of[1], difference, f"{one:.0f} MB against {other:.0f} MB")


def _once(value: float) -> pairing.Ratio:
    return pairing.Ratio(value, value, value, 1, 0, False)


def _missing(of: tuple[str, float], why: str) -> tuple[str, None, float, None, str]:
    return of[0], None, of[1], None, why
