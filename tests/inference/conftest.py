"""The finished runs, and the folder in which they were trained as the working folder."""

from __future__ import annotations

import pytest
from trained import Trained, write_data


@pytest.fixture
def trained(trained_runs: Trained, monkeypatch: pytest.MonkeyPatch) -> Trained:
    """The shared runs. The working folder is theirs, and no test may change them."""
    write_data(trained_runs.place)
    monkeypatch.chdir(trained_runs.place)
    return trained_runs
