"""Models of transformers for texts and images: targets are found, an adapter trains, and plain peft has its logits."""

from __future__ import annotations

import copy
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from peft import PeftModel
from torch import Tensor, nn

from flt.algorithm.recipe import Recipe
from flt.algorithm.rule.mean import Mean
from flt.core.errors import InputError
from flt.export.metadata import Card
from flt.export.write import export
from flt.models.adapters.lora import LoraSettings, attach
from flt.models.causal import CausalModule
from flt.models.layer_names import head_name, target_modules
from flt.models.module import ClientModule, Optimizer
from flt.server.aggregation import ServerAggregation

WORDS, CLASSES = 20, 3
WIDE = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 16}
IDS = {"vocab_size": WORDS, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
COMMON = {**WIDE, **IDS}
DECODERS = {
    "gpt2": ({"n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 16, **IDS}, ["c_attn"]),
    "llama": (COMMON, ["q_proj", "v_proj"]),
    "qwen2": ({**COMMON, "num_key_value_heads": 1}, ["q_proj", "v_proj"]),
    "mistral": ({**COMMON, "num_key_value_heads": 1}, ["q_proj", "v_proj"]),
    "gemma": ({**COMMON, "num_key_value_heads": 1, "head_dim": 8}, ["q_proj", "v_proj"]),
    "opt": ({**COMMON, "ffn_dim": 16, "word_embed_proj_dim": 16, "max_position_embeddings": 16}, ["q_proj", "v_proj"]),
    "gpt_neox": (COMMON, ["query_key_value"]),
    "gpt_neo": (
        {**IDS, "hidden_size": 16, "num_layers": 2, "num_heads": 2, "attention_types": [[["global"], 2]]},
        ["q_proj", "v_proj"],
    ),
    "gptj": ({**IDS, "n_embd": 16, "n_layer": 2, "n_head": 2, "rotary_dim": 4}, ["q_proj", "v_proj"]),
    "bloom": ({**IDS, "hidden_size": 16, "n_layer": 2, "n_head": 2}, ["query_key_value"]),
    "falcon": (COMMON, ["query_key_value"]),
    "phi": (COMMON, ["q_proj", "v_proj", "fc1", "fc2"]),
    "qwen3": ({**COMMON, "num_key_value_heads": 1, "head_dim": 8}, ["q_proj", "v_proj"]),
    "olmo2": (COMMON, ["q_proj", "v_proj"]),
}
ENCODERS = {
    "bert": (COMMON, ["query", "value"]),
    "roberta": (COMMON, ["query", "value"]),
    "electra": ({**COMMON, "embedding_size": 8}, ["query", "value"]),
    "albert": ({**COMMON, "embedding_size": 8}, ["query", "value"]),
    "mpnet": (COMMON, ["q", "v"]),
    "deberta": ({**COMMON, "relative_attention": True, "pos_att_type": ["c2p"]}, ["in_proj"]),
    "deberta-v2": ({**COMMON, "relative_attention": True, "pos_att_type": ["c2p"]}, ["query_proj", "value_proj"]),
    "distilbert": ({"dim": 16, "n_layers": 2, "n_heads": 2, "hidden_dim": 16, **IDS}, ["q_lin", "v_lin"]),
    "modernbert": ({**COMMON, "cls_token_id": 1, "sep_token_id": 2}, None),
    "xlm-roberta": (COMMON, ["query", "value"]),
    "camembert": (COMMON, ["query", "value"]),
    "gpt2": (DECODERS["gpt2"][0], ["c_attn"]),
    "llama": (COMMON, ["q_proj", "v_proj"]),
}
SQUARE = {"image_size": 32, "patch_size": 4, "num_channels": 3}
IMAGES = {
    "vit": ({**WIDE, **SQUARE}, ["q_proj", "v_proj"]),
    "swin": ({**SQUARE, "embed_dim": 8, "depths": [1, 1], "num_heads": [2, 2], "window_size": 4}, None),
    "convnext": ({"num_stages": 2, "hidden_sizes": [8, 16], "depths": [1, 1]}, None),
}


def made(kind: str, settings: dict[str, Any], auto: Any, **more: Any) -> transformers.PreTrainedModel:
    config = transformers.AutoConfig.for_model(kind, **settings, **more)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = auto.from_config(config)
    for module in model.modules():
        if isinstance(module, nn.Dropout) or "Dropout" in type(module).__name__:
            module.p = module.drop_prob = 0.0  # DeBERTa's own kind calls it drop_prob
    return model


def batch(labels: Tensor) -> dict[str, Tensor]:
    ids = torch.randint(3, WORDS, (4, 7), generator=torch.Generator().manual_seed(0))
    ids[0, 5:] = 0
    return {"input_ids": ids, "attention_mask": (ids > 0).long(), "labels": labels}


def pixels(labels: Tensor) -> dict[str, Tensor]:
    return {"pixel_values": torch.rand(4, 3, 32, 32, generator=torch.Generator().manual_seed(0)), "labels": labels}


@torch.no_grad()
def logits(model: nn.Module, examples: Any = batch) -> Tensor:
    inputs = {name: value for name, value in examples(torch.zeros(4)).items() if name != "labels"}
    found = model.eval()(**inputs).logits
    return found[inputs["attention_mask"] > 0] if found.dim() == 3 else found


def check(module: ClientModule, plain: nn.Module, labels: Tensor, folder: Path, examples: Any = batch) -> None:
    """Some steps; then what is exported has, on the plain model, the logits of the module, which have moved."""
    layout = attach(module, LoraSettings(rank=2), 0)
    assert layout.layers
    before, optimizer = logits(module.model, examples), module.configure_optimizers()
    losses = []
    for _ in range(3):
        loss = module.model.train()(**examples(labels)).loss
        losses.append(loss.item())
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    assert losses[-1] < losses[0]
    server = ServerAggregation(Recipe(Mean()), layout, 1, 0, {})
    state = server.initial({name: parameter.detach() for name, parameter in module.named_parameters()})
    adapter = export(module, layout, state, folder, Card("base"))
    with warnings.catch_warnings():
        warnings.filterwarnings("error", ".*(missing|unexpected).*")
        loaded = PeftModel.from_pretrained(plain, adapter)  # type: ignore[arg-type]  # any module will do
    torch.testing.assert_close(logits(loaded, examples), logits(module.model, examples), rtol=0, atol=1e-6)
    assert not torch.allclose(logits(loaded, examples), before, atol=1e-4)


SLOW = ("mistral", "gemma", "gpt_neo", "gptj", "bloom", "falcon", "phi", "qwen3", "deberta", "xlm-roberta", "bert")
"""Types that are like others, or old."""


def kinds(table: dict[str, Any]) -> list[Any]:
    return [pytest.param(kind, marks=[pytest.mark.slow] if kind in SLOW else []) for kind in table]


@pytest.mark.parametrize("kind", kinds(DECODERS))
@pytest.mark.filterwarnings("ignore:.*fan_in_fan_out.*")
def test_an_adapter_of_a_decoder_trains_and_loads_in_peft(kind: str, tmp_path: Path) -> None:
    settings, targets = DECODERS[kind]
    model = made(kind, settings, transformers.AutoModelForCausalLM)
    assert head_name(model) == "none"
    assert target_modules(model) == targets
    assert not any("lm_head" in name or "embed_out" in name for name in target_modules(model))
    labels = batch(torch.zeros(4))["input_ids"].clone()
    labels[:, :3] = labels[0, 5:] = -100
    check(CausalModule(model, Optimizer()), copy.deepcopy(model), labels, tmp_path)


@pytest.mark.parametrize("kind", kinds(ENCODERS))
@pytest.mark.filterwarnings("ignore:.*fan_in_fan_out.*")
def test_an_adapter_of_a_classifier_trains_and_loads_in_peft(kind: str, tmp_path: Path) -> None:
    settings, targets = ENCODERS[kind]
    model = made(kind, settings, transformers.AutoModelForSequenceClassification, num_labels=CLASSES)
    assert targets is None or target_modules(model) == targets
    check(ClientModule(model, CLASSES, Optimizer()), copy.deepcopy(model), torch.tensor([0, 1, 2, 1]), tmp_path)


@pytest.mark.parametrize("kind", IMAGES)
def test_an_adapter_of_an_image_model_trains_and_loads_in_peft(kind: str, tmp_path: Path) -> None:
    settings, targets = IMAGES[kind]
    model = made(kind, settings, transformers.AutoModelForImageClassification, num_labels=CLASSES)
    assert targets is None or target_modules(model) == targets
    module, plain = ClientModule(model, CLASSES, Optimizer()), copy.deepcopy(model)
    check(module, plain, torch.tensor([0, 1, 2, 1]), tmp_path, pixels)


def test_an_image_model_whose_only_linear_layer_is_the_head_has_nothing_to_adapt() -> None:
    settings = {"embedding_size": 8, "hidden_sizes": [8], "depths": [1], "layer_type": "basic"}
    model = made("resnet", settings, transformers.AutoModelForImageClassification, num_labels=CLASSES)
    with pytest.raises(InputError, match="the head is the only linear layer"):
        attach(ClientModule(model, CLASSES, Optimizer()), LoraSettings(rank=2), 0)
