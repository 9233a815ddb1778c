"""``flt.config``: the configuration that a command line makes, or that a run was trained with."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from flt.core.imports import import_without_gc
from flt.core.plain_yaml import escaped
from flt.run.compose import compose_config
from flt.run.stored import read_run


def config(
    overrides: Sequence[str] = (), *, run: str | Path | None = None, root: str | Path = "lightning_logs"
) -> dict[str, Any]:
    """Returns a configuration, as nested dictionaries.

    Args:
        overrides: Words of a command line such as ``["algo=hafl", "local.lr=1e-3"]``, whose configuration is composed
            and checked as ``flt train`` does it.
        run: Folder of a run, or ``last``, whose stored configuration is returned instead.
        root: Folder of all runs, in which ``last`` is looked for.

    Raises:
        InputError: A key or value is wrong, or there is no such run.

    Example:
        >>> config(["algo=fedit", "rounds=3"])["rounds"]
        3
    """
    if run is not None:
        return read_run(run, root).settings
    compose_config(overrides)  # checks the names of keys and choices before torch is imported
    import_without_gc("flt.run.build", freeze=True)
    from flt.run.build import check_parts
    from flt.run.resume import configure

    cfg = configure(overrides)
    check_parts(cfg)
    return dataclasses.asdict(cfg)


def as_yaml(settings: dict[str, Any]) -> str:
    """Returns a configuration as YAML, of which OmegaConf makes the same configuration again."""
    return OmegaConf.to_yaml(OmegaConf.create(escaped(settings)))
