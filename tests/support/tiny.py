"""Tiny models of transformers, and text for them, for tests."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import datasets
import torch
import transformers
from tokenizers import Tokenizer, models, pre_tokenizers

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "good", "bad", "film", "book", "very", "not", "a"]
LAYERS = 3


def config(kind: str, **settings: Any) -> transformers.PreTrainedConfig:
    """A model type's configuration with three narrow blocks."""
    wide = {"hidden_size": 16, "num_hidden_layers": LAYERS, "num_attention_heads": 2, "intermediate_size": 16}
    words = {"vocab_size": len(WORDS)}
    if kind == "vit":
        return transformers.ViTConfig(**wide, image_size=8, patch_size=4, num_channels=1, **settings)
    if kind == "distilbert":
        return transformers.DistilBertConfig(dim=16, n_layers=LAYERS, n_heads=2, hidden_dim=16, **words, **settings)
    if kind == "gpt2":
        sizes = {"n_positions": 16, "n_embd": 16, "n_layer": LAYERS, "n_head": 2} | settings
        return transformers.GPT2Config(**sizes, **words, pad_token_id=0)
    if kind == "modernbert":
        ids = {"pad_token_id": 0, "bos_token_id": 2, "eos_token_id": 3, "cls_token_id": 2, "sep_token_id": 3}
        return transformers.ModernBertConfig(**wide, **words, **ids, **settings)
    if kind == "llama":
        return transformers.LlamaConfig(**wide, **words, pad_token_id=0, **settings)
    return transformers.AutoConfig.for_model(kind, **wide, **words, **settings)


def classifier(kind: str, classes: int = 3, seed: int = 0) -> transformers.PreTrainedModel:
    """A classifier with weights of the seed and no dropout."""
    off = {"bert": {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}}
    off |= {"distilbert": {"dropout": 0.0, "attention_dropout": 0.0, "seq_classif_dropout": 0.0}}
    off |= {"gpt2": {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}}
    auto: Any = transformers.AutoModelForSequenceClassification
    if kind == "vit":
        auto = transformers.AutoModelForImageClassification
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        # weights large enough for a change below to show above
        wide = config(kind, num_labels=classes, initializer_range=0.5, **off.get(kind, {}))
        return auto.from_config(wide).eval()


def save_bert(folder: Path, seed: int = 0, kind: str = "bert") -> Path:
    """A folder with a tiny BERT, or DistilBERT, and its vocabulary."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        transformers.AutoModel.from_config(config(kind, initializer_range=0.5)).save_pretrained(folder)
    (folder / "vocab.txt").write_text("\n".join(WORDS))
    return folder


def save_reviews(path: Path, rows: int = 120, classes: int = 2) -> Path:
    """A csv of texts of one to eight words, in two classes that words tell apart, or in more."""
    generator = torch.Generator().manual_seed(0)
    texts, labels = [], []
    for i in range(rows):
        words = [WORDS[int(k)] for k in torch.randint(7, len(WORDS), (1 + i % 8,), generator=generator)]
        texts.append(" ".join([("good", "bad")[i % 2], *words]))
        labels.append(i % classes)
    names = [("good film", "bad film", "good book", "bad book")[label] for label in labels]
    datasets.Dataset.from_dict({"text": texts, "label": labels, "label_name": names}).to_csv(path)
    return path


def word_tokenizer(**special: str) -> transformers.PreTrainedTokenizerFast:
    """A tokenizer that knows WORDS alone and adds nothing, as those of GPT-like models."""
    backend = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return transformers.PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="[UNK]", **special)


def save_decoder(folder: Path, kind: str = "gpt2", seed: int = 0, **settings: Any) -> Path:
    """A folder with a tiny causal language model, whose tokenizer ends texts with [SEP] and has nothing to pad with."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        made = config(kind, initializer_range=0.5, bos_token_id=3, eos_token_id=3, **settings)
        transformers.AutoModelForCausalLM.from_config(made).save_pretrained(folder)
    word_tokenizer(eos_token="[SEP]").save_pretrained(folder)
    return folder


def save_instructions(path: Path, rows: int = 120, categories: Sequence[str] = ("open_qa", "closed_qa")) -> Path:
    """A table like Dolly's: every other context is empty, clients are three."""
    generator = torch.Generator().manual_seed(0)

    def text(most: int) -> str:
        picked = torch.randint(
            5, len(WORDS), (1 + int(torch.randint(most, (), generator=generator)),), generator=generator
        )
        return " ".join(WORDS[int(k)] for k in picked)

    table = [
        {"instruction": text(4), "context": text(6) if i % 2 else "", "response": text(5),
         "category": categories[i % len(categories)], "client": i % 3}
        for i in range(rows)
    ]  # fmt: skip
    datasets.Dataset.from_list(table).to_parquet(path)
    return path
