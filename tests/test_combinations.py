"""Every recipe with every adapter, for clients and for tasks: it runs, or it is refused in one line that says why."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest
from commands import in_empty_folder, metrics, train
from slowly import mostly_slowly

from flt.build import ADAPTERS
from flt.choices import choices

QUICK = ["hafl lora per_client", "sa_fedlora c2a per_client", "fl_tac none per_task", "flexlora houlsby per_task"]
CASES = [" ".join(case) for case in itertools.product(choices("algo"), ADAPTERS, ("per_client", "per_task"))]
REFUSED = 2


@pytest.mark.parametrize("case", mostly_slowly(CASES, QUICK))
def test_a_combination_runs_two_rounds_or_is_refused_with_its_reason(
    case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    in_empty_folder(tmp_path, monkeypatch)
    algo, adapter, jobs = case.split()
    code = train(f"algo={algo}", f"adapter={adapter}", f"jobs={jobs}", "rounds=2", "name=run", "clients=3")
    run = tmp_path / "lightning_logs" / "run" / "version_0"
    if code == REFUSED:
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith("error: ")
        assert "allowed is " in line
        assert not run.exists()
        assert adapter != "lora", line  # what every recipe was made for
        return
    assert code == 0
    assert len(metrics(run)) == 2
    assert (run / "adapter").is_dir() or (run / "model").is_dir()
