"""Metrics of whole runs, with and without the parts and settings to which they belong."""

from __future__ import annotations

from pathlib import Path

import pytest
from commands import in_empty_folder, metrics, train

OPENED, SHARE = "cluster/opened", "transfer/share"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("", set()),
        ("grouping=online", {OPENED}),
        ("task_rounds={parity:[2,null]}", {OPENED}),
        ("heads=shared task_changes={digit:[parity,2]}", {OPENED}),
        ("transfer=learned", {SHARE}),
    ],
)
def test_the_metrics_of_changing_tasks_and_of_transfers_are_those_of_the_runs_that_have_them(
    words: str, expected: set[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    in_empty_folder(tmp_path, monkeypatch)
    own = ["algo=fl_tac", "data=digits_two", "rounds=2", "name=run", "logger=[]", "report=false", "local.steps=10"]
    assert train(*own, *words.split()) == 0
    last = metrics(tmp_path / "lightning_logs" / "run" / "version_0")[-1]
    assert {key for key in (OPENED, SHARE) if last.get(key)} == expected
