"""The small language model: trained once, on what it isn't measured on, to the same bits."""

from __future__ import annotations

import json
import math
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch
import transformers
from benchmarks.tools import small_lm
from benchmarks.tools.small_lm import HELD_OUT, SOURCES, Settings

from flt.core.errors import InputError

TINY = Settings(steps=4, vocabulary=280, layers=1, width=16, heads=2, context=12, batch=2)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("texts")
    for name, columns in SOURCES.items():
        rows = {column: [f"{name} has row {i} in {column}" for i in range(120)] for column in columns}
        split = ["train"] * 110 + ["test"] * 10
        datasets.Dataset.from_dict({**rows, "split": split}).to_parquet(folder / f"{name}.parquet")
    return folder


def test_what_is_measured_on_is_not_read_and_other_splits_are_neither(data: Path) -> None:
    read, measured = (list(small_lm.texts(data, held_out)) for held_out in (False, True))
    columns = sum(map(len, SOURCES.values()))
    assert len(measured) == columns * (110 // HELD_OUT)
    assert len(read) == columns * 110 - len(measured)
    assert not set(read) & set(measured)
    assert not any(f"row {i} " in text for text in [*read, *measured] for i in range(110, 120))


def test_it_is_trained_once_to_the_same_bits_and_loads(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    bits = []
    for place in ("first", "second"):
        monkeypatch.setenv("FLT_CACHE", str(tmp_path / place))
        folder = small_lm.small_lm(TINY, data)
        assert folder.parent == tmp_path / place
        bits.append((folder / "model.safetensors").read_bytes())
    assert bits[0] == bits[1]
    capsys.readouterr()
    assert small_lm.small_lm(TINY, data) == folder
    assert capsys.readouterr().err == ""
    model = transformers.AutoModelForCausalLM.from_pretrained(folder).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    stretches = small_lm.packed(tokenizer, small_lm.texts(data, held_out=True), TINY.context)
    about = json.loads((folder / "training.json").read_text())
    assert about["held_out_perplexity"] == pytest.approx(by_hand(model, stretches), rel=0.02)  # bf16 there


@torch.no_grad()
def by_hand(model: torch.nn.Module, stretches: np.ndarray) -> float:
    losses = []
    for row in stretches:
        scores = model(torch.from_numpy(row)[None]).logits[0].double().numpy()
        for at in range(1, len(row)):
            chosen = scores[at - 1]
            losses.append(math.log(np.exp(chosen - chosen.max()).sum()) + chosen.max() - chosen[row[at]])
    return math.exp(np.mean(losses))


def test_texts_are_packed_with_an_end_behind_each(data: Path) -> None:
    tokenizer = small_lm.train_tokenizer(TINY, data)
    flat = small_lm.packed(tokenizer, iter(["newsgroups20 has", "row"]), 1).ravel().tolist()
    ids = [tokenizer(text)["input_ids"] for text in ("newsgroups20 has", "row")]
    assert flat == [*ids[0], tokenizer.eos_token_id, *ids[1], tokenizer.eos_token_id]
    assert len(tokenizer) <= TINY.vocabulary


def test_the_learning_rate_rises_and_falls() -> None:
    rates = [small_lm._rate(step, Settings(steps=100)) for step in range(100)]
    assert rates[:5] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0])
    assert rates[4:] == sorted(rates[4:], reverse=True)
    assert rates[-1] == pytest.approx(0.1, abs=0.01)


def test_a_folder_without_the_texts_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"^FLT_DATA=[^\n]*newsgroups20\.parquet, glue_qnli\.parquet"):
        small_lm.small_lm(TINY, tmp_path)
