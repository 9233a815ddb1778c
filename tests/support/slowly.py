"""Parameters that only ``make test-all`` tries, where a few of their kind are enough for ``make test``."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import pytest


def slowly(*values: Any) -> list[Any]:
    """Marks values of a parametrisation as slow; a tuple holds the values of several arguments."""
    return [
        pytest.param(*(value if isinstance(value, tuple) else (value,)), marks=pytest.mark.slow) for value in values
    ]


def mostly_slowly(values: Iterable[Any], quick: Sequence[Any]) -> list[Any]:
    """All values, of which those that aren't quick are marked as slow."""
    return [value if value in quick else slowly(value)[0] for value in values]
