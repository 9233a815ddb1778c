"""Measures what a bounded memory of FL-TAC loses against a memory of all changes: writes docs/fl_tac_memory.md.

    FLT_DATA=<folder of data sets> .venv/bin/python -m benchmarks.pages.fl_tac_memory

A run for each seed keeps all changes. Its updates are then clustered again with other memories, so that nothing but the
memory differs.
"""

from __future__ import annotations

import dataclasses
import platform
import sys
import tempfile
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path

import numpy as np
from scipy.spatial.distance import pdist
from scipy.stats import pearsonr

from flt.algorithm.base import GroupingPart
from flt.algorithm.grouping.base import Clustering
from flt.algorithm.view import View
from flt.callbacks.clusters import clustering_accuracy
from flt.protocol.messages import JobId, Update
from flt.protocol.state import ServerState
from flt.run.resume import configure
from flt.run.run import Run
from flt.run.workload import federation
from flt.server.callback import FedCallback
from flt.server.federator import Federator

PAGE = Path(__file__).parents[2] / "docs" / "fl_tac_memory.md"
PACKAGES = ("torch", "lightning", "scikit-learn", "numpy", "scipy")
SEEDS = (0, 1, 2)
ROUNDS = 8
COMMON = ["algo=fl_tac_memory", "data=digits_two", "model=embedded", "clients=10", f"rounds={ROUNDS}", "local.steps=20",
          "adapter.rank=4", "adapter.alpha=8"]  # fmt: skip
FULL = {"memory": "side_by_side", "memory_rounds": ROUNDS, "memory_width": None}
MEMORIES = {
    "all changes side by side": FULL,
    **{f"projected to {width}": {"memory_rounds": None, "memory_width": width} for width in (4096, 1024, 256, 64)},
    "the last 4 rounds": {"memory_rounds": 4},
    "the last 2 rounds": {"memory_rounds": 2},
    "the round alone": {"memory_rounds": 1},
    "the last 4 rounds, projected to 256 each": {"memory_rounds": 4, "memory_width": 256},
    "sum of the changes (`fl_tac_unlocked`)": {"memory": True, "memory_rounds": None},
}
"""Description -> settings that differ from those of the full memory."""
Round = tuple[View, list[Update]]


class Recorder(FedCallback):
    """Keeps the clustering of a run, and the view and the updates of each round."""

    def __init__(self) -> None:
        self.grouping: GroupingPart | None = None
        self.rounds: list[Round] = []
        self._before: ServerState | None = None

    def on_round_start(self, federator: Federator) -> None:
        """Remembers the state before the round."""
        self._before = federator.state

    def on_round_end(self, federator: Federator) -> None:
        """Keeps the round."""
        assert self._before is not None
        self.grouping = federator.server.recipe.grouping
        self.rounds.append((federator.server.view(self._before), list(federator.updates)))


@dataclasses.dataclass(frozen=True)
class Recorded:
    """A run with the full memory.

    Attributes:
        rounds: View and updates of each round.
        grouping: Clustering of the run.
        tasks: Job -> its task.
    """

    rounds: list[Round]
    grouping: Clustering
    tasks: dict[JobId, str]


@dataclasses.dataclass(frozen=True)
class Measured:
    """What one memory gives on the recorded updates of a run: a value for each round, and numbers kept of a job."""

    accuracy: list[float]
    distances: list[np.ndarray]
    kept: int


def recorded(overrides: Sequence[str]) -> Recorded:
    """Trains a run with the full memory."""
    with tempfile.TemporaryDirectory() as root:
        cfg = configure([*overrides, f"root={root}", "threads=1"])
        made, recorder = federation(cfg), Recorder()
        Run(cfg, made, own=[recorder], show=False)()
    assert isinstance(recorder.grouping, Clustering)
    return Recorded(recorder.rounds, recorder.grouping, made.tasks())


def measured(run: Recorded, **settings: object) -> Measured:
    """Clusters the recorded updates of a run with another memory."""
    grouping = dataclasses.replace(run.grouping, **{**FULL, **settings})  # type: ignore[arg-type]  # checked by it
    remembered, accuracy, distances = {}, [], []
    for view, updates in run.rounds:
        seen = dataclasses.replace(view, state=dataclasses.replace(view.state, directions=remembered))
        members = grouping(seen, updates).members
        remembered = {**remembered, **grouping(seen, updates).directions}
        assigned = {update.job: gid for gid, its in members.items() for update in its}
        accuracy.append(clustering_accuracy(dataclasses.replace(view.state, assignment=assigned), run.tasks))
        distances.append(pdist(grouping.describe(seen, updates).astype(np.float64)))
    return Measured(accuracy, distances, max(len(vector) for vector in remembered.values()))


def row(name: str, found: Sequence[Measured], full: Sequence[Measured]) -> str:
    """Returns the table's line of one memory, from the runs of all seeds."""
    all_rounds, last = np.mean([one.accuracy for one in found]), np.mean([one.accuracy[-1] for one in found])
    least = np.min([one.accuracy for one in found])
    alike = [pearsonr(a, b).statistic for one, other in zip(found, full, strict=True)
             for a, b in zip(one.distances[1:], other.distances[1:], strict=True)]  # fmt: skip
    figures = f"{all_rounds:.3f} | {last:.3f} | {least:.3f} | {np.mean(alike):.3f} | {np.min(alike):.3f}"
    return f"| {name} | {found[0].kept:,} | {figures} |"


def page(rows: Sequence[str], jobs: Sequence[int]) -> str:
    """Returns the page."""
    packages = ", ".join(f"{name} {version(name).partition('+')[0]}" for name in PACKAGES)
    return f"""# What a bounded memory of FL-TAC loses

`algo=fl_tac_memory` clusters jobs by their changes in all rounds, side by side. All of these changes would be a vector
that grows with every round. `grouping.memory_width` bounds it by a random projection to a fixed width, and
`grouping.memory_rounds` by forgetting all but the last rounds
([algorithm/grouping/memory.py](../src/flt/algorithm/grouping/memory.py)).

The digits with two label sets are trained for {ROUNDS} rounds with all changes kept, with the settings of
[this table](results/fl_tac_digits.md) and the seeds {", ".join(map(str, SEEDS))}, which give {min(jobs)} to
{max(jobs)} jobs. The updates are then clustered again with other memories, so that nothing but the memory differs.

- *numbers*: numbers that the server keeps of a job after the last round.
- *right*: share of jobs in the cluster of their task, over all rounds, in the last round, and in the worst round.
- *distances*: correlation of the distances between jobs with those by all changes, from round 2 on, mean and least.

| memory | numbers | right | last round | worst round | distances | least |
|---|---:|---:|---:|---:|---:|---:|
{chr(10).join(rows)}

Made by `.venv/bin/python -m benchmarks.pages.fl_tac_memory`, one thread of an {platform.machine()} CPU, Python
{platform.python_version()}, {packages}.
"""


def main() -> int:
    """Trains, clusters, and writes the page."""
    settings = [f"grouping.{key}={'null' if value is None else value}" for key, value in FULL.items()]
    runs = [recorded([*COMMON, *settings, f"seed={seed}"]) for seed in SEEDS]
    found = {name: [measured(run, **memory) for run in runs] for name, memory in MEMORIES.items()}
    full = found[next(iter(MEMORIES))]
    PAGE.write_text(page([row(name, its, full) for name, its in found.items()], [len(run.tasks) for run in runs]))
    print(f"wrote {PAGE.name}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
