"""Every recipe with every adapter on every type of task: it runs, or it is refused in one line that says why."""

from __future__ import annotations

import dataclasses
import itertools
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from benchmarks.pages import combinations
from benchmarks.pages.combinations import CASES, Case, cells, configured, numbered, recipe_refusals
from benchmarks.pages.pairs import ROUNDS, bench
from benchmarks.pages.toy_federation import MODULES, TASKS, toy
from commands import in_empty_folder, train
from lightning.pytorch.loggers.logger import DummyLogger
from slowly import mostly_slowly

from flt.client.trainer import LocalTrainer
from flt.core.errors import InputError
from flt.export.places import EXPORTS
from flt.models.adapters.registry import ADAPTERS
from flt.run.conf_groups import choices
from flt.run.run import Run

QUICK = ["hafl lora", "hafl c2a"]
MATRIX = [" ".join(case) for case in itertools.product(choices("algo"), ADAPTERS)]
AGAIN = "docs/combinations.md is out of date: python -m benchmarks.pages.combinations"
ONE_LINE = re.compile(r"[^\n]+: [^\n]+; allowed is [^\n]+")


@pytest.mark.parametrize("combination", mostly_slowly(MATRIX, QUICK))
def test_a_combination_runs_its_rounds_or_is_refused_with_its_reason(
    combination: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    in_empty_folder(tmp_path, monkeypatch)
    algo, adapter = combination.split()
    found = recipe_refusals(algo, [case for case in CASES if case[0] == adapter])
    assert_on_the_page(algo, adapter, found)
    tried = chosen(algo, found)
    for case, line in found.items():
        if line is None and case not in tried:
            continue
        cfg = dataclasses.replace(configured(algo, adapter), name="-".join(case))
        run = Run(cfg, toy(*case[1:]), loggers=[DummyLogger()], show=False)
        if line is None:
            result = run()
            assert len(result.history) == ROUNDS
            assert result.exported.name in EXPORTS
            assert list(result.exported.rglob("*.safetensors"))
        else:
            assert ONE_LINE.fullmatch(line)
            assert adapter != "lora", line  # what every recipe was made for
            assert refused_without_training(run, monkeypatch) == line
            assert not (tmp_path / cfg.root / cfg.name).exists()


def chosen(algo: str, found: Mapping[Case, str | None]) -> set[Case]:
    """One of the ways to divide jobs for each type of task, in turns."""
    running = [case for case, line in found.items() if line is None]
    first = choices("algo").index(algo)
    cells = [[case for case in running if case[1] == kind] for kind in MODULES]
    return {cases[(first + number) % len(cases)] for number, cases in enumerate(cells) if cases}


def refused_without_training(run: Run, monkeypatch: pytest.MonkeyPatch) -> str:
    """The line with which a run is refused; a fit would fail the test."""

    def never(*_: Any) -> None:
        raise AssertionError("a refused run has trained")

    with monkeypatch.context() as patch:
        patch.setattr(LocalTrainer, "local_fit", never)
        with pytest.raises(InputError) as refused:
            run()
    return str(refused.value)


@pytest.mark.parametrize("kind", MODULES)
def test_fedit_with_lora_is_refused_for_no_type_of_task(kind: str) -> None:
    found = recipe_refusals("fedit", [("lora", kind, jobs) for jobs in TASKS])
    assert set(found.values()) == {None}


@pytest.mark.slow
def test_the_command_line_prints_the_line_of_the_page_and_writes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    in_empty_folder(tmp_path, monkeypatch)
    case = ("c2a", "image", "per_client")
    assert train("algo=sa_fedlora", "adapter=c2a", "rounds=3") == 2
    assert capsys.readouterr().err == f"error: {recipe_refusals('sa_fedlora', [case])[case]}\n"
    assert not list(tmp_path.iterdir())


def page() -> str:
    return combinations.PAGE.read_text()


def test_the_page_begins_as_it_is_written_now_and_has_every_recipe_and_every_adapter() -> None:
    recipes = page().partition("## Parts")[0]
    heads = " | ".join(f"{adapter}, {kind}" for adapter in ADAPTERS for kind in MODULES)
    assert recipes.startswith(f"{combinations.head()}\n\n{combinations.RECIPES}\n\n|  | {heads} |\n"), AGAIN
    assert re.findall(r"^\| `(\w+)` \|", recipes, re.MULTILINE) == choices("algo"), AGAIN


@pytest.mark.slow
def test_the_page_says_of_parts_what_they_say_now() -> None:
    assert page().endswith(f"\n\n{combinations.parts_text(bench())}\n"), AGAIN


def assert_on_the_page(algo: str, adapter: str, found: Mapping[Case, str | None]) -> None:
    recipes = page().partition("## Parts")[0]
    numbers = {why: int(number) for number, why in re.findall(r"^(\d+)\. (.+)$", recipes, re.MULTILINE)}
    (row,) = re.findall(rf"^\| `{algo}` \| (.+) \|$", recipes, re.MULTILINE)
    at = list(ADAPTERS).index(adapter) * len(MODULES)
    assert set(numbered(found.values())) <= set(numbers), AGAIN
    assert row.split(" | ")[at : at + len(MODULES)] == cells(adapter, found, numbers), AGAIN
