"""The command ``flt train``, which trains one run."""

from __future__ import annotations

from collections.abc import Sequence

from flt.core.imports import import_without_gc


def run(overrides: Sequence[str]) -> int:
    """Runs one training. The names of keys and choices are checked before torch is imported.

    Raises:
        InputError: A key or value is wrong.
    """
    from flt.run.compose import compose_config

    compose_config(overrides)
    import_without_gc("flt.api", freeze=True)
    from flt.api import train
    from flt.run.resume import configure

    train(configure(overrides))
    return 0
