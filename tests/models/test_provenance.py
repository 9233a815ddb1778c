"""Weights that no checkpoint has travel with the export: new layers, a head that doesn't train, a random backbone."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
import transformers
from commands import QUICK, in_empty_folder
from peft import PeftModel
from safetensors.torch import load_file, save_file
from slowly import slowly
from torch import Tensor, nn

import flt
from flt.api import Result
from flt.api import train as train_cfg
from flt.models import backbones
from flt.models.adapters import c2a, houlsby, lora, none
from flt.models.config import ModelConfig
from flt.protocol.layout import Layout
from flt.run.compose import load_config
from flt.run.workload import federation

pytestmark = pytest.mark.slow  # whole runs and fits


ADAPTERS: dict[str, Callable[[nn.Module], Layout]] = {
    "lora": lambda module: lora.attach(module, lora.LoraSettings(), 0),
    "c2a": lambda module: c2a.attach(module, c2a.C2ASettings(), 0),
    "houlsby": lambda module: houlsby.attach(module, houlsby.HoulsbySettings(), 0),
    "none": lambda module: none.attach(module, none.NoAdapterSettings(), 0),
}
QUERY = "encoder.layer.1.attention.self.query.weight"


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    in_empty_folder(tmp_path, monkeypatch)
    return tmp_path


def run(*overrides: str) -> Result:
    quick = {**QUICK, "local.steps": 3, "local.lr": 0.02, "eval.client_examples": 0}
    return train_cfg(load_config([*(f"{key}={value}" for key, value in quick.items()), *overrides]))


def without(folder: Path, *lost: str) -> Path:
    """A checkpoint that has lost the tensors whose names hold one of these parts."""
    file = folder / "model.safetensors"
    kept = {name: value for name, value in load_file(file).items() if not any(part in name for part in lost)}
    save_file(kept, file, metadata={"format": "pt"})
    return folder


def saved(folder: Path, kind: str, *lost: str) -> list[str]:
    model = without(tiny.save_bert(folder / kind, kind=kind), *lost)
    return [f"model={model}", f"data={tiny.save_reviews(folder / 'reviews.csv')}", "model.max_length=16"]


def words() -> dict[str, Tensor]:
    ids = torch.randint(5, len(tiny.WORDS), (4, 6), generator=torch.Generator().manual_seed(0))
    mask = (torch.arange(6) < torch.tensor([[6], [3], [4], [2]])).long()
    return {"input_ids": ids * mask, "attention_mask": mask}


def images() -> dict[str, Tensor]:
    return {"pixel_values": torch.rand(6, 1, 8, 8, generator=torch.Generator().manual_seed(0))}


@torch.no_grad()
def logits(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
    return model.eval()(**batch).logits


# ---------------------------------------------------------------------------------------------- new layers


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "lost", "overrides"),
    [
        ("bert", ("pooler",), "algo=fedit adapter.head=none"),
        ("bert", ("pooler",), "algo=c2a"),
        ("bert", ("pooler",), "algo=fedit model.head=label_names"),
        *slowly(
            ("bert", ("pooler",), "algo=fedit"),
            ("bert", ("pooler",), "algo=c2a"),
            ("bert", ("pooler",), "algo=c2a adapter=houlsby adapter.head=classifier"),
            ("bert", ("pooler",), "algo=fedit"),
            ("bert", ("pooler",), "algo=fedit model.adapt_layers=top1"),
            ("bert", ("pooler",), "algo=c2a model.head=label_names"),
            ("distilbert", (), "algo=fedit"),
            ("deberta-v2", (), "algo=fedit"),
            ("deberta-v2", (), "algo=c2a"),
        ),
    ],
    ids=str,
)
def test_what_the_checkpoint_lacks_is_what_it_was_in_training(
    kind: str, lost: tuple[str, ...], overrides: str, folder: Path
) -> None:
    result = run(*saved(folder, kind, *lost), *overrides.split())
    expected = logits(result.module.model, words())
    torch.testing.assert_close(logits(flt.load(result.exported), words()), expected, rtol=0, atol=1e-5)
    if "fedit" in overrides and "label_names" not in overrides:
        base = transformers.AutoModelForSequenceClassification.from_pretrained(folder / kind, num_labels=2)
        found = logits(PeftModel.from_pretrained(base, result.exported), words())
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("kind", "lost", "expected"),
    [
        ("distilbert", (), ["classifier", "pre_classifier"]),
        ("deberta-v2", (), ["classifier", "pooler.dense"]),
        ("bert", ("pooler",), ["bert.pooler.dense", "classifier"]),
        ("bert", (), ["classifier"]),
    ],
    ids=["distilbert", "deberta-v2", "bert, pooler lost", "bert"],
)
@pytest.mark.parametrize("adapter", ADAPTERS)
def test_all_adapters_agree_on_the_head(
    adapter: str, kind: str, lost: tuple[str, ...], expected: list[str], folder: Path
) -> None:
    made = federation(load_config([*saved(folder, kind, *lost), "algo=fedit", "clients=3"]))
    layout = ADAPTERS[adapter](made.module)
    found = {name.removeprefix("model.").rpartition(".")[0] for name in layout.names(["head"])}
    assert sorted(found) == expected
    trains = {name for name, parameter in made.module.named_parameters() if parameter.requires_grad}
    assert trains == set(layout.names(["head", "A", "B", "adapter"]))


@pytest.mark.slow
@pytest.mark.parametrize("algo", ["fedit", "c2a"])
def test_weights_that_neither_base_nor_export_has_are_missed_in_one_line(algo: str, folder: Path) -> None:
    exported = run(*saved(folder, "bert", "pooler"), f"algo={algo}").exported
    flt.load(exported)
    without(folder / "bert", QUERY)
    with pytest.raises(flt.InputError, match=f"^model=.*/bert: no bert.{QUERY}; allowed is a base with all") as caught:
        flt.load(exported)
    assert "\n" not in str(caught.value)


def test_a_base_that_is_given_gets_the_new_layers_of_the_export(folder: Path) -> None:
    result = run(*saved(folder, "bert", "pooler"), "algo=c2a")
    base = transformers.AutoModelForSequenceClassification.from_pretrained(folder / "bert", num_labels=2)
    expected = logits(result.module.model, words())
    torch.testing.assert_close(logits(flt.load(result.exported, base), words()), expected, rtol=0, atol=1e-5)


# ---------------------------------------------------------------------------------------------- random backbones


@pytest.mark.slow
@pytest.mark.parametrize("overrides", ["algo=flora", *slowly("algo=fedit", "algo=c2a", "algo=fedit adapter.head=none")])
def test_a_random_backbone_is_drawn_again(overrides: str) -> None:
    result = run(*overrides.split(), "model.random=true", "seed=3")
    expected = logits(result.module.model, images())
    torch.testing.assert_close(logits(flt.load(result.exported), images()), expected, rtol=0, atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("adapter", ["c2a", *slowly("lora")])
def test_a_random_backbone_does_not_depend_on_the_width_of_the_exported_head(adapter: str) -> None:
    tasks = ["data=digits_two", "jobs=per_task", "partition.kind=iid"]
    result = run("algo=fedit", f"adapter={adapter}", "model.random=true", *tasks)
    expected = logits(result.module.model, images())
    classes = expected.shape[1]
    assert classes == 2  # the first head; the other one is wider, and was drawn with the backbone
    found = logits(flt.load(result.exported / f"head_{classes}"), images())
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)


@pytest.mark.slow
def test_a_random_text_backbone_is_drawn_again_with_its_padding(folder: Path) -> None:
    result = run(*saved(folder, "bert"), "algo=fedit", "model.random=true", "model.head=label_names")
    expected = logits(result.module.model, words())
    torch.testing.assert_close(logits(flt.load(result.exported), words()), expected, rtol=0, atol=1e-6)


@pytest.mark.slow
def test_peft_is_not_told_of_weights_that_a_random_backbone_has_not() -> None:
    exported = run("algo=fedit", "model.random=true", "seed=3").exported
    assert json.loads((exported / "adapter_config.json").read_text())["base_model_name_or_path"] is None
    about = json.loads((exported / "flt_base.json").read_text())
    assert about["random"] == {"seed": 3, "classes": 5, "source": "embedded"}


# ---------------------------------------------------------------------------------------------- pickles


class Opened(Exception):
    """A pickle was read."""


def _open(*_: Any) -> None:
    raise Opened


def pickled(folder: Path) -> None:
    """A checkpoint in the old format in the place of the one in safetensors."""
    tensors = load_file(folder / "model.safetensors")
    torch.save(tensors, folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()


def test_a_pickled_base_is_refused_by_a_run(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tiny.save_bert(folder / "bert")
    cfg = ModelConfig(name="hub", path=str(folder / "bert"), max_length=16)
    backbones.load(cfg, "text", 2, 0)
    pickled(folder / "bert")
    monkeypatch.setattr(torch, "load", _open)
    with pytest.raises(flt.InputError, match="^model.path=.*safetensors.*") as caught:
        backbones.load(cfg, "text", 2, 0)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("algo", ["fedit", "c2a"])
def test_a_pickled_base_is_refused_by_load(algo: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    exported = run(*saved(folder, "bert"), f"algo={algo}").exported
    pickled(folder / "bert")
    monkeypatch.setattr(torch, "load", _open)
    with pytest.raises(flt.InputError, match="safetensors") as caught:
        flt.load(exported)
    assert "\n" not in str(caught.value)
