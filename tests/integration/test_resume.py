"""A run that was stopped and goes on ends with the bits of one that nothing stopped."""

from __future__ import annotations

import contextlib
import errno
import signal
import subprocess
import sys
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
from commands import in_empty_folder, metrics, train
from slowly import slowly
from stopped import Stopped, exported, state, stop_in_fit

from flt.callbacks.checkpoint import newest
from flt.cli.main import main

pytestmark = pytest.mark.slow  # whole runs and fits


OTHERS = (
    "fedit",
    "scaffold",
    "flora",
    "c2a",
    "fl_tac",
    "fl_tac_unlocked",
    "fl_tac_memory",
    "haflq",
    "fl_tac data=digits_two",
)
ROUNDS, CLIENTS = 4, 3


DROPOUT = "cohort.size=2 model.dropout=0.1 adapter.dropout=0.1"


@pytest.mark.parametrize(
    ("algo", "overrides"), [("hafl", ""), *slowly(*((algo, DROPOUT) for algo in ("hafl", *OTHERS)))]
)
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


@pytest.fixture(scope="module")
def two_rounds(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """What a run of two rounds exports that nothing disturbs."""
    folder = tmp_path_factory.mktemp("two_rounds")
    with pytest.MonkeyPatch.context() as patch:
        in_empty_folder(folder, patch)
        assert train("algo=fedit", "rounds=2", "name=straight") == 0
    return exported(folder / "lightning_logs" / "straight" / "version_0")


@pytest.mark.parametrize("what", ["checkpoint", "export"])
def test_a_full_disk_ends_a_run_in_a_line_and_the_last_checkpoint_stands(
    what: str, two_rounds: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    in_empty_folder(tmp_path, monkeypatch)
    stopped = tmp_path / "lightning_logs" / "stopped" / "version_0"

    def no_second_round(path: Path, *args: Any, **named: Any) -> Any:
        if path.name.startswith(".round_0002"):
            raise OSError(errno.ENOSPC, "No space left on device")
        return open(path, *args, **named)

    def no_export(tensors: Any, path: Any, *args: Any, **named: Any) -> None:
        raise safetensors.SafetensorError("I/O error: No space left on device (os error 28)")

    with monkeypatch.context() as patch:
        if what == "checkpoint":
            patch.setattr("flt.core.files.open", no_second_round, raising=False)
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
    assert exported(stopped) == two_rounds
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


COMMAND = [
    "train", "algo=fedit", f"rounds={ROUNDS}", f"clients={CLIENTS}", "local.steps=1", "eval.examples=20",
    "eval.client_examples=4",
]  # fmt: skip


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("undisturbed")
    with contextlib.chdir(folder):
        assert main(COMMAND) == 0
    return folder / "lightning_logs/fedit/version_0"


def in_a_process(*words: str) -> int:
    return subprocess.run([sys.executable, *words], check=False, capture_output=True).returncode


def driven(source: str) -> None:
    sys.argv = ["driver.py", *COMMAND]
    exec(source, {})


def in_a_fork(source: str) -> int:
    """A process that has the imports already."""
    process = get_context("fork").Process(target=driven, args=(source,))
    process.start()
    process.join()
    assert process.exitcode is not None
    return process.exitcode


@pytest.mark.slow
@pytest.mark.parametrize("moment", MOMENTS)
def test_a_process_that_is_killed_goes_on_to_the_same_bits(
    moment: str, undisturbed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    source, run = DRIVER.format(moment=MOMENTS[moment]), tmp_path / "lightning_logs/fedit/version_0"
    on_a_command_line = moment == "in the aggregation"
    killed = in_a_process("-c", source, *COMMAND) if on_a_command_line else in_a_fork(source)
    assert killed == -signal.SIGKILL
    found = newest(run / "checkpoints")
    assert found is not None
    assert 0 < found[0].server.rounds < ROUNDS
    assert main([*COMMAND, "resume=last"]) == 0
    assert "adapter/adapter_model.safetensors" in exported(run)
    assert exported(run) == exported(undisturbed)
    assert metrics(run) == metrics(undisturbed)
