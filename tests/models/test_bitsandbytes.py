"""A quantised base: how it is asked for, and one line where it can't be had. No test here has bitsandbytes or a GPU."""

from __future__ import annotations

import importlib.metadata
import importlib.util
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
import transformers
from commands import in_empty_folder, train
from torch import nn

from flt.core.errors import InputError
from flt.models import backbones
from flt.models.adapters.lora import LoraSettings, attach
from flt.models.bitsandbytes import quantisation
from flt.models.config import ModelConfig


@pytest.fixture
def stand_ins(monkeypatch: pytest.MonkeyPatch) -> None:
    """A CUDA device and a package that aren't there."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    find, version = importlib.util.find_spec, importlib.metadata.version
    monkeypatch.setattr(importlib.util, "find_spec", lambda n, *a: object() if n == "bitsandbytes" else find(n, *a))
    monkeypatch.setattr(importlib.metadata, "version", lambda n: "0.48.0" if n == "bitsandbytes" else version(n))


@pytest.mark.usefixtures("stand_ins")
def test_four_bits_are_qlora_s_and_heads_keep_theirs() -> None:
    four, eight = quantisation("4bit"), quantisation("8bit")
    assert (four.load_in_4bit, four.load_in_8bit) == (True, False)
    assert (four.bnb_4bit_quant_type, four.bnb_4bit_use_double_quant) == ("nf4", True)
    assert four.bnb_4bit_compute_dtype == torch.bfloat16
    assert (eight.load_in_4bit, eight.load_in_8bit) == (False, True)
    for config in (four, eight):
        assert {"classifier", "score", "lm_head"} <= set(config.llm_int8_skip_modules)


@pytest.mark.usefixtures("stand_ins")
def test_transformers_is_asked_for_it_on_the_device(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, asked = tiny.save_decoder(tmp_path / "gpt2"), {}
    loads = transformers.AutoModelForCausalLM.from_pretrained

    def from_pretrained(source: str, quantization_config: Any, device_map: Any, **more: Any) -> Any:
        asked.update(config=quantization_config, devices=device_map)
        return loads(source, **more)

    monkeypatch.setattr(transformers.AutoModelForCausalLM, "from_pretrained", from_pretrained)
    cfg = ModelConfig(name="hub", path=str(folder), max_length=16, quantise="8bit")
    backbones.load(cfg, "causal", 1, 0)
    assert asked["config"].load_in_8bit
    assert asked["devices"] == {"": 0}
    with pytest.raises(InputError, match=r"^model\.quantise=8bit: [^\n]*model\.random$"):
        backbones.load(ModelConfig(name="hub", path=str(folder), quantise="8bit", random=True), "causal", 1, 0)


@pytest.mark.usefixtures("stand_ins")
def test_layers_that_were_drawn_and_rounded_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tiny.save_bert(tmp_path / "bert")
    loads, lost = transformers.AutoModelForSequenceClassification.from_pretrained, "bert.pooler.dense"

    def from_pretrained(source: str, quantization_config: Any, device_map: Any, **more: Any) -> Any:
        model, report = loads(source, **more)
        layer = model.get_submodule(lost)
        layer.weight = nn.Parameter(torch.zeros(128, 1, dtype=torch.uint8), requires_grad=False)
        return model, {**report, "missing_keys": {*report["missing_keys"], f"{lost}.weight"}}

    monkeypatch.setattr(transformers.AutoModelForSequenceClassification, "from_pretrained", from_pretrained)
    with pytest.raises(InputError, match=rf"^model.quantise=4bit: .*/bert has no weights for {lost}.weight.*null$"):
        backbones.load(ModelConfig(name="hub", path=str(folder), max_length=16, quantise="4bit"), "text", 2, 0)


class Params4bit(nn.Parameter):
    """A parameter of bytes, which stand for weights in floating point."""


class Linear4bit(nn.Linear):
    """Packed weights, as bitsandbytes keeps them: half as many numbers, of whole bytes."""

    def __init__(self, features: int, out: int) -> None:
        super().__init__(features, out)
        packed = torch.zeros(features * out // 2, 1, dtype=torch.uint8)
        self.weight = Params4bit(packed, requires_grad=False)


def test_packed_layers_take_pairs_of_the_layer_s_own_sizes() -> None:
    model = nn.Sequential(Linear4bit(6, 4), nn.Linear(4, 2))
    layout = attach(model, LoraSettings(rank=2, head="1"), 0)
    (layer,) = layout.layers.values()
    assert layout.entries[layer.a].shape == (2, 6)
    assert layout.entries[layer.b].shape == (4, 2)
    assert layout.entries[layer.base].role == "base"
    assert layout.entries[layer.base].shape == (12, 1)


@pytest.mark.parametrize(
    ("bits", "cuda", "words"),
    [
        ("8bit", False, ["model.quantise=8bit", "CUDA device", "null"]),
        ("4bit", True, ["model.quantise=4bit", "bitsandbytes", "flt[quantised]"]),
        ("2bit", False, ["model.quantise=2bit", "8bit, 4bit, null"]),
    ],
)
def test_what_is_missing_is_one_line(bits: str, cuda: bool, words: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)
    with pytest.raises(InputError) as error:
        backbones.load(ModelConfig(name="hub", path="no/such", quantise=bits), "causal", 1, 0)
    assert "\n" not in str(error.value)
    assert all(word in str(error.value) for word in words), str(error.value)


def test_a_recipe_that_changes_the_base_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    in_empty_folder(tmp_path, monkeypatch)
    # as if the layers were rounded: the recipe is what is in question
    monkeypatch.setattr("flt.run.workload.backbones.load", _unrounded(backbones.load))
    assert train("algo=flora", "model.quantise=4bit") == 2
    assert "model.quantise=4bit" in (line := capsys.readouterr().err)
    assert "changes the frozen weights" in line
    assert not (tmp_path / "lightning_logs").exists()


def _unrounded(load: Any) -> Any:
    def loaded(cfg: ModelConfig, *arguments: Any) -> Any:
        cfg.quantise = None
        return load(cfg, *arguments)

    return loaded
