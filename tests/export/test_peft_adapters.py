"""Adapters that peft itself saved: flt.load gives the logits of the PeftModel, or a line that says to use peft."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import peft
import pytest
import tiny
import torch
import transformers
from commands import QUICK, in_empty_folder
from exports import logits, words
from packaging.version import Version
from slowly import mostly_slowly
from torch import nn

import flt
from flt.api import train as train_cfg
from flt.run.compose import load_config

BATCH = {**words(), "token_type_ids": torch.zeros(4, 6, dtype=torch.long)}


def trained(base: Any, **settings: Any) -> Any:
    """An adapter of peft whose trainable tensors have all moved."""
    adapted = peft.get_peft_model(base, peft.LoraConfig(**{"r": 2, **settings}))
    with torch.no_grad():
        generator = torch.Generator().manual_seed(1)
        for parameter in adapted.parameters():
            if parameter.requires_grad:
                parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator))
    return adapted.eval()


def check_loaded(base: Callable[[], nn.Module], folder: Path, batch: dict[str, torch.Tensor], **settings: Any) -> None:
    """Saves an adapter with peft, and compares flt's model with peft's own and with the base."""
    adapted = trained(base(), **settings)
    adapted.save_pretrained(str(folder))
    expected = logits(adapted, batch)
    loaded = flt.load(folder, base())
    assert torch.equal(logits(loaded, batch), expected)
    assert not torch.allclose(logits(base(), batch), expected, atol=1e-3)


def bert() -> nn.Module:
    return tiny.classifier("bert")


MADE: dict[str, dict[str, Any]] = {
    "plain": {},
    "SEQ_CLS, which adds the head": {"task_type": "SEQ_CLS"},
    "FEATURE_EXTRACTION": {"task_type": "FEATURE_EXTRACTION"},
    "gaussian": {"init_lora_weights": "gaussian"},
    "random": {"init_lora_weights": False},
    "orthogonal": {"init_lora_weights": "orthogonal"},
    "EVA": {"init_lora_weights": "eva"},
    "rank-stabilised": {"use_rslora": True, "r": 4, "lora_alpha": 8},
    "rank-stabilised, ranks differ": {"use_rslora": True, "rank_pattern": {"query": 3}, "alpha_pattern": {"value": 5}},
    "a pattern": {"target_modules": r".*\.(query|dense)"},
    "a pattern that names one layer": {"target_modules": r"bert\.encoder\.layer\.1\.attention\.self\.key"},
    "some blocks": {"target_modules": ["query", "value"], "layers_to_transform": [0, 2]},
    "one block": {"target_modules": ["query", "value"], "layers_to_transform": 1},
    "all linear layers": {"target_modules": "all-linear"},
    "all linear layers, with a head": {"target_modules": "all-linear", "task_type": "SEQ_CLS"},
    "biases of the layers": {"bias": "lora_only", "task_type": "SEQ_CLS"},
    "a revision": {"revision": "main"},
    "names of other models": {"target_modules": ["query", "q_proj"], "modules_to_save": ["classifier", "lm_head"]},
    "a module that is saved by its last name": {"modules_to_save": ["pooler"]},
    "every layer has its own rank": {"r": 64, "rank_pattern": {"query": 3, "value": 2}},
    "a rank by a full name": {"rank_pattern": {"^bert.encoder.layer.0.attention.self.query": 5}},
    "dropout": {"lora_dropout": 0.5},
}
QUICK_MADE = (
    "plain", "SEQ_CLS, which adds the head", "rank-stabilised, ranks differ", "a pattern", "some blocks",
    "all linear layers", "biases of the layers", "names of other models",
)  # fmt: skip


@pytest.mark.parametrize("case", mostly_slowly(MADE, QUICK_MADE))
def test_an_adapter_of_peft_has_pefts_logits(case: str, tmp_path: Path) -> None:
    if MADE[case].get("bias") and Version(peft.__version__) < Version("0.21"):
        pytest.skip("this version of peft doesn't save the biases")
    check_loaded(bert, tmp_path / "adapter", BATCH, **MADE[case])


@pytest.mark.parametrize("task", [None, "CAUSAL_LM"])
def test_an_adapter_of_transposed_layers_has_pefts_logits(task: str | None, tmp_path: Path) -> None:
    """GPT-2's layers are Conv1D."""
    folder = tiny.save_decoder(tmp_path / "gpt2")

    def gpt2() -> Any:
        return transformers.GPT2LMHeadModel.from_pretrained(folder).eval()

    check_loaded(gpt2, tmp_path / "adapter", words(), task_type=task, target_modules=["c_attn", "c_proj"])


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "DoRA": ({"use_dora": True}, "use_dora=True"),
    "all biases": ({"bias": "all"}, "bias=all"),
    "PiSSA": ({"init_lora_weights": "pissa"}, "init_lora_weights=pissa"),
    "biases of the factors": ({"lora_bias": True}, "lora_bias=True"),
    "an embedding": ({"target_modules": ["query", "word_embeddings"]}, "word_embeddings: it is Embedding"),
    "an embedding, by a pattern": (
        {"target_modules": r".*\.(query|word_embeddings)"},
        "word_embeddings.lora_embedding_A is none",
    ),
    "excluded layers": ({"exclude_modules": ["key"], "target_modules": ["key", "query"]}, "exclude_modules="),
    "ranks by a pattern": ({"rank_pattern": {r".*\.0\..*": 3}}, "rank_pattern="),
    "tokens": ({"trainable_token_indices": [1, 2]}, "trainable_token_indices="),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_only_peft_can_load_is_refused_in_a_line_that_says_so(case: str, tmp_path: Path) -> None:
    settings, why = REFUSED[case]
    trained(bert(), **settings).save_pretrained(str(tmp_path / "adapter"))
    with pytest.raises(flt.InputError, match="by peft itself") as caught:
        flt.load(tmp_path / "adapter", bert())
    assert why in str(caught.value)


