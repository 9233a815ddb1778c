"""Texts become the prompts of a run by the templates of its data."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import datasets
import pytest
from tiny import word_tokenizer

from flt.core.errors import InputError
from flt.data.dataset_sources import DataConfig, load
from flt.data.instructions import _columns
from flt.inference.prompts import AS_IT_IS, prompts_of_chat, prompts_of_data, read_prompts
from flt.run.compose import load_choice

OWN = {"response": "out", "prompts": ["Q {question} C {passage} A", "Q {question} A"], "text": "question"}


def test_dolly_s_default_prompts() -> None:
    dolly: Any = dict(load_choice("data", "dolly"))
    form = prompts_of_data(dolly)
    assert form.fill({"prompt": "Name it."}) == "### Task:\nName it.\n\n### Answer:\n"
    full = "### Task:\nName it.\n\n### Context:\nIt is A.\n\n### Answer:\n"
    assert form.fill({"prompt": "Name it.", "context": "It is A."}) == full
    assert form.names == ["instruction", "context", "prompt"]


@pytest.mark.parametrize("settings", [OWN, {"response": "out", "text": "question", "text_pair": "passage"}])
def test_a_prompt_is_that_of_training(settings: dict[str, Any], tmp_path: Path) -> None:
    rows = [{"question": "who", "passage": "he did", "out": "he"}, {"question": "what", "passage": "", "out": "that"}]
    datasets.Dataset.from_list(rows * 10).to_json(tmp_path / "rows.jsonl")
    raw = load(DataConfig(name="file", path=str(tmp_path / "rows.jsonl"), **settings))
    split = raw.splits["train"]
    expected = _columns(split[:], raw)[0]
    form = prompts_of_data(settings)
    found = [form.fill({"question": row["question"], "passage": row["passage"] or ""}) for row in split]
    assert found == expected
    assert {len(text) for text in expected} != {0}


def test_columns_of_own_templates_have_names_of_their_own() -> None:
    form = prompts_of_data(OWN)
    assert form.names == ["question", "passage", "prompt"]
    assert form.fill({"prompt": "who", "passage": "he"}) == form.fill({"question": "who", "passage": "he"})
    assert form.fill({"prompt": "who"}) == "Q who A"


@pytest.mark.parametrize(
    ("fields", "line"),
    [
        ({"answer": "x"}, "answer=x: the run's prompts have no such text; allowed is question, passage, prompt"),
        ({"context": "x"}, "context=x: the run's prompts have no such text; allowed is question, passage, prompt"),
        ({"prompt": "a", "question": "b"}, "question=b: allowed is question only once, as question is question"),
        ({"prompt": " "}, "prompt=: allowed is a text for question or passage or prompt"),
        ({}, "prompt=: allowed is a text for question or passage or prompt"),
    ],
)
def test_texts_that_fit_no_template_are_one_line(fields: dict[str, str], line: str) -> None:
    with pytest.raises(InputError) as caught:
        prompts_of_data(OWN).fill(fields)
    assert str(caught.value) == line


def test_a_classifier_has_no_prompts() -> None:
    with pytest.raises(InputError, match="its data have no responses, so its model writes no text"):
        prompts_of_data({"name": "digits", "response": None})


def test_data_sets_with_different_prompts_are_named() -> None:
    sets = {"a": {"prompts": ["A {x}"]}, "b": {"prompts": ["B {x}"]}}
    data = {"response": "y", "sets": sets, "use": None}
    assert prompts_of_data(data, "b").fill({"prompt": "z"}) == "B z"
    with pytest.raises(InputError, match=r"^set=: the prompts of the run's data sets differ; allowed is a, b$"):
        prompts_of_data(data)
    with pytest.raises(InputError, match=r"^set=c: allowed is a, b$"):
        prompts_of_data(data, "c")
    assert prompts_of_data({**data, "use": ["a"]}).fill({"prompt": "z"}) == "A z"
    with pytest.raises(InputError, match=r"^set=a: allowed is nothing, as the run has one data set$"):
        prompts_of_data(OWN, "a")


def test_a_setting_of_a_newer_version_is_left_out() -> None:
    assert prompts_of_data({**OWN, "unheard_of": 3}).fill({"prompt": "who"}) == "Q who A"


def test_a_chat_template_makes_a_prompt_of_one_message() -> None:
    tokenizer = word_tokenizer(eos_token="[SEP]")
    assert prompts_of_chat(tokenizer) is None
    tokenizer.chat_template = "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}{{ 1 }}"
    form = prompts_of_chat(tokenizer)
    assert form is not None
    assert form.fill({"prompt": "good {{ 2 }}"}) == "<user>good {{ 2 }}1"
    tokenizer.chat_template = (
        """{% for message in messages %}{% if message['role'] == 'user' %}Q {{ (message["content"] or '') }} C """
        """{{ (message["passage"] or '') }}{% endif %}{% endfor %}"""
    )
    form = prompts_of_chat(tokenizer)
    assert form is not None
    assert form.fill({"prompt": "who", "passage": "he"}) == "Q who C he"
    assert form.fill({"prompt": "who"}) == "Q who C "
    tokenizer.chat_template = "{{ messages[0].content.__class__.__mro__[1].__subclasses__() }}"
    form = prompts_of_chat(tokenizer)
    assert form is not None
    with pytest.raises(InputError, match=r"^chat_template=\?: .*allowed is a template of one message$"):
        form.fill({"prompt": "good"})


def test_a_file_has_a_prompt_in_each_line_or_row(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("\ufeffgood film\n\n  \nbad, book\n")
    assert read_prompts(tmp_path / "a.txt", ["prompt"]) == [{"prompt": "good film"}, {"prompt": "bad, book"}]
    table = datasets.Dataset.from_list([{"q": "a", "x": "b", "n": 1}, {"q": None, "x": "c", "n": 2}])
    for name, write in (("t.jsonl", table.to_json), ("t.csv", table.to_csv), ("t.parquet", table.to_parquet)):
        write(tmp_path / name)
        assert read_prompts(tmp_path / name, ["q", "x", "y"]) == [{"q": "a", "x": "b"}, {"q": "", "x": "c"}]


@pytest.mark.parametrize(
    ("name", "data", "line"),
    [
        ("none.txt", None, "there is no such file"),
        ("a.doc", b"x", "allowed is a .txt with a prompt in each line"),
        ("a.txt", b"\n\n", "there is no prompt in it"),
        ("a.txt", b"\xff\xfe\x00", "allowed is a file in UTF-8"),
        ("a.jsonl", b'{"z": "a"}\n', "it has none of them"),
        ("a.jsonl", b"{", "allowed is a readable .jsonl file"),
    ],
)
def test_a_file_without_prompts_is_one_line(name: str, data: bytes | None, line: str, tmp_path: Path) -> None:
    if data is not None:
        (tmp_path / name).write_bytes(data)
    with pytest.raises(InputError) as caught:
        read_prompts(tmp_path / name, ["prompt"])
    assert line in str(caught.value)


def test_a_raw_prompt_is_the_text_itself() -> None:
    assert AS_IT_IS.fill({"prompt": "{good}"}) == "{good}"
