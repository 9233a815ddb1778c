"""The command ``flt sweep``, which trains a run for every combination of comma-separated values."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from typing import TYPE_CHECKING

from flt.core.errors import InputError
from flt.core.imports import import_without_gc

if TYPE_CHECKING:
    from flt.run.schema import TrainConfig


def run(overrides: Sequence[str]) -> int:
    """Checks every combination, and then trains one run after another.

    Raises:
        InputError: A key or value is wrong in one of the combinations.
    """
    from flt.run.compose import compose_config, expand

    combinations = expand(overrides)
    for combination in combinations:
        compose_config(combination)  # checks the names of keys and choices before torch is imported
    import_without_gc("flt.api", freeze=True)
    from flt.run.resume import configure

    configurations = [configure(combination) for combination in combinations]
    _check_engines(configurations)
    _train(combinations, configurations)
    return 0


def _check_engines(configurations: Sequence[TrainConfig]) -> None:
    """Checks that all runs have the same engine and number of devices, if an engine launches several processes.

    The processes are launched once for the whole sweep. All runs must therefore have the same number of processes.

    Raises:
        InputError: The runs differ in engine or number of devices, and one of the engines launches processes.
    """
    if len({(cfg.engine["name"], cfg.devices) for cfg in configurations}) == 1:
        return
    launching = [cfg.engine["name"] for cfg in configurations if "nodes" in cfg.engine]
    if launching:
        raise InputError.of("engine", launching[0], "one engine and one number of devices in all of a sweep's runs")


def _train(combinations: Sequence[Sequence[str]], configurations: Sequence[TrainConfig]) -> None:
    from flt.api import train

    for number, (combination, cfg) in enumerate(zip(combinations, configurations, strict=True), start=1):
        print(f"run {number} of {len(combinations)}: {shlex.join(combination)}", flush=True)
        train(cfg)
