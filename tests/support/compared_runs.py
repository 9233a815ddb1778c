"""Folders of runs that were never trained: a configuration of this version, and metrics that are made up."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from flt.callbacks.metrics_csv import text
from flt.run.compose import compose_config

Rows = Sequence[Mapping[str, float]]


@functools.cache
def settings(*overrides: str) -> str:
    return OmegaConf.to_yaml(compose_config(list(overrides)))


def rounds(*accuracies: float, test: float | None = None, sent: float = 1000.0) -> list[dict[str, float]]:
    """Metrics with a validation accuracy for each round."""
    rows: list[dict[str, float]] = [
        {
            "round": n, "round/val_acc": acc, "round/val_loss": 1 - acc, "comm/total_up": sent * n,
            "comm/total_down": 2 * sent * n, "time/total_seconds": 0.5 * n,
            "clients/val_acc": acc - 0.1, "clients/val_acc_worst10": acc - 0.2,
        }
        for n, acc in enumerate(accuracies, start=1)
    ]  # fmt: skip
    if test is not None:
        rows[-1] |= {"test/acc": test, "test/loss": 1 - test}
    return rows


def made_run(root: Path, *overrides: str, rows: Rows | None = None, **changes: Any) -> Path:
    """Writes a run's folder. ``changes`` replace whole sections of the configuration; None removes one."""
    rows = rounds(0.5, 0.7, test=0.75) if rows is None else rows
    told = dict(override.split("=") for override in overrides)
    plain = {"seed": int(told.pop("seed", 0)), "rounds": int(told.pop("rounds", len(rows)))}  # saves composing
    config: Any = OmegaConf.create(settings(*(f"{key}={value}" for key, value in told.items())))
    for key, value in {**plain, **changes}.items():
        if value is None:
            del config[key]
        else:
            config[key] = value
    parent = root / str(config.get("name", "run"))
    folder = parent / f"version_{len(list(parent.glob('version_*')))}"
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(OmegaConf.to_yaml(config))
    (folder / "metrics.csv").write_text(text(rows))
    return folder
