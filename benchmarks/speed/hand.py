"""The contestant that one would write by hand: put an adapter in, train it, take it out, average.

.venv/bin/python -m benchmarks.speed.hand WORKLOAD FOLDER

With ``--float64`` it shows what the same training comes to without rounding.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from benchmarks.speed import plain, workload
from benchmarks.speed.protocol import Line


def main(source: Path, folder: Path, exact: bool) -> None:
    """Runs rounds for as long as the coordinator asks for them."""
    line = Line(folder)
    torch.set_num_threads(1)
    given = workload.load(source)
    model, trained = given.model()
    model.to(torch.float64 if exact else torch.float32)
    weights = given.start
    while line.begin():
        updates = []
        for order in given.order[line.rounds]:
            plain.put(trained, weights)
            plain.train(model, trained, given.data, order, given.hyper)
            updates.append({name: parameter.detach().clone() for name, parameter in trained.items()})
        weights = plain.mean(updates)
        line.end(weights)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), "--float64" in sys.argv[3:])
