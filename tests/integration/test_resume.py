"""A run that was stopped and goes on ends with the bits of one that nothing stopped."""

from __future__ import annotations

import errno
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
from commands import in_empty_folder, metrics, train
from slowly import slowly
from stopped import Stopped, exported, state, stop_in_fit

from flt.callbacks.checkpoint import newest

OTHERS = ("fedit", "scaffold", "flora", "c2a", "fl_tac", "fl_tac_unlocked", "haflq", "fl_tac data=digits_two")
ROUNDS, CLIENTS = 4, 3


@pytest.mark.parametrize(
    "overrides",
    ["", *slowly("cohort.size=2 model.dropout=0.1 adapter.dropout=0.1")],
    ids=["all clients", "cohorts and dropout"],
)
@pytest.mark.parametrize("algo", ["hafl", *slowly(*OTHERS)])
def test_a_stop_inside_a_fit_changes_no_bit(
    algo: str, overrides: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    in_empty_folder(tmp_path, monkeypatch)
    if algo == "c2a":
        overrides = overrides.replace("adapter.dropout=0.1", "")  # a hypernetwork's adapter has none
    arguments = [*f"algo={algo}".split(), f"rounds={ROUNDS}", "eval.every=2", *overrides.split()]
    assert train(*arguments, "name=straight") == 0
    straight, stopped = (tmp_path / "lightning_logs" / name / "version_0" for name in ("straight", "stopped"))
    jobs = [int(float(row["clients/steps"])) for row in metrics(straight)]  # a step each
    with monkeypatch.context() as patch:
        stop_in_fit(jobs[0] + jobs[1] + 2, patch)
        with pytest.raises(Stopped):
            train(*arguments, "name=stopped")
    assert not exported(stopped)
    found = newest(stopped / "checkpoints")
    assert found is not None
    assert found[0].server.rounds == 2
    assert train(*arguments, "name=stopped", "resume=last") == 0
    assert exported(stopped) == exported(straight)
    assert exported(stopped)
    assert state(stopped) == state(straight)
    assert metrics(stopped) == metrics(straight)


@pytest.mark.parametrize("what", ["checkpoint", "export"])
def test_a_full_disk_ends_a_run_in_a_line_and_the_last_checkpoint_stands(
    what: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    in_empty_folder(tmp_path, monkeypatch)
    assert train("algo=fedit", "rounds=2", "name=straight") == 0
    straight, stopped = (tmp_path / "lightning_logs" / name / "version_0" for name in ("straight", "stopped"))
    write = Path.open

    def no_second_round(self: Path, *args: Any, **named: Any) -> Any:
        if self.name.startswith(".round_0002"):
            raise OSError(errno.ENOSPC, "No space left on device")
        return write(self, *args, **named)

    def no_export(tensors: Any, path: Any, *args: Any, **named: Any) -> None:
        raise safetensors.SafetensorError("I/O error: No space left on device (os error 28)")

    with monkeypatch.context() as patch:
        if what == "checkpoint":
            patch.setattr(Path, "open", no_second_round)
        else:
            patch.setattr(safetensors.torch, "save_file", no_export)
        capsys.readouterr()
        assert train("algo=fedit", "rounds=2", "name=stopped") == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert "no space is left for it" in line
    found = newest(stopped / "checkpoints")
    assert found is not None
    assert found[0].server.rounds == (1 if what == "checkpoint" else 2)
    assert not exported(stopped)
    assert train("algo=fedit", "rounds=2", "name=stopped", "resume=last") == 0
    assert exported(stopped) == exported(straight)
    assert exported(stopped)


MOMENTS = {
    "in a fit": "from flt.models.module import ClientModule as owner; hook = 'on_train_batch_end'; number = 8",
    "in the aggregation": "from flt.algorithm.rule.mean import Mean as owner; hook = 'finish'; number = 3",
    "between a checkpoint's files": "from pathlib import Path as owner; hook = 'replace'; number = 8",
}
DRIVER = """
import os, signal, sys
from flt.cli.main import main
{moment}
before, calls = getattr(owner, hook), []
def killed(self, *args, **named):
    calls.append(1)
    if len(calls) == number:
        os.kill(os.getpid(), signal.SIGKILL)
    return before(self, *args, **named)
setattr(owner, hook, killed)
sys.exit(main(sys.argv[1:]))
"""


def command(cwd: Path, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, *words], cwd=cwd, text=True, capture_output=True, check=False)


@pytest.fixture(scope="module")
def arguments() -> list[str]:
    quick = {"rounds": ROUNDS, "clients": CLIENTS, "local.steps": 1, "eval.examples": 20, "eval.client_examples": 4}
    return ["train", "algo=fedit", *(f"{key}={value}" for key, value in quick.items())]


@pytest.fixture(scope="module")
def undisturbed(arguments: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    cwd = tmp_path_factory.mktemp("undisturbed")
    done = command(cwd, "-m", "flt", *arguments)
    assert done.returncode == 0, done.stderr
    return cwd / "lightning_logs/fedit/version_0"


@pytest.mark.slow
@pytest.mark.parametrize("moment", MOMENTS.values(), ids=MOMENTS)
def test_a_process_that_is_killed_goes_on_to_the_same_bits(
    moment: str, arguments: list[str], undisturbed: Path, tmp_path: Path
) -> None:
    (tmp_path / "driver.py").write_text(DRIVER.format(moment=moment))
    killed = command(tmp_path, "driver.py", *arguments)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    run = tmp_path / "lightning_logs/fedit/version_0"
    found = newest(run / "checkpoints")
    assert found is not None
    assert 0 < found[0].server.rounds < ROUNDS
    done = command(tmp_path, "-m", "flt", *arguments, "resume=last")
    assert done.returncode == 0, done.stderr
    assert "adapter/adapter_model.safetensors" in exported(run)
    assert exported(run) == exported(undisturbed)
    assert metrics(run) == metrics(undisturbed)
