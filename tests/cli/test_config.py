"""``flt config``: a configuration as YAML, which makes the same configuration when it is fed back."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest
import yaml
from causal_runs import causal_run, copied

import flt
from flt.cli.main import main


def printed(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    capsys.readouterr()
    assert main(["config", *words]) == 0
    found = capsys.readouterr()
    assert found.err == ""
    return found.out


def test_the_yaml_is_the_configuration_and_nothing_else(capsys: pytest.CaptureFixture[str]) -> None:
    given = ["algo=hafl", "local.lr=1e-3", "data=dolly"]
    assert yaml.safe_load(printed(capsys, *given)) == flt.config(given)


def test_a_run_s_yaml_is_that_of_its_file(capsys: pytest.CaptureFixture[str]) -> None:
    run = causal_run("merged")
    assert printed(capsys, str(run)) == (run / "config.yaml").read_text()
    assert printed(capsys, "last", f"root={run.parents[1]}") == (run / "config.yaml").read_text()


@pytest.mark.parametrize("name", ["one", "groups", "merged"])
def test_the_command_of_a_run_makes_the_same_configuration(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    flt_, train, *overrides = shlex.split(printed(capsys, str(causal_run(name)), "--command"))
    assert (flt_, train) == ("flt", "train")
    assert flt.config(overrides) == flt.config(run=causal_run(name))


def test_the_command_of_keys_names_those_that_matter(capsys: pytest.CaptureFixture[str]) -> None:
    given = ["--command", "algo=hafl", "rounds=10", "data.text='a b'", "rule=mean", "seed=3"]
    assert shlex.split(printed(capsys, *given)) == ["flt", "train", "algo=hafl", "seed=3", "data.text='a b'"]


def test_a_command_that_could_change_the_terminal_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = copied("one", tmp_path)
    found = yaml.safe_load((run / "config.yaml").read_text())
    (run / "config.yaml").write_text(yaml.safe_dump({**found, "name": "a\x1b[31m"}))
    assert "\x1b" not in printed(capsys, str(run))
    assert main(["config", str(run), "--command"]) == 2
    assert capsys.readouterr().err == "error: config=--command: allowed is settings without control characters\n"


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["rounds=many"], "rounds=many: "),
        (["rouns=3"], "rouns=3: there is no such key; the nearest is rounds; allowed is name, root"),
        (["algo=nothing"], "algo=nothing: allowed is c2a, central"),
        (["algo=hafl", "rule.trim=1"], "rule.trim=1: there is no such key; allowed is a key of rule"),
        (["adapter.rank=0"], "adapter.rank=0: "),
        (["seed=1,2"], "seed=1,2: allowed is one value; flt sweep takes several"),
        (["resume=nowhere"], "resume=nowhere: there is no config.yaml in it; allowed is"),
        (["nowhere"], "run=nowhere: there is no such folder; allowed is a run's folder"),
        (["last"], "run=last: there is no run in lightning_logs yet; allowed is"),
        (["last", "rounds=3"], "config=rounds=3: allowed is root="),
        (["last", "last"], "config=last last: allowed is 1 of: a run's folder, or last"),
        (["--json"], "config=--json: allowed is --command"),
        (["seed=1", "--yaml"], "config=--yaml: allowed is --command"),
    ],
)
def test_bad_input_is_one_line(
    words: list[str], line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["config", *words]) == 2
    found = capsys.readouterr()
    (said,) = found.err.splitlines()
    assert said.startswith(f"error: {line}")
    assert found.out == ""
