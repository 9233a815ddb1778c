"""What a report says beside its charts: the lines that load a run's model."""

from __future__ import annotations

from pathlib import Path

import pytest

from flt.export.card_code import loading_lines
from flt.export.model_card import ModelFacts, RunFacts, card
from flt.reports import about
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
