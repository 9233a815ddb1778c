"""The command ``flt plan``."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from commands import in_empty_folder
from planned import TINY

from flt.cli.main import main
from flt.engines import launcher

ROWS = "".join(f"{i},{i % 2}\n" for i in range(60))

PEAK = """
import sys, torch
from flt.cli.main import main
from flt.core.memory import peak_memory
code = main(sys.argv[1:])
print("peak", peak_memory(torch.device("cpu")))
sys.exit(code)
"""


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    in_empty_folder(tmp_path, monkeypatch)
    return tmp_path


def test_the_tables_have_80_columns_and_the_sums(capsys: pytest.CaptureFixture[str], folder: Path) -> None:
    assert main(["plan", *TINY, "algo=sa_fedlora", "rounds=6"]) == 0
    text = capsys.readouterr().out
    assert max(map(len, text.splitlines()[1:])) <= 80  # the first line is the command
    for part in ("plan of sa_fedlora on digits with embedded", "base, head", "adapter, head", "all 6", "3 clients"):
        assert part in text
    assert list(folder.iterdir()) == []


def test_json_has_the_numbers_of_each_round_and_client(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", "--json", *TINY, "algo=hafl"]) == 0
    plan = json.loads(capsys.readouterr().out)
    assert [one["round"] for one in plan["rounds"]] == [1, 2, 3]
    assert plan["bytes_down"]["bytes"] == sum(one["down"]["bytes"] for one in plan["rounds"])
    assert plan["bytes_down"]["bytes"] == sum(client["bytes_down"] for client in plan["clients"])
    assert plan["rounds"][0]["plan"] == {"stage": "adapter", "train": ["A", "B", "adapter", "head"], "private": []}
    assert plan["fits"] == 9


def test_a_refused_run_is_one_line_for_each_reason_and_exit_code_2(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", "--json", "algo=fedit", "ranks=[2,4]", "devices=2"]) == 2
    out, err = capsys.readouterr()
    assert [line.partition("=")[0] for line in err.splitlines()] == ["error: devices", "error: selection"]
    assert json.loads(out)["refused"] == [line.removeprefix("error: ") for line in err.splitlines()]


BAD = {
    "a flag that isn't there": (["--tral"], "plan=--tral: allowed is --trial, --json"),
    "a key that isn't there": (["local.learning_rate=1"], "local.learning_rate=1: there is no such key"),
    "a recipe that isn't there": (["algo=fedsomething"], "algo=fedsomething: allowed is"),
    "a word that sets nothing": (["rounds"], "override=rounds: allowed is key=value"),
    "a word for a number": (["rounds=ten"], "rounds=ten"),
    "parts that can't be combined": (["algo=fl_tac", "rule=krum"], "rule Krum with grouping"),
    "a cohort of too many": (["cohort.size=100"], "cohort.size=100: allowed is an integer from 1 to"),
    "data that aren't there": (["data=nowhere.csv"], "data.path=nowhere.csv"),
    "data without the columns": (
        ["data=data.csv"], "data.text=None: no column has a usual name, say which it is; allowed is words, mark",
    ),
    "a model that isn't there": (["model=./nowhere"], "model=./nowhere: there is no such folder"),
    "devices for an engine of one": (["devices=2"], "devices=2: engine=distributed and engine=sharded use several"),
    "more devices than GPUs": (["engine=distributed", "devices=2"], "devices=2: allowed is an integer from 1 to 1"),
    "a base that is split and changed": (
        ["algo=fedavg", "engine=sharded", "engine.strategy=fsdp"], "engine.strategy=fsdp: the recipe changes",
    ),
    "threads in forked processes": (
        ["engine=distributed", "engine.strategy=ddp_fork", "threads=2"], "threads=2: a forked process has none",
    ),
    "a run that isn't there": (["resume=nowhere"], "resume=nowhere: there is no config.yaml in it"),
    "an adapter beyond the memory": (["adapter.rank=100000"], "adapter.rank=100000: allowed is an integer up to 65536"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_refused_in_the_run_s_words(
    name: str, folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder / "data.csv").write_text("words,mark\n" + ROWS)
    arguments, error = BAD[name]
    if "GPUs" in name:
        cuda = SimpleNamespace(device_count=lambda: 1, is_initialized=lambda: False)
        monkeypatch.setattr(launcher, "torch", SimpleNamespace(cuda=cuda))
    given = {argument.partition("=")[0] for argument in arguments}
    assert main(["plan", *(text for text in TINY if text.partition("=")[0] not in given), *arguments]) == 2
    (said,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert said.startswith(f"error: {error}")
    assert [path.name for path in folder.iterdir()] == ["data.csv"]


@pytest.mark.slow
def test_the_estimated_memory_is_within_a_third_of_the_run_s_peak(folder: Path) -> None:
    def run(*words: str) -> str:
        command = [sys.executable, "-c", PEAK, *words, "algo=fedavg", "rounds=2", "batch_size=256"]
        return subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, check=True).stdout

    planned = json.loads(run("plan", "--json").rpartition("peak ")[0])
    measured = int(run("train").rpartition("peak ")[2])
    assert 0.75 < planned["memory"]["peak"] / measured < 1.33
