"""Raw texts and a tokenizer that knows their words."""

from __future__ import annotations

import datasets
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from flt.data.dataset_sources import Kind, RawData

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "a", "b", "c", "d", "e"]


def tokenizer(special: bool = True) -> PreTrainedTokenizerFast:
    """A BERT-like tokenizer of nine words, or a GPT-like one that adds nothing."""
    backend = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    if special:
        backend.post_processor = processors.TemplateProcessing(
            single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
        )
    names = ["input_ids", "token_type_ids", "attention_mask"] if special else ["input_ids", "attention_mask"]
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token="[PAD]", unk_token="[UNK]", model_input_names=names
    )


def raw_text(texts: list[str | None], pairs: list[str] | None = None) -> RawData:
    columns = {"text": texts, "label": [i % 2 for i in range(len(texts))], **({"other": pairs} if pairs else {})}
    kind: Kind = "pair" if pairs else "text"
    inputs = ("text", "other") if pairs else ("text",)
    return RawData({"train": datasets.Dataset.from_dict(columns)}, kind, inputs, "label", ("x", "y"))
