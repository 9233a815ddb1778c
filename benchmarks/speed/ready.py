"""How long many clients take to be ready: ``flt.partition`` and ``flt.fit`` up to the first round, without imports.

.venv/bin/python -m benchmarks.speed.ready WORKLOAD FOLDER CLIENTS

Prints the seconds, and ends before a round begins.
"""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

import numpy as np
import torch
from benchmarks.speed import ours, plain, workload
from torch import Tensor
from torch.utils.data import Dataset

import flt
from flt.server.callback import FedCallback
from flt.server.federator import Federator

EACH = 10
"""Examples of a client."""


class Synthetic(Dataset):
    """Examples that are drawn when they are asked for.

    Args:
        size: How many.
        length: Tokens of each.
    """

    def __init__(self, size: int, length: int) -> None:
        self.size, self.length = size, length

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, i: int) -> dict[str, Tensor]:
        drawn = torch.as_tensor(np.random.default_rng(i).integers(1, 1000, self.length))
        return {"input_ids": drawn, "attention_mask": torch.ones_like(drawn), "labels": drawn[0] % 4}


class Ready(FedCallback):
    """Prints how long it took, and ends the process: a run without rounds would still be exported."""

    def __init__(self, began: float) -> None:
        self.began = began

    def on_fit_start(self, federator: Federator) -> None:
        """Called when the first round may begin."""
        print(time.perf_counter() - self.began, flush=True)
        os._exit(0)


def main(source: Path, folder: Path, clients: int) -> None:
    """Deals the examples and makes the run ready."""
    given = workload.load(source)
    module = ours.module(given)
    began = time.perf_counter()
    dealt = flt.partition(Synthetic(EACH * clients, given.size.length), by=None, clients=clients)
    overrides = [f"root={folder}", "threads=1", "cohort.size=10", "eval.client_examples=0"]
    validation = Synthetic(100, given.size.length)
    flt.fit(
        module, dealt, "fedit", head=plain.HEAD, validation=validation, callbacks=[Ready(began)], progress=False,
        overrides=[*overrides, f"adapter.rank={given.size.rank}"],
    )  # fmt: skip


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]))
