"""What a report says beside its charts: the lines that load a run's model."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from flt.export.card_code import loading_lines
from flt.export.inputs import INPUTS, ModelInputs, TaskInputs, inputs_text
from flt.export.model_card import ModelFacts, RunFacts, card
from flt.reports import about
from flt.run import summary
from flt.run.stored import StoredRun

ADAPTER = ModelFacts("lora", "", ("no", "yes"), True)
HUB, EMBEDDED = RunFacts(kind="text", base="org/base"), RunFacts(kind="image", base="embedded")


def run_with(folder: Path, text: bytes | None, name: str = "") -> StoredRun:
    """A run that has exported an adapter with this card."""
    place = folder / "hafl" / "version_0" / "adapter" / name
    place.mkdir(parents=True)
    (place / "adapter_config.json").write_text("{}")
    if text is not None:
        (place / "README.md").write_bytes(text)
    run = folder / "hafl" / "version_0"
    return StoredRun(run, {"data": {"name": "own"}}, [], {}, run / "adapter")


@pytest.mark.parametrize(("facts", "library"), [(HUB, "peft"), (EMBEDDED, "flt")])
def test_the_lines_that_load_a_model_are_those_of_its_card(
    facts: RunFacts, library: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    last = about.loading(run_with(tmp_path, card(facts, ADAPTER)))[-1]
    assert f"with {library}" in last.caption
    assert 'folder = "hafl/version_0/adapter"\n' in last.text
    written = last.text.replace('"hafl/version_0/adapter"', '"."').splitlines()
    assert written == [line.partition("  # this folder")[0] for line in loading_lines(facts, ADAPTER).splitlines()]


@pytest.mark.parametrize("text", [None, b"# A model of somebody else's\n", card(HUB, ADAPTER) + b"changed\n"])
def test_a_model_without_a_card_of_flt_s_is_loaded_with_flt(
    text: bytes | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (code,) = about.loading(run_with(tmp_path, text))
    assert code.text == 'import flt\n\nmodel = flt.load("hafl/version_0/adapter")'


def test_a_run_elsewhere_is_named_alike_in_all_lines(tmp_path: Path) -> None:
    run = run_with(tmp_path, None, "group_1/head_film")
    (code,) = about.loading(run)
    assert f'"{tmp_path.name}/hafl/version_0/adapter/group_1/head_film"' in code.text
    assert about.shown_path(run.folder) == f"{tmp_path.name}/hafl/version_0"


@pytest.mark.parametrize("kind", ["text", "pair", "image", "causal"])
def test_the_command_that_uses_a_run_is_that_of_its_summary(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    run = dataclasses.replace(run_with(tmp_path, None), settings={"data": {"name": "file"}})
    (run.folder / "adapter" / INPUTS).write_text(inputs_text(ModelInputs({"": TaskInputs(kind)})))
    said = summary.next_steps(Path("hafl/version_0"), kind, report=False)
    assert about.loading(run)[-1].text in said.values()


@pytest.mark.parametrize("inputs", [None, "{", "[]"])
def test_an_export_that_says_no_kind_is_taken_for_one_of_texts_if_it_has_classes(
    inputs: str | None, tmp_path: Path
) -> None:
    run = dataclasses.replace(run_with(tmp_path, None), settings={"data": {"name": "file"}})
    if inputs is not None:
        (run.folder / "adapter" / INPUTS).write_text(inputs)
    assert "flt predict" not in about.loading(run)[-1].text
    assert "data=new.csv" in about.loading(dataclasses.replace(run, classes={"": ["a", "b"]}))[-1].text
