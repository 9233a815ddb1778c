"""Runs that stop at a chosen moment."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import pytest

from flt.callbacks.checkpoint import newest
from flt.models.module import ClientModule
from flt.protocol.messages import encode


def exported(run: Path) -> dict[str, str]:
    files = [*run.glob("adapter/**/*"), *run.glob("model/**/*")]
    return {str(p.relative_to(run)): hashlib.sha256(p.read_bytes()).hexdigest() for p in files if p.is_file()}


def state(run: Path) -> bytes:
    """The server's state and the private ones, which the last checkpoint has."""
    found = newest(run / "checkpoints")
    assert found is not None
    private = [(run / "checkpoints" / file).read_bytes() for *_, file in found[1]["private"]]
    return b"".join([encode(found[0].server), *private])


class Stopped(Exception):
    """What a crash is."""


def stop_in_fit(number: int, patch: pytest.MonkeyPatch) -> None:
    """Raises inside the Trainer of a fit, counted from 1, after its first step."""
    fits: list[int] = []

    def on_train_batch_end(self: ClientModule, *_: Any) -> None:
        fits.append(1)
        if len(fits) == number:
            raise Stopped

    patch.setattr(ClientModule, "on_train_batch_end", on_train_batch_end)
