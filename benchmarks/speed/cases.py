"""Who takes part, and which ratios are bounded."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TypeVar

from benchmarks.speed.contestant import Contestant, ContestantError, MissingError
from benchmarks.speed.pairing import TOLERANCE, Ratio, Timed, differences

T = TypeVar("T")
ROOT = Path(__file__).parents[2]
REFERENCE, EXACT = "hand", "exact"
"""The hand-written loop, and the same in float64: how far apart two contestants may be."""
OURS = {
    "serial": ["--engine", "serial"],
    "batched": ["--engine", "batched"],
    "two": ["--engine", "distributed", "--set", "devices=2"],
    "two-forked": ["--engine", "distributed", "--set", "devices=2", "--set", "engine.strategy=ddp_fork"],
    "two-batched": ["--engine", "distributed", "--set", "devices=2", "--set", "engine.inside=batched"],
}
"""flt's engines; ``two``: the serial one in two processes, ``two-forked``: in copies of one. One thread in each."""
PEERS = {"flower": "benchmarks.speed.flower", "pfl": "benchmarks.speed.peer_pfl"}
"""In the order of the tables; each in .bench/<name>, its own environment."""
ONE_PROCESS = ("serial", "batched")
TWO_PROCESSES = ("two", "two-batched")
IN_TURN = {
    "tiny": (
        ((REFERENCE, *ONE_PROCESS), 11), ((*ONE_PROCESS, "pfl"), 5),
        (("serial", "two"), 9), ((*TWO_PROCESSES, "flower"), 9),
    ),
    "minilm": (((REFERENCE, *ONE_PROCESS, "pfl"), 5), (("serial", "two"), 7), ((*TWO_PROCESSES, "flower"), 7)),
}  # fmt: skip
"""Size -> who runs in turn, and how many rounds: few at once, since a machine's speed changes within a minute.

A contestant is started for the first turn that names it.
"""


@dataclasses.dataclass(frozen=True)
class Target:
    """A bounded ratio of two contestants.

    Attributes:
        name: As it is printed.
        size: Of the workload.
        ones: The numerator: the fastest of these.
        other: The denominator.
        measure: ``cpu`` or ``wall``.
        bound: Of the ratio.
    """

    name: str
    size: str
    ones: tuple[str, ...]
    other: str
    measure: str
    bound: float


TARGETS = (
    Target("serial/loop tiny cpu", "tiny", ("serial",), REFERENCE, "cpu", 1.08),
    Target("batched/loop tiny cpu", "tiny", ("batched",), REFERENCE, "cpu", 0.95),
    Target("two/one tiny wall", "tiny", ("two",), "serial", "wall", 0.56),
    Target("two/one minilm wall", "minilm", ("two",), "serial", "wall", 0.56),
    Target("best/flower tiny wall", "tiny", TWO_PROCESSES, "flower", "wall", 0.85),
    Target("best/flower minilm wall", "minilm", TWO_PROCESSES, "flower", "wall", 0.85),
    Target("best/pfl tiny wall", "tiny", ONE_PROCESS, "pfl", "wall", 0.90),
    Target("best/pfl minilm wall", "minilm", ONE_PROCESS, "pfl", "wall", 0.90),
)
FIRST_ROUND = ("start/flower tiny wall", 0.75)
READY, COHORT = ("100000 ready, of 10 s", 1.00), ("1000/10 cohort memory", 1.10)
ROUND_OF_MANY, MEMORY_OF_MANY = ("10000/10 round wall", 1.10), ("10000/10 peak memory", 1.10)


@dataclasses.dataclass(frozen=True)
class Verdict:
    """One line of the table.

    Attributes:
        name: Of the ratio.
        ratio: None where a contestant is missing.
        bound: Of the ratio.
        difference: Largest difference of the weights; None where none were compared.
        said: Why it is missing, or which engine was the fastest.
        allowed: How large the difference may be.
    """

    name: str
    ratio: Ratio | None
    bound: float
    difference: float | None = None
    said: str = ""
    allowed: float = TOLERANCE

    @property
    def wrong(self) -> bool:
        """Whether the weights differ: then the times compare nothing."""
        return self.difference is not None and not self.difference < self.allowed

    @property
    def word(self) -> str:
        """``ok``, ``OVER``, ``WRONG`` or ``missing``."""
        if self.wrong:
            return "WRONG"
        if self.ratio is None:
            return "missing"
        return "ok" if self.ratio.value <= self.bound else "OVER"

    def __str__(self) -> str:
        weights = "-" if self.difference is None else f"{self.difference:.1e}"
        if self.ratio is None:
            return f"{self.name:<24} {'-':>6} {self.bound:.2f} {self.word:<7} {weights:>7}  {self.said}"
        ratio = self.ratio
        dropped = f"{ratio.dropped} dropped" if not ratio.disturbed else "disturbed"
        spread = f"{ratio.low:.3f} to {ratio.high:.3f}, {ratio.pairs} pairs, {dropped}"
        figures = f"{ratio.value:6.3f} {self.bound:.2f} {self.word:<7} {weights:>7}"
        return f"{self.name:<24} {figures}  {self.said} ({spread})"


