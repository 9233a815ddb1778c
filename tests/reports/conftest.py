"""Runs that the tests of reports share."""

from __future__ import annotations

from pathlib import Path

import pytest
from reports import ALGOS, tiny_run


@pytest.fixture(scope="session")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A run of each recipe, without a report."""
    folder = tmp_path_factory.mktemp("runs")
    return {algo: tiny_run(folder, algo) for algo in ALGOS}