def test_an_adapter_of_peft_needs_its_base(tmp_path: Path) -> None:
    trained(bert()).save_pretrained(str(tmp_path / "adapter"))
    with pytest.raises(flt.InputError, match="model=None: the folder doesn't say what its base is"):
        flt.load(tmp_path / "adapter")


def change(folder: Path, **changes: Any) -> None:
    path = folder / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


DAMAGED: dict[str, tuple[dict[str, Any], dict[str, Any], str]] = {
    "a layer more": ({}, {"target_modules": ["query"]}, "is none"),
    "a layer less": ({}, {"target_modules": ["query", "value", "key"]}, "key.lora_A.weight is missing"),
    "another rank": ({}, {"r": 3}, "size mismatch for "),
    "another rank beside a pattern": ({"target_modules": ".*query"}, {"r": 3}, "size mismatch for "),
    "no biases": ({}, {"bias": "lora_only"}, "base_layer.bias is missing"),
    "a head that isn't there": (
        {},
        {"modules_to_save": ["classifier"]},
        "classifier.weight is missing|classifier.bias",
    ),
    "a block that isn't chosen": (
        {},
        {"layers_to_transform": [0], "target_modules": ["value"]},
        "query.lora_A.weight is none",
    ),
}


@pytest.mark.parametrize("case", DAMAGED)
def test_a_card_that_disagrees_with_the_weights_is_refused(case: str, tmp_path: Path) -> None:
    settings, changes, why = DAMAGED[case]
    trained(bert(), **settings).save_pretrained(str(tmp_path / "adapter"))
    change(tmp_path / "adapter", **changes)
    base = bert()
    names = [name for name, _ in base.named_modules()]
    with pytest.raises(flt.InputError, match=why):
        flt.load(tmp_path / "adapter", base)
    assert [name for name, _ in base.named_modules()] == names


@pytest.mark.slow
@pytest.mark.parametrize("algo", ["fedit", "hafl"])
def test_an_export_that_peft_saved_again_has_the_same_logits(
    algo: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    in_empty_folder(tmp_path, monkeypatch)
    model, data = tiny.save_bert(tmp_path / "bert"), tiny.save_reviews(tmp_path / "reviews.csv")
    texts = [f"model={model}", f"data={data}", "model.max_length=16", "batch_size=4"]
    quick = [f"{key}={value}" for key, value in QUICK.items()]
    exported = tmp_path / train_cfg(load_config([*quick, *texts, f"algo={algo}"])).exported
    first: Any = flt.load(exported)
    expected = logits(first, BATCH)
    again = tmp_path / "again"
    first.save_pretrained(str(again))
    assert json.loads((again / "adapter_config.json").read_text())["auto_mapping"]
    base = flt.load(exported).unload()  # type: ignore[operator]  # peft's method
    assert torch.equal(logits(flt.load(again, base), BATCH), expected)
    shutil.copy(exported / "flt_base.json", again)  # as if it was saved over the export
    assert torch.equal(logits(flt.load(again), BATCH), expected)