def verdict(target: Target, turns: Sequence[tuple[Sequence[str], Timed]], why: dict[str, str]) -> Verdict:
    """The line of a target.

    Args:
        target: Which.
        turns: Of the size: who ran in turn, and their rounds.
        why: Contestant -> why it is missing.
    """
    timed = next(its for names, its in turns if {*target.ones, target.other} <= set(names))
    one = timed.fastest(target.ones)
    absent = [name for name in (*target.ones, target.other) if name not in timed.rounds]
    if one is None or target.other in absent:
        said = "; ".join(dict.fromkeys(f"{name}: {why.get(name, 'not asked')}" for name in absent))
        return Verdict(target.name, None, target.bound, None, said)
    difference = max(timed.differences[one], timed.differences[target.other])
    said = f"{one}, without {', '.join(absent)}" if absent else one
    ratio = timed.ratio(one, target.other, target.measure)
    return Verdict(target.name, ratio, target.bound, difference, said, timed.allowed)


def contestant(name: str, workload: Path, folder: Path, extra: Sequence[str] = (), engine: str = "") -> Contestant:
    """A contestant: the reference, a peer, or flt with one of its engines, perhaps under another name.

    Args:
        name: In the tables; names its files.
        workload: The workload's folder.
        folder: Where weights and logs go.
        extra: Arguments of flt's.
        engine: flt's engine, where the name isn't one.
    """
    own, where = engine or name, [str(workload), str(folder / name)]
    if own in PEERS:
        command = [str(ROOT / ".bench" / own / "bin" / "python"), "-m", PEERS[own], *where]
    elif own in (REFERENCE, EXACT):
        exact = ["--float64"] if own == EXACT else []
        command = [sys.executable, "-m", "benchmarks.speed.hand", *where, *exact]
    else:
        command = [sys.executable, "-m", "benchmarks.speed.ours", *where, *OURS[own], *extra]
    folder.mkdir(parents=True, exist_ok=True)
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    pinned = own in (REFERENCE, *ONE_PROCESS, "pfl")
    return Contestant(name, command, folder / f"{name}.log", {"PYTHONPATH": path}, pinned)


def rounding(workload: Path, folder: Path) -> float:
    """How far the loop's weights are from those of the same loop in float64; 0 where that doesn't run.

    Args:
        workload: The workload's folder.
        folder: Where weights and logs go.
    """
    with started([contestant(name, workload, folder) for name in (REFERENCE, EXACT)], {}) as there:
        return differences(there, REFERENCE)[EXACT] if len(there) == 2 else 0.0


def going(
    contestants: dict[str, Contestant], why: dict[str, str], work: Callable[[dict[str, Contestant]], T]
) -> T | None:
    """What comes of work with contestants; None where one of them ends meanwhile.

    Args:
        contestants: That are ready.
        why: Gets the reason, for all of them.
        work: To do.
    """
    try:
        return work(contestants)
    except (OSError, ContestantError) as error:
        why |= dict.fromkeys(contestants, str(error))
        return None


@contextlib.contextmanager
def started(contestants: Sequence[Contestant], why: dict[str, str]) -> Iterator[dict[str, Contestant]]:
    """Those that are ready, by name, one started after the other; ends them afterwards.

    Args:
        contestants: To start.
        why: Gets the reasons of those that can't take part.
    """
    there: dict[str, Contestant] = {}
    try:
        for its in contestants:
            try:
                its.start()
                there[its.name] = its
                its.ready()
            except (OSError, MissingError, ContestantError) as error:
                why[its.name] = str(error) if isinstance(error, ContestantError) else f"missing: {error}"
                if its.name in there:
                    there.pop(its.name).stop()
        yield there
    finally:
        for its in there.values():
            its.stop()
