"""Answers are those of transformers' own ``generate`` on the loaded model."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers
from causal_runs import causal_run

import flt
from flt.core.errors import InputError
from flt.data.instructions import prompt_tokens, tokenize
from flt.inference.models import device_of
from flt.inference.text_generator import Answer, Sampling, TextGenerator

PROMPTS = ["### Task:\ngood book\n\n### Answer:\n", "very bad film not a book", "film"]


@pytest.fixture(scope="module")
def generator() -> TextGenerator:
    return TextGenerator(causal_run("one") / "adapter")


def by_transformers(prompt: str, seed: int = 0, **arguments: Any) -> str:
    """The answer of ``flt.load``'s model, up to its first end-of-text token."""
    folder = causal_run("one") / "adapter"
    model, tokenizer = flt.load(folder), transformers.AutoTokenizer.from_pretrained(folder)
    ids = tokenizer(prompt, return_tensors="pt")["input_ids"]
    torch.manual_seed(seed)
    written = model.generate(
        input_ids=ids, attention_mask=torch.ones_like(ids), pad_token_id=tokenizer.eos_token_id, **arguments
    )
    return tokenizer.decode(written[0, ids.shape[1] :], skip_special_tokens=True)


@pytest.mark.parametrize("prompt", PROMPTS)
def test_a_greedy_answer_is_that_of_transformers(prompt: str, generator: TextGenerator) -> None:
    (answer,) = generator.answer([prompt], Sampling(max_new_tokens=5))
    assert answer.text == by_transformers(prompt, do_sample=False, max_new_tokens=5)


@pytest.mark.parametrize("seed", [0, 3])
def test_a_drawn_answer_is_that_of_transformers_with_the_same_seed(seed: int, generator: TextGenerator) -> None:
    settings = {"temperature": 1.5, "top_p": 0.9, "top_k": 6, "max_new_tokens": 6}
    before = torch.random.get_rng_state()
    (answer,) = generator.answer([PROMPTS[0]], Sampling(**settings, seed=seed))
    assert torch.equal(torch.random.get_rng_state(), before)
    assert answer.text == by_transformers(PROMPTS[0], seed, do_sample=True, **settings) != ""


def test_the_seed_decides_what_is_drawn(generator: TextGenerator) -> None:
    found = {generator.answer([PROMPTS[2]], Sampling(3.0, seed=seed))[0].text for seed in range(6)}
    assert len(found) > 2


def test_answers_at_once_are_those_one_by_one(generator: TextGenerator) -> None:
    greedy = Sampling(max_new_tokens=6)
    assert generator.answer(PROMPTS, greedy) == [generator.answer([prompt], greedy)[0] for prompt in PROMPTS]


def test_a_stream_is_the_answer_in_pieces(generator: TextGenerator) -> None:
    lengths = set()
    for seed in range(6):
        pieces: list[str] = []
        (answer,) = generator.answer([PROMPTS[1]], Sampling(3.0, seed=seed, max_new_tokens=6), pieces.append)
        assert "".join(pieces) == answer.text
        lengths.add(len(pieces))
    assert max(lengths) > 2


def test_an_answer_says_whether_the_model_ended_it(generator: TextGenerator) -> None:
    end, first = generator.tokenizer.eos_token_id, generator.tokenizer.encode("good film")
    assert generator._answer([*first, end, end], end) == Answer("good film", "stop")
    assert generator._answer(first, end) == Answer("good film", "length")


def test_an_answer_fills_the_positions_of_the_model_at_most(generator: TextGenerator) -> None:
    long = " ".join(["good"] * 15)
    assert generator.positions == 16
    (answer,) = generator.answer([long], Sampling())
    assert len(answer.text.split()) <= 1
    with pytest.raises(InputError, match=r"^prompt=<16 tokens>: allowed is at most 15 tokens for this model$"):
        generator.answer([f"{long} good"], Sampling())
    with pytest.raises(InputError, match=r"^max_new_tokens=3: .* allowed is an integer from 1 to 1$"):
        generator.answer([long], Sampling(max_new_tokens=3))


def test_a_prompt_has_the_tokens_of_training() -> None:
    tokenizer = transformers.AutoTokenizer.from_pretrained(causal_run("one") / "adapter")
    for text in (*PROMPTS, ""):
        found = tokenize([[text], [""], ["good"]], tokenizer, 100)
        (row,), ((before,),) = found["input_ids"], found["targets"]
        assert prompt_tokens(text, tokenizer) == row[:before]


@pytest.mark.parametrize(
    ("settings", "line"),
    [
        ({"temperature": -1.0}, "temperature=-1.0: allowed is a number >= 0"),
        ({"temperature": float("nan")}, "temperature=nan: allowed is a number >= 0"),
        ({"top_p": 0.0}, r"top_p=0.0: allowed is a number in \(0, 1\]"),
        ({"top_k": -1}, "top_k=-1: allowed is an integer >= 0"),
        ({"max_new_tokens": 0}, "max_new_tokens=0: allowed is an integer >= 1"),
        ({"seed": -1}, "seed=-1: allowed is an integer >= 0"),
    ],
)
def test_a_setting_out_of_range_is_one_line(settings: dict[str, Any], line: str) -> None:
    with pytest.raises(InputError, match=f"^{line}$"):
        Sampling(**settings)


@pytest.mark.parametrize("name", ["cuda:99", "gpu", "", "meta0"])
def test_a_device_that_is_not_there_is_one_line(name: str) -> None:
    with pytest.raises(InputError, match=f"^device={name}: .*allowed is auto, cpu"):
        device_of(name)


def test_the_chosen_device_holds_the_model(generator: TextGenerator) -> None:
    assert device_of("cpu") == torch.device("cpu")
    assert device_of("auto").type == ("cuda" if torch.cuda.is_available() else "cpu")
    assert {parameter.device for parameter in generator.model.parameters()} == {generator.device}
