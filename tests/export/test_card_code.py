"""The lines of Python in a model card, and where else they are shown."""

from __future__ import annotations

import pytest

from flt.export.card_code import lines_in, loading_lines
from flt.export.markdown import fenced
from flt.export.model_card import ModelFacts, RunFacts, card

TRICKY = 'a"b\\c ü'
RUNS = {
    "peft": (RunFacts(kind="text", base="org/base"), ModelFacts("lora", "", ("no", "yes"), True)),
    "transformers": (RunFacts(kind="text", base="org/base"), ModelFacts("merged", "", ("no", "yes"), True)),
    "flt": (RunFacts(kind="image", base="embedded"), ModelFacts("lora", "", ("no", "yes"))),
    "own": (RunFacts(module="Net"), ModelFacts("own")),
}


@pytest.mark.parametrize("name", RUNS)
def test_the_lines_of_a_card_can_be_read_with_the_folder_in_its_place(name: str) -> None:
    lines = loading_lines(*RUNS[name])
    assert lines.count('"."') == 1
    found = lines_in(card(*RUNS[name]).decode(), TRICKY)
    assert found is not None
    compile(found, "card", "exec")
    written = found.replace('"a\\"b\\\\c ü"', '"."')
    assert written.splitlines() == [line.partition("  # this folder")[0] for line in lines.splitlines()]


def test_the_name_of_a_class_is_no_folder() -> None:
    facts = ModelFacts("lora", "", ('folder = "."  # this folder',) * 5, True)
    found = lines_in(card(RUNS["peft"][0], facts).decode(), "runs/1")
    assert found is not None
    assert found.count('folder = "."') == 5
    assert 'folder = "runs/1"\n' in found


def test_a_card_without_lines_has_none() -> None:
    assert lines_in("# A model\n", "runs/1") is None
    assert lines_in(fenced("flt train", "bash"), "runs/1") is None
