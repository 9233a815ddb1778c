"""Chat templates: they write a run's prompts with the tokens that flt trained on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import datasets
import pytest
import tiny
import transformers
from jinja2 import TemplateError
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors

from flt.data.chat_template import main_column, message_key, message_keys, with_chat_template
from flt.data.config import DataConfig
from flt.data.dataset_sources import RawData
from flt.data.instructions import encode_instructions
from flt.data.templates import Template, choose, choose_template

ROWS = [
    {"instruction": "good film", "context": "a very bad book", "response": "not a film"},
    {"instruction": "a book", "context": "  ", "response": "very good"},
    {"instruction": "film {{ 1 }} {% if %} 'x' \"y\" \\n", "context": "", "response": "bad"},
]
PROMPTS = [
    [],
    ["{instruction} {context}", "{instruction}"],
    ['Q: {{x}} {context}\n"it\'s" {instruction}\n\\A: é😀 '],
    ["{context} {instruction} {instruction} good", "good {instruction}", "{instruction} bad"],
]


def words(**special: str) -> Any:
    return tiny.word_tokenizer(eos_token="[SEP]", **special)


def with_start(prepend: str = "always") -> Any:
    """A tokenizer that puts a start token before each text, and a blank before the first word, as Llama's do."""
    vocabulary = {
        word: i
        for i, word in enumerate(["<unk>", "<s>", "</s>", *(chr(c) for c in range(33, 127)), "\u2581", "é", "\n"])
    }
    backend = Tokenizer(models.BPE(vocabulary, [], unk_token="<unk>", fuse_unk=False))
    backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=prepend, split=False)  # type: ignore[arg-type]
    backend.decoder = decoders.Metaspace()
    backend.add_special_tokens([AddedToken(word, special=True) for word in ("<s>", "</s>", "<unk>")])
    backend.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token="<s>", eos_token="</s>", unk_token="<unk>", pad_token="</s>"
    )


TOKENIZERS = {"words": words, "start": with_start, "start first": lambda: with_start("first"),
              "own template": lambda: words(chat_template="{{ 'film' }}")}  # fmt: skip


@pytest.mark.parametrize("prompts", PROMPTS)
@pytest.mark.parametrize("kind", TOKENIZERS)
def test_a_chat_template_gives_the_tokens_that_flt_trained_on(
    kind: str, prompts: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FLT_CACHE", str(tmp_path / "cache"))
    tokenizer, dataset = TOKENIZERS[kind](), datasets.Dataset.from_list(ROWS).add_column("label", [0] * len(ROWS))
    cfg = DataConfig(response="response", prompts=prompts)
    templates = choose(cfg, dataset.features)
    inputs = tuple(dict.fromkeys(name for template in templates for name in template.columns))
    raw = RawData({"train": dataset}, "causal", inputs, "label", ("all",), "response", templates)
    examples = encode_instructions(dataset, raw, tokenizer, 1000)
    found = with_chat_template(tokenizer, templates, cfg.text)
    found.save_pretrained(tmp_path / "saved")
    stranger = transformers.AutoTokenizer.from_pretrained(tmp_path / "saved")
    main = main_column(templates, cfg.text)
    for i, row in enumerate(ROWS):
        message = {"role": "user", **{message_key(name, main): row[name] for name in inputs}}
        item = examples[i]
        trained = item["input_ids"][: int((item["labels"] == -100).sum())].tolist()
        assert stranger.apply_chat_template([message], add_generation_prompt=True, return_dict=False) == trained
        answer = {"role": "assistant", "content": row["response"]}
        start, end = stranger.bos_token or "", stranger.eos_token
        text = choose_template(templates, {name: row[name] for name in inputs}).fill(row)
        written = stranger.apply_chat_template([message, answer], tokenize=False)
        assert written.removeprefix(start).removeprefix(" ") == f"{text}{row['response']}{end}"
    assert tokenizer.chat_template != found.chat_template, "the tokenizer of the run stays as it is"


def test_the_content_of_a_message_is_the_column_of_the_text() -> None:
    parsed = [Template.parse(text, ["a", "b", "role"]) for text in ("{b} {a} {role}", "{b} {a}")]
    assert main_column(parsed, None) == "b"
    assert main_column(parsed, "a") == "a"
    assert main_column(parsed, "role") == "b", "a message without the other columns has none"
    assert [message_key(name, "b") for name in ("a", "b", "role")] == ["a", "content", "column_role"]
    assert list(message_keys(parsed, None).items()) == [("b", "content"), ("a", "a"), ("role", "column_role")]


def test_a_message_of_another_role_is_refused() -> None:
    found = with_chat_template(words(), [Template.parse("{a}", ["a"])], None)
    with pytest.raises(TemplateError, match="of a user and an assistant alone"):
        found.apply_chat_template([{"role": "system", "content": "be good"}])


@pytest.mark.parametrize("text", ["{a}", "x {{y}} {a} z", "{a}{b}{{", "}}{b} t"])
def test_a_template_is_written_as_it_was_read(text: str) -> None:
    assert str(Template.parse(text, ["a", "b"])) == text
