"""Templates: which columns a prompt takes, which template a row takes, and one line for every mistake in one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import datasets
import pytest
from tiny import save_instructions

from flt.core.errors import InputError
from flt.data.config import DataConfig
from flt.data.dataset_sources import RawData, load
from flt.data.templates import Template, choose_template

COLUMNS = ["instruction", "context", "response"]


def raw(tmp_path: Path, drop: tuple[str, ...] = (), rename: dict[str, str] | None = None, **fields: Any) -> RawData:
    table = datasets.Dataset.from_parquet(str(save_instructions(tmp_path / "made.parquet")), cache_dir=str(tmp_path))
    assert isinstance(table, datasets.Dataset)
    path = tmp_path / "rows.parquet"
    table.remove_columns(list(drop)).rename_columns(rename or {}).to_parquet(path)
    return load(DataConfig(**{"name": "file", "path": str(path), "response": "response", **fields}))


def prompt(found: RawData, **row: str) -> str:
    return choose_template(found.templates, row).fill(row)


def test_a_template_keeps_what_stands_around_its_columns() -> None:
    template = Template.parse("{{x}} {context}:{instruction} -> ", COLUMNS)
    assert template.columns == ["context", "instruction"]
    assert template.fill({"context": "c {b}", "instruction": "i"}) == "{x} c {b}:i -> "
    assert template.tail == " -> "
    assert Template.parse("say {instruction}", COLUMNS).tail == ""


def test_a_row_without_a_context_takes_the_prompt_that_speaks_of_none(tmp_path: Path) -> None:
    found = raw(tmp_path)
    assert (found.kind, found.inputs, found.response) == ("causal", ("instruction", "context"), "response")
    whole = "### Task:\nDo.\n\n### Context:\nHere.\n\n### Answer:\n"
    assert prompt(found, instruction="Do.", context="Here.") == whole
    for empty in ("", " \n"):
        assert prompt(found, instruction="Do.", context=empty) == "### Task:\nDo.\n\n### Answer:\n"


def test_usual_names_of_other_sets_are_found_and_given_ones_go_before(tmp_path: Path) -> None:
    alpaca = raw(tmp_path, rename={"context": "input", "response": "output"}, response="output")
    assert alpaca.inputs == ("instruction", "input")
    assert raw(tmp_path, drop=("context",)).inputs == ("instruction",)
    assert raw(tmp_path, text="context", text_pair="instruction").inputs == ("context", "instruction")


def test_given_prompts_name_their_columns_and_the_last_serves_where_none_fits(tmp_path: Path) -> None:
    found = raw(tmp_path, prompts=["{context} Q {instruction} A", "only {instruction}"], text="context")
    assert found.inputs == ("context", "instruction")
    assert prompt(found, instruction="i", context="c") == "c Q i A"
    assert prompt(found, instruction="i", context="") == "only i"
    assert prompt(found, instruction="", context="c") == "only "


def test_labels_are_the_category_and_one_class_where_there_is_none(tmp_path: Path) -> None:
    assert raw(tmp_path).label_names == ("closed_qa", "open_qa")
    none = raw(tmp_path, drop=("category",))
    assert none.label_names == ("all",)
    assert not none.values("train", none.label).any()
    # the response isn't taken for a class by its usual name
    assert raw(tmp_path, drop=("category",), rename={"response": "target"}, response="target").label_names == ("all",)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"response": "answer"}, ["data.response=answer", "instruction, context, response"]),
        ({"response": "client"}, ["data.response=client", "int64"]),
        ({"text": "question"}, ["data.text=question", "instruction"]),
        ({"text_pair": "passage"}, ["data.text_pair=passage", "context"]),
        ({"prompts": ["{instructoin}"]}, ["data.prompts={instructoin}", "instruction, context", "doubled"]),
        ({"prompts": ["{instruction:>9}"]}, ["data.prompts={instruction}"]),
        ({"prompts": ["{client}"]}, ["data.prompts=client", "int64"]),
        ({"prompts": ["{instruction} {response}"]}, ["data.prompts={response}", "the target"]),
        ({"prompts": ["Answer!"]}, ["data.prompts='Answer!'", "{instruction}"]),
        ({"prompts": ["{instruction"]}, ["data.prompts='{instruction'", "expected '}'"]),
        ({"label": "response"}, ["data.label=response"]),
    ],
)
def test_a_column_or_brace_that_is_not_right_is_one_line(
    fields: dict[str, Any], words: list[str], tmp_path: Path
) -> None:
    with pytest.raises(InputError) as error:
        raw(tmp_path, **fields)
    assert "\n" not in str(error.value)
    assert all(word in str(error.value) for word in words), str(error.value)
