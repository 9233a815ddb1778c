"""Tokens are made once, equal those made directly, and lie on disk."""

from __future__ import annotations

import logging
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from texts import WORDS, raw_text, tokenizer
from tokenizers.normalizers import Lowercase
from transformers import PreTrainedTokenizerFast
from transformers.tokenization_python import PythonBackend

from flt.core import cache
from flt.core.errors import InputError
from flt.data import tokens
from flt.data.encode import encode_text
from flt.data.examples import Examples
from flt.data.stores import TextStore

TEXTS = ["a b", "", None, "a b c d e a b c d e", "c"]


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache."""
    monkeypatch.setenv("FLT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(cache, "_used", set())
    return tmp_path / "cache"


class Counting:
    """Stands for a tokenizer and counts the calls."""

    def __init__(self, inner: Any) -> None:
        self.inner, self.calls = inner, 0

    def __call__(self, *texts: list[str], **settings: Any) -> Any:
        self.calls += 1
        return self.inner(*texts, **settings)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)


class Letters(PythonBackend):
    """A tokenizer written in Python: every character is a token."""

    def __init__(self, alphabet: str, **settings: Any) -> None:
        self.ids = {letter: i for i, letter in enumerate(["<unk>", *alphabet])}
        super().__init__(unk_token="<unk>", **settings)

    @property
    def vocab_size(self) -> int:
        return len(self.ids)

    def get_vocab(self) -> dict[str, int]:
        return dict(self.ids)

    def save_vocabulary(self, save_directory: str, filename_prefix: str | None = None) -> tuple[str, ...]:
        (Path(save_directory) / "letters.txt").write_text("".join(self.ids))
        return ()

    def _tokenize(self, text: str, **_: Any) -> list[str]:
        return list(text)

    def _convert_token_to_id(self, token: str) -> int:
        return self.ids.get(token, 0)


def encode(texts: list, counting: Any = None, max_length: int = 8, pairs: list[str] | None = None) -> Examples:
    raw = raw_text(texts, pairs)
    return encode_text(raw.splits["train"], raw, counting or tokenizer(), max_length)


def entries() -> int:
    return len(cache.entries())


@pytest.mark.parametrize("pairs", [None, ["c", "d e a b", "e", "a", "b"]])
def test_the_second_call_finds_the_same_tokens_and_calls_no_tokenizer(pairs: list[str] | None) -> None:
    first = Counting(tokenizer())
    made = encode(TEXTS, first, pairs=pairs)
    assert first.calls == 1
    second = Counting(tokenizer())
    found = encode(TEXTS, second, pairs=pairs)
    assert second.calls == 0
    direct = tokenizer()(*([t or "" for t in TEXTS], *([pairs] if pairs else [])), truncation=True, max_length=8)
    for examples in (made, found):
        for i in range(len(TEXTS)):
            for name in ("input_ids", "token_type_ids", "attention_mask"):
                assert examples[i][name].tolist() == direct[name][i]
    assert entries() == 1


def test_calls_in_between_do_not_change_the_tokenizer_s_digest() -> None:
    used = tokenizer()
    before = tokens.tokenizer_digest(used)
    used(["a b c"], truncation=True, max_length=2, padding="max_length")
    assert tokens.tokenizer_digest(used) == before == tokens.tokenizer_digest(tokenizer())


def lower() -> PreTrainedTokenizerFast:
    other = tokenizer()
    other.backend_tokenizer.normalizer = Lowercase()
    return other


def left() -> PreTrainedTokenizerFast:
    other = tokenizer()
    other.truncation_side = "left"
    return other


@pytest.mark.parametrize("other", [lower, left, lambda: tokenizer(special=False)], ids=["normaliser", "side", "names"])
def test_another_tokenizer_is_another_entry(other: Any) -> None:
    encode(TEXTS)
    counting = Counting(other())
    encode(TEXTS, counting)
    assert counting.calls == 1
    assert entries() == 2


def test_another_length_name_or_version_is_another_entry(monkeypatch: pytest.MonkeyPatch) -> None:
    for max_length in (8, 7):
        encode(TEXTS, max_length=max_length)
    raw = raw_text(TEXTS)
    encode_text(raw.splits["train"], raw, tokenizer(), 8, "reviews train")
    assert {found.about["data"] for found in cache.entries()} == {"", "reviews train"}
    monkeypatch.setattr(tokens, "VERSION", 2)
    encode(TEXTS)
    assert entries() == 4


def test_a_tokenizer_in_python_is_told_by_its_words_and_settings() -> None:
    digests = [
        tokens.tokenizer_digest(made)
        for made in (Letters("abc"), Letters("abc"), Letters("acb"), Letters("abc", eos_token="a"))
    ]
    assert digests[0] == digests[1]
    assert len(set(digests)) == 3
    examples = encode(["ab", "c a"], Letters("abc"))
    assert [examples[i]["input_ids"].tolist() for i in range(2)] == [[1, 2], [3, 0, 1]]


columns = st.lists(st.none() | st.text("ab \N{GREEK SMALL LETTER ALPHA}\0", max_size=3), max_size=4)


@given(st.lists(columns, min_size=1, max_size=2), st.lists(columns, min_size=1, max_size=2))
@example([[None]], [[""]])
@example([["a", "b"]], [["ab", ""]])
@example([["a", "b"]], [["a"], ["b"]])
@example([["a\0b"]], [["a", "b"]])
def test_columns_that_differ_have_other_digests(one: list[list], other: list[list]) -> None:
    one, other = ([column[: min(map(len, columns))] for column in columns] for columns in (one, other))
    digests = [tokens._digest(lambda columns=columns: iter([columns]))[0] for columns in (one, other)]
    assert (digests[0] == digests[1]) == (one == other)


def test_a_label_is_no_part_of_it() -> None:
    raw = raw_text(["a", "b"])
    counting = Counting(tokenizer())
    for labels in ([0, 1], [1, 1]):
        split = raw.splits["train"].remove_columns("label").add_column("label", labels)
        examples = encode_text(split, raw, counting, 8)
        assert examples.labels.tolist() == labels
    assert counting.calls == 1


def test_tokens_are_mapped_and_can_not_be_written() -> None:
    store = encode(TEXTS).store
    assert isinstance(store, TextStore)
    assert store.folder is not None
    for array in (*store.columns.values(), store.offsets):
        assert not array.flags.owndata
        assert not array.flags.writeable
        assert isinstance(array.base, np.memmap)
    assert {path.name for path in store.folder.iterdir()} == {"input_ids", "token_type_ids", "offsets", "entry.json"}


def test_a_worker_process_gets_the_folder_s_name_only() -> None:
    examples = encode(["a b c d e"] * 3000)
    sent = pickle.dumps(examples.store)
    assert len(sent) < 1000
    found = pickle.loads(sent)
    assert found.row(2999)["input_ids"].tolist() == examples[2999]["input_ids"].tolist()
    kept = TextStore({"input_ids": np.arange(3, dtype=np.int32)}, np.array([0, 3]))
    assert pickle.loads(pickle.dumps(kept)).row(0)["input_ids"].tolist() == [0, 1, 2]


def test_lengths_are_those_of_the_view() -> None:
    examples = encode(TEXTS)
    assert examples.lengths.tolist() == [len(examples[i]["input_ids"]) for i in range(5)] == [4, 2, 2, 8, 3]
    assert examples.view([3, 0]).lengths.tolist() == [8, 4]


def test_more_rows_than_one_read_and_none_at_all() -> None:
    texts = [" ".join(np.random.default_rng(i).choice(WORDS[4:], i % 7 + 1)) for i in range(1001)]
    counting = Counting(tokenizer())
    examples = encode(texts, counting)
    assert counting.calls == 2
    assert examples[1000]["input_ids"].tolist() == tokenizer()(texts[1000], truncation=True, max_length=8)["input_ids"]
    assert len(examples.view([])) == 0
    raw = raw_text(["a"])
    assert len(encode_text(raw.splits["train"].select([]), raw, tokenizer(), 8)) == 0


def test_the_estimate_of_the_size_is_no_less_than_the_size() -> None:
    for max_length in (3, 4, 100):
        store = encode(TEXTS * 20, max_length=max_length).store
        used = next(found.size for found in cache.entries() if found.path == store.folder)
        lengths = tokens._digest(lambda: iter([[TEXTS * 20]]))[1]
        assert used <= tokens._size(lengths, tokenizer(), max_length) <= used + 4 * 2 * 20 * 40


def test_too_little_room_is_refused_before_anything_is_tokenised() -> None:
    raw, counting = raw_text(TEXTS), Counting(tokenizer())
    with pytest.raises(InputError, match=r"^cache.max_gb="):
        encode_text(raw.splits["train"], raw, counting, 8, limit=10)
    assert counting.calls == 0


def test_only_what_is_tokenised_is_said(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "flt"):
        encode(TEXTS)
        encode(TEXTS)
    assert [record.message for record in caplog.records] == ["tokenising 5 texts"]
