"""Heads and targets: names of layers, for the usual models and for plain modules."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import transformers
from torch import nn
from transformers.pytorch_utils import Conv1D

from flt.core.errors import InputError
from flt.models.adapters.lora import LoraSettings, attach
from flt.models.layer_names import head_name, target_modules, whole_modules
from flt.models.provenance import Origin, set_origin

TINY = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16, "vocab_size": 8}


@pytest.mark.parametrize(
    ("model", "config", "targets", "head"),
    [
        ("BertForSequenceClassification", transformers.BertConfig(**TINY), ["query", "value"], "classifier"),
        ("RobertaForSequenceClassification", transformers.RobertaConfig(**TINY), ["query", "value"], "classifier"),
        ("ViTForImageClassification", transformers.ViTConfig(), ["q_proj", "v_proj"], "classifier"),
        (
            "DistilBertForSequenceClassification",
            transformers.DistilBertConfig(dim=8, n_layers=1, n_heads=1, hidden_dim=8, vocab_size=8),
            ["q_lin", "v_lin"],
            "classifier",
        ),
    ],
)
def test_target_and_head_names_of_usual_models(model: str, config: object, targets: list[str], head: str) -> None:
    with torch.device("meta"):
        built = getattr(transformers, model)(config)
    assert target_modules(built) == targets
    assert head_name(built) == head


def test_a_model_without_blocks_has_a_head_that_was_drawn() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2))
    set_origin(model, Origin(("2.weight", "2.bias")))
    assert whole_modules(model, None) == ["2"]


def test_target_and_head_names_of_a_plain_module() -> None:
    model = nn.ModuleDict(
        {"classifier": nn.Linear(4, 4), "block": nn.Sequential(nn.Linear(4, 4)), "out": nn.Linear(4, 2)}
    )
    assert head_name(model) == "out"
    assert target_modules(model) == ["classifier", "block.0"]


@pytest.mark.parametrize("tied", [True, False])
def test_a_head_that_is_the_embedding_too_is_refused(tied: bool) -> None:
    config = transformers.LlamaConfig(**TINY, tie_word_embeddings=tied, pad_token_id=0)
    model = transformers.LlamaForCausalLM(config)
    if tied:
        with pytest.raises(InputError, match=r"^adapter\.head=lm_head: [^\n]*embedding[^\n]*none$"):
            attach(model, LoraSettings(head="lm_head"), 0)
    else:
        assert attach(model, LoraSettings(head="lm_head"), 0).names(["head"]) == ["lm_head.weight"]
    assert attach(transformers.LlamaForCausalLM(config), LoraSettings(), 0).names(["head"]) == []


def test_a_model_without_linear_layers_is_one_line() -> None:
    with pytest.raises(InputError, match=r"^[^\n]*no head[^\n]*$"):
        head_name(nn.Sequential(nn.ReLU()))
    with pytest.raises(InputError, match=r"^adapter\.target_modules[^\n]*$"):
        target_modules(nn.Sequential(nn.Linear(2, 2)))


def held(**parts: nn.Module) -> nn.Module:
    """A user's module, in which the models lie deeper than its own layers."""
    module = nn.Module()
    for name, part in parts.items():
        module.add_module(
            name, nn.ModuleDict({"net": part}) if isinstance(part, transformers.PreTrainedModel) else part
        )
    return module


BERT = transformers.BertConfig(**TINY)
GPT2 = transformers.GPT2Config(n_embd=16, n_layer=1, n_head=2, vocab_size=8, n_positions=8)
QUERIES = ["encoder.layer.0.attention.self.query", "encoder.layer.0.attention.self.value"]
INSIDE: dict[str, tuple[dict[str, Callable[[], nn.Module]], list[str], list[str]]] = {
    "a language model": (
        {"lm": lambda: transformers.GPT2LMHeadModel(GPT2)},
        ["lm.net.transformer.h.0.attn.c_attn"],
        [],
    ),
    "a classifier": (
        {"m": lambda: transformers.BertForSequenceClassification(BERT)},
        [f"m.net.bert.{name}" for name in QUERIES],
        ["m.net.classifier"],
    ),
    "a classifier of two layers": (
        {"m": lambda: transformers.RobertaForSequenceClassification(transformers.RobertaConfig(**TINY))},
        [f"m.net.roberta.{name}" for name in QUERIES],
        ["m.net.classifier"],
    ),
    "an encoder after its head": (
        {"out": lambda: nn.Linear(16, 3), "m": lambda: transformers.BertModel(BERT)},
        [f"m.net.{name}" for name in QUERIES],
        ["out"],
    ),
    "a decoder's body and a head": (
        {"m": lambda: transformers.GPT2Model(GPT2), "out": lambda: nn.Linear(16, 3)},
        ["m.net.h.0.attn.c_attn"],
        ["out"],
    ),
    "two models and own layers": (
        {
            "a": lambda: transformers.BertForSequenceClassification(BERT),
            "b": lambda: transformers.GPT2Model(GPT2),
            "mix": lambda: nn.Linear(4, 4),
            "out": lambda: nn.Linear(4, 3),
        },
        [*(f"a.net.bert.{name}" for name in QUERIES), "a.net.classifier", "b.net.h.0.attn.c_attn", "mix"],
        ["out"],
    ),
    "masked words": (
        {"m": lambda: transformers.BertForMaskedLM(BERT)},
        [f"m.net.bert.{name}" for name in QUERIES],
        [],
    ),
    "a model that isn't known": (
        {
            "m": lambda: transformers.ResNetForImageClassification(
                transformers.ResNetConfig(embedding_size=8, hidden_sizes=[8], depths=[1], layer_type="basic")
            ),
            "mix": lambda: Conv1D(4, 4),
            "out": lambda: nn.Linear(4, 3),
        },
        ["m.net.classifier.1", "mix"],
        ["out"],
    ),
}


@pytest.mark.parametrize("case", INSIDE)
def test_models_of_transformers_are_found_wherever_they_lie_in_a_module(case: str) -> None:
    makers, targets, head = INSIDE[case]
    module = held(**{name: make() for name, make in makers.items()})
    assert target_modules(module) == targets
    assert whole_modules(module, None) == head
