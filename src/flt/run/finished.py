"""Result of a run in memory, apart from its files."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning.pytorch as pl


@dataclasses.dataclass(frozen=True)
class FinishedRun:
    """A run whose rounds are done and whose models are exported. It is the same in all processes of the run.

    Attributes:
        module: The module with the trained weights of the first model, on its original device.
        path: Folder of the run.
        history: Metrics of every round. The last ones include those of the evaluation on the test examples.
        exported: Folder of the exported models.
        algo: Name of the recipe.
        own: Whether the module and the data are those of a caller of ``flt.fit``.
        collate: Function that builds batches. None: torch's default.
    """

    module: pl.LightningModule
    path: Path
    history: list[dict[str, float]]
    exported: Path
    algo: str
    own: bool
    collate: Callable[[list[Any]], Any] | None
