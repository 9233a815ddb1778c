"""Instructions as tokens: what is a target, what a length leaves of a prompt and a response, and padding."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import WORDS, save_instructions, word_tokenizer
from tokenizers import processors

from flt.core import cache
from flt.core.errors import InputError
from flt.data.config import DataConfig
from flt.data.dataset_sources import RawData, load
from flt.data.examples import Collate, Examples
from flt.data.instructions import cut, encode_instructions

END = WORDS.index("[SEP]")
PROMPTS = ["very {instruction} not {context} a", "very {instruction} a"]


@pytest.fixture
def raw(tmp_path: Path) -> RawData:
    path = save_instructions(tmp_path / "rows.parquet", rows=24)
    return load(DataConfig(name="file", path=str(path), response="response", prompts=PROMPTS, validation=0.0))


def encode(raw: RawData, max_length: int = 64, tokenizer: Any = None) -> Examples:
    return encode_instructions(raw.splits["train"], raw, tokenizer or word_tokenizer(eos_token="[SEP]"), max_length)


def ids(text: str) -> list[int]:
    return [WORDS.index(word) for word in text.split()]


def parts(row: dict[str, str]) -> tuple[list[int], list[int]]:
    """A row's prompt and response, by hand."""
    context = f" not {row['context']}" if row["context"] else ""
    return ids(f"very {row['instruction']}{context} a"), [*ids(row["response"]), END]


def test_an_item_is_prompt_response_and_end_with_labels_on_the_response_alone(raw: RawData) -> None:
    examples = encode(raw)
    for i, row in enumerate(raw.splits["train"]):
        prompt, response = parts(row)
        item = examples[i]
        assert item["input_ids"].tolist() == [*prompt, *response]
        assert item["labels"].tolist() == [-100] * len(prompt) + response
        assert item["attention_mask"].tolist() == [1] * len(prompt + response)
    assert examples.labels.tolist() == raw.values("train", raw.label).tolist()


def test_what_the_tokenizer_begins_a_text_with_comes_once_and_what_it_ends_one_with_is_left_out(raw: RawData) -> None:
    tokenizer = word_tokenizer(eos_token="[SEP]", bos_token="[CLS]")
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [MASK]", special_tokens=[("[CLS]", 2), ("[MASK]", 4)]
    )
    examples = encode(raw, tokenizer=tokenizer)
    prompt, response = parts(raw.splits["train"][0])
    assert examples[0]["input_ids"].tolist() == [2, *prompt, *response]
    assert examples[0]["labels"].tolist() == [-100] * (1 + len(prompt)) + response


def test_padding_is_ignored_even_where_it_is_the_end_of_text(raw: RawData) -> None:
    examples = encode(raw)
    items = [examples[i] for i in range(6)]
    batch = Collate(pad_token_id=END)(items)
    for row, item in enumerate(items):
        size = len(item["input_ids"])
        for name, filling in (("input_ids", END), ("labels", -100), ("attention_mask", 0)):
            assert batch[name][row, :size].tolist() == item[name].tolist()
            assert set(batch[name][row, size:].tolist()) <= {filling}
    assert batch["labels"].shape == batch["input_ids"].shape


def test_views_and_worker_processes_keep_the_targets_beside_the_class(raw: RawData) -> None:
    examples = encode(raw)
    view = pickle.loads(pickle.dumps(examples.view([5, 3], labels=[1, 0])))
    assert view.labels.tolist() == [1, 0]
    assert view[1]["labels"].tolist() == examples[3]["labels"].tolist()


def test_a_prompt_that_is_too_long_loses_the_end_of_its_context(raw: RawData) -> None:
    rows = list(raw.splits["train"])
    i = max(range(len(rows)), key=lambda k: len(rows[k]["context"].split()))
    prompt, response = parts(rows[i])
    most = len(prompt) + len(response) - 2
    assert len(response) <= most - most // 2
    item = encode(raw, most)[i]
    assert item["input_ids"].tolist() == [*prompt[:-3], prompt[-1], *response]
    assert item["labels"].tolist() == [-100] * (len(prompt) - 2) + response


@given(prompt=st.integers(1, 30), tail=st.integers(0, 8), response=st.integers(1, 30), most=st.integers(2, 40))
@settings(max_examples=200, deadline=None)
def test_a_length_leaves_both_a_part_in_order(prompt: int, tail: int, response: int, most: int) -> None:
    tail = min(tail, prompt)
    before, after = cut(list(range(prompt)), tail, list(range(100, 100 + response)), most)
    assert len(before) + len(after) == min(most, prompt + response)
    assert list(before) == sorted(set(before))
    assert before[0] == 0
    assert list(after) == list(range(100, 100 + len(after)))
    # the response gives way only where it is more than half, and no more than it has to
    assert len(after) == response or len(after) >= most / 2
    assert len(after) == response or len(before) == min(prompt, most // 2)
    lost = sorted(set(range(prompt)) - set(before))
    assert lost == list(range(lost[0], lost[-1] + 1)) if lost else True
    if lost and tail < len(before):
        assert lost[-1] == prompt - tail - 1


def test_no_length_leaves_an_example_without_a_target(raw: RawData) -> None:
    for most in (2, 3, 5):
        for item in encode(raw, most):
            assert len(item["input_ids"]) <= most
            assert item["labels"][0] == -100
            assert (item["labels"][1:] != -100).any()
    with pytest.raises(InputError, match=r"model\.max_length=1: .*>= 2"):
        encode(raw, 1)


def test_other_prompts_and_other_ways_are_other_entries_of_the_cache(
    raw: RawData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FLT_CACHE", str(tmp_path / "cache"))
    encode(raw)
    encode(raw)
    assert len(cache.entries()) == 1
    path = str(tmp_path / "rows.parquet")
    # the same prompts with another tail are cut at another place
    other = [PROMPTS[0].replace(" a", " {instruction}"), PROMPTS[1]]
    for prompts in (other, ["{instruction}"]):
        encode(load(DataConfig(name="file", path=path, response="response", prompts=prompts, validation=0.0)))
    encode(load(DataConfig(name="file", path=path, response="context", prompts=["{instruction}"], validation=0.0)))
    encode(raw, 9)
    assert len(cache.entries()) == 5


def test_a_missing_text_counts_as_an_empty_one(raw: RawData) -> None:
    table = raw.splits["train"].map(lambda row: {"response": None, "context": None})
    item = encode_instructions(table, raw, word_tokenizer(eos_token="[SEP]"), 64)[0]
    assert item["labels"][-2:].tolist() == [-100, END]
    assert torch.equal(item["input_ids"][:-1], torch.tensor(ids(f"very {table[0]['instruction']} a")))
