"""Times flt beside a hand-written loop, Flower and pfl-research, and prints each bounded ratio.

    make bench
    make bench BENCHARGS="tiny"               # some parts: tiny minilm start many curves limits gpu
    make bench BENCHARGS="--publish"          # and writes docs/performance.md with its picture and its data

A line is: name, ratio, bound, ok or OVER, largest difference of the weights, and what the ratio comes from. Exits with
1 only where the weights differ, since nothing was compared then.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import functools
import shutil
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.speed import cases, curves, gpu, limits, page, pairing, whole, workload
from benchmarks.speed.contestant import Contestant

PARTS = ("tiny", "minilm", "start", "many", "curves", "limits", "gpu")
SIZES = {"tiny": workload.TINY, "minilm": workload.MINILM_SIZE}
"""Part -> size."""
STARTS, MANY_ROUNDS, CURVE_ROUNDS = 4, 4, 2


@dataclasses.dataclass
class Bench:
    """One run of the benchmark.

    Attributes:
        folder: Of everything that it writes.
        found: What ``page`` publishes.
    """

    folder: Path
    found: dict[str, Any] = dataclasses.field(default_factory=lambda: {"lines": {}})
    wrong: bool = False

    def size(self, name: str) -> None:
        """All contestants on one size."""
        if why := workload.available(name):
            print(f"{name}: skipped, {why}", flush=True)
            return
        source, reasons, turns = workload.make(self.folder / name, SIZES[name]), dict[str, str](), []
        there, expected = dict[str, Contestant](), list[str]()
        differences = {cases.REFERENCE: 0.0}
        rounding = cases.rounding(source, self.folder / name)
        with contextlib.ExitStack() as running:
            for names, rounds in cases.IN_TURN[name]:
                new = [its for its in names if its not in {*there, *reasons}]
                made = [cases.contestant(its, source, self.folder / name) for its in new]
                found = running.enter_context(cases.started(made, reasons))
                for own, contestant in found.items():
                    files = cases.going({own: contestant}, reasons, lambda its: pairing.first_rounds(*its.values()))
                    if files:
                        expected = expected or files  # the reference is the first of all
                        differences[own] = pairing.apart(files, expected)
                        there[own] = contestant
                taking_part = {its: there[its] for its in names if its in there}
                ran = cases.going(taking_part, reasons, functools.partial(pairing.run, rounds=rounds)) or {}
                turns.append((names, pairing.Timed(ran, differences, pairing.allowed(rounding))))
        for target in (its for its in cases.TARGETS if its.size == name):
            self.say(cases.verdict(target, turns, reasons))
        rows = {
            its: [its, timed.median(its, "wall"), timed.median(its, "cpu"), differences[its]]
            for _, timed in turns
            for its in timed.rounds
        }
        self.found[name] = [*rows.values(), [cases.EXACT, None, None, rounding]]

    def start(self) -> None:
        """Fresh processes to the end of round 1."""
        self.say(whole.first_round(workload.make(self.folder / "first", workload.TINY), self.folder / "first", STARTS))

    def many(self) -> None:
        """Many clients beside few, a large cohort beside a small one, and very many that wait."""
        for its in whole.many_clients(self.folder / "many", MANY_ROUNDS):
            self.say(its)
        self.say(whole.large_cohort(self.folder / "many"))
        self.say(whole.ready(self.folder / "many"))

    def curves(self) -> None:
        """Cost against cohort, clients, rank and processes."""
        self.found["curves"] = []
        for point in curves.measure(self.folder / "curves", CURVE_ROUNDS):
            self.found["curves"].append(dataclasses.asdict(point))
            self.wrong |= not point.difference < pairing.TOLERANCE
            print(
                f"{point.curve} {point.at}, {point.name}: {point.wall:.2f} s wall, {point.cpu:.2f} s CPU, "
                f"{point.peak_mb:.0f} MB, weights {point.difference:.1e}",
                flush=True,
            )

    def limits(self) -> None:
        """What a step of each size runs into."""
        self.found["limits"] = {}
        for name, size in SIZES.items():
            if not workload.available(name):
                source = workload.make(self.folder / f"limits-{name}", size)
                self.found["limits"][name] = shares = limits.in_a_process(source)
                print(f"{name} is limited by: {limits.sentence(shares)}", flush=True)

    def gpu(self) -> None:
        """BatchedEngine beside serial on a GPU, where there is one."""
        self.found["gpu"] = gpu.measure(self.folder / "gpu")

    def say(self, its: cases.Verdict) -> None:
        """Prints and keeps a line."""
        print(its, flush=True)
        self.found["lines"][its.name] = str(its)
        self.wrong |= its.wrong


def main(arguments: Sequence[str]) -> int:
    """Runs the parts that were asked for."""
    parser = argparse.ArgumentParser(prog="make bench")
    parser.add_argument("parts", nargs="*", metavar="part", help=f"of {', '.join(PARTS)}; all without")
    parser.add_argument("--publish", action="store_true", help="write docs/performance.md and what belongs to it")
    asked = parser.parse_args(arguments)
    if unknown := set(asked.parts) - set(PARTS):
        parser.error(f"{', '.join(sorted(unknown))}: allowed are {', '.join(PARTS)}")
    began, folder = time.perf_counter(), Path(tempfile.mkdtemp(prefix="flt-"))
    bench = Bench(folder)
    print(f"{'name':<24} {'ratio':>6} bound         weights", flush=True)
    try:
        for part in asked.parts or PARTS:
            since = time.perf_counter()
            if part in SIZES:
                bench.size(part)
            else:
                getattr(bench, part)()
            print(f"{part}: {(time.perf_counter() - since) / 60:.1f} minutes", flush=True)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    print(f"{(time.perf_counter() - began) / 60:.0f} minutes")
    if asked.publish:
        page.publish(bench.found)
    return int(bench.wrong)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
