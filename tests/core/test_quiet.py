"""Inner Trainers: silent, and not slowed by what is installed."""

from __future__ import annotations

import importlib.metadata
import logging
from typing import Any

import lightning.pytorch as pl
import pytest
from lightning.fabric.utilities import registry
from lightning.pytorch.utilities.rank_zero import rank_zero_info
from toys import toy_federator

from flt.core import quiet


def test_lightnings_advice_is_silent_inside_and_heard_again_after(caplog: pytest.LogCaptureFixture) -> None:
    logger = logging.getLogger("lightning.pytorch.utilities.rank_zero")
    logger.addHandler(caplog.handler)
    try:
        with quiet.quiet():
            rank_zero_info("advice")
            logger.error("a failure")
        rank_zero_info("more advice")
    finally:
        logger.removeHandler(caplog.handler)
    assert set(caplog.messages) == {"a failure", "more advice"}


def test_callbacks_of_an_installed_package_are_made_for_each_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[pl.Callback] = []

    class Seen(pl.Callback):
        def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
            made.append(self)

    class Package:
        name = "package"

        def load(self) -> Any:
            return lambda: [Seen()]

    def entry_points(group: str) -> list[Package]:
        return [Package()] if group == "lightning.pytorch.callbacks_factory" else []

    own = registry.entry_points
    monkeypatch.setattr(quiet, "_entry_points", entry_points)
    federator = toy_federator(rounds=2)
    federator.fit()
    assert len(made) == len(set(map(id, made))) == 2 * len(federator.clients)
    assert registry.entry_points is own


def test_what_is_installed_is_read_once() -> None:
    group = "lightning.pytorch.callbacks_factory"
    assert quiet._entry_points(group=group) is quiet._entry_points(group=group)
    assert list(quiet._entry_points(group=group)) == list(importlib.metadata.entry_points(group=group))
