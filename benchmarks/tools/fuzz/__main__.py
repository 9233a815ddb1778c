"""The command line of the fuzzers."""

from __future__ import annotations

import argparse
import logging
import resource
import sys
from collections.abc import Sequence

import torch
from benchmarks.tools.fuzz import checkpoints, data_files, exports, hostile, messages, overrides
from benchmarks.tools.fuzz.running import Make, fuzz

MODULES = (overrides, messages, checkpoints, data_files, exports, hostile)
FUZZERS: dict[str, Make] = {kind: make for module in MODULES for kind, make in module.FUZZERS.items()}
GB = 1 << 30


def main(arguments: Sequence[str]) -> int:
    """Tries examples of all kinds in turn; returns 1 if any of them gave something else than an InputError."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.tools.fuzz")
    parser.add_argument("--minutes", type=float, default=5, help="for all kinds together (default %(default)s)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", default=",".join(FUZZERS), help="kinds, of %(default)s")
    parser.add_argument("--examples", type=int, help="largest number of examples of each kind")
    parser.add_argument("--first", type=int, default=0, help="number of the first example")
    parser.add_argument("--memory", type=int, default=12, help="GB of address space (default %(default)s)")
    asked = parser.parse_args(arguments)
    kinds = asked.only.split(",")
    if unknown := set(kinds) - set(FUZZERS):
        parser.error(f"{', '.join(sorted(unknown))}: allowed are {', '.join(FUZZERS)}")
    resource.setrlimit(resource.RLIMIT_AS, (asked.memory * GB, asked.memory * GB))
    logging.disable(logging.CRITICAL)
    torch.set_num_threads(1)
    found = 0
    for kind in kinds:
        seconds = asked.minutes * 60 / len(kinds)
        tally = fuzz(kind, FUZZERS[kind], asked.seed, seconds, asked.examples, asked.first)
        said = f"{tally.tried:>7} tried, {tally.accepted:>6} accepted, {len(tally.findings)} found"
        print(f"{kind:<12} seed {asked.seed}: {said}", flush=True)
        for finding in tally.findings.values():
            print(f"  {finding}", flush=True)
        found += len(tally.findings)
    return int(found > 0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
