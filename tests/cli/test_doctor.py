"""``flt doctor``: a line for each check, and an exit code."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from flt.cli.main import main
from flt.run import doctor
from flt.run.check import MISSING, NOTE, OK, Check

GOOD = [Check("flt", "flt", OK, "1.0"), Check("device", "GPU", NOTE, "none; runs use the CPU")]
BAD = Check("package", "a-package-with-a-name", MISSING, "not installed", "pip install 'a-package-with-a-name>=1' " * 3)


def test_a_machine_that_can_run_flt_has_exit_code_0(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))  # its path is long, and shown as ~
    monkeypatch.setenv("FLT_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("FLT_DATA", raising=False)
    monkeypatch.chdir(tmp_path)
    assert main(["doctor"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["ok", "flt", __import__("flt").__version__]
    assert lines[-1] == "flt can run here"
    assert all(len(line) <= 80 for line in lines)
    assert list(tmp_path.iterdir()) == []


def test_what_is_missing_is_said_with_what_to_do(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(doctor, "checks", lambda root: iter([*GOOD, BAD]))
    assert main(["doctor"]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "ok      flt                1.0"
    assert lines[2] == "missing a-package-with-a-name"
    assert lines[3].split()[:4] == ["not", "installed;", "pip", "install"]
    assert all(len(line) <= 80 for line in lines)
    assert lines[-1] == "flt can't run here: see the lines that begin with missing"


def test_a_package_that_the_checks_need_is_said_to_be_missing(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delitem(sys.modules, "flt.run.doctor")
    monkeypatch.delattr("flt.run.doctor")
    monkeypatch.setitem(sys.modules, "packaging.requirements", None)
    assert main(["doctor"]) == 1
    first, *more = capsys.readouterr().out.splitlines()
    assert first.startswith("missing import             ModuleNotFoundError: import of packaging.requirements")
    assert more[-1] == "flt can't run here: see the lines that begin with missing"


def test_json_has_the_same(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(doctor, "checks", lambda root: iter([*GOOD, BAD]))
    assert main(["doctor", "--json"]) == 1
    found = json.loads(capsys.readouterr().out)
    assert found["can_run"] is False
    assert [(check["name"], check["state"]) for check in found["checks"]][0] == ("flt", "ok")


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["now"], "doctor=now: allowed is 0 of: a run's folder, or last"),
        (["--fix"], "doctor=--fix: allowed is --json"),
        (["seed=1"], "doctor=seed=1: allowed is root="),
    ],
)
def test_bad_input_is_one_line(words: list[str], line: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", *words]) == 2
    assert capsys.readouterr().err.splitlines() == [f"error: {line}"]
