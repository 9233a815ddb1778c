"""Without an adapter: the whole model, or its head alone."""

from __future__ import annotations

from pathlib import Path

import pytest
import tiny
import torch
from commands import QUICK, in_empty_folder, metrics, train
from transformers import AutoModelForImageClassification

import flt
from flt.api import train as train_cfg
from flt.core.errors import InputError
from flt.models.adapters.none import NoAdapterSettings, attach
from flt.models.module import ClientModule, Optimizer
from flt.run.compose import load_config


def module(kind: str) -> ClientModule:
    return ClientModule(tiny.classifier(kind), 3, Optimizer())


@pytest.mark.parametrize(
    ("kind", "head"),
    [("bert", ["classifier"]), ("vit", ["classifier"]), ("distilbert", ["classifier", "pre_classifier"])],
)
def test_the_head_alone_has_a_role_beside_the_base(kind: str, head: list[str]) -> None:
    made = module(kind)
    layout = attach(made, NoAdapterSettings(), seed=0)
    assert not layout.layers
    assert sorted({name.split(".")[1] for name in layout.names(["head"])}) == head
    assert {entry.role for entry in layout.entries.values()} == {"base", "head"}
    assert sorted(n for n, p in made.named_parameters() if p.requires_grad) == layout.names(["head"])


def test_without_a_head_all_is_base() -> None:
    layout = attach(module("bert"), NoAdapterSettings(head="none"), seed=0)
    assert {entry.role for entry in layout.entries.values()} == {"base"}


@pytest.mark.parametrize(
    ("settings", "layers", "message"),
    [
        (NoAdapterSettings(head="nose"), "all", "^adapter.head=nose: allowed is none, or a module's name"),
        (NoAdapterSettings(), "top1", "^model.adapt_layers=top1: adapter=none adapts no blocks; allowed is all"),
    ],
    ids=["head", "layers"],
)
def test_what_is_not_there_is_refused_before_anything_is_frozen(
    settings: NoAdapterSettings, layers: str, message: str
) -> None:
    made = module("bert")
    with pytest.raises(InputError, match=message):
        attach(made, settings, 0, layers)
    assert all(parameter.requires_grad for parameter in made.parameters())


def test_fedavg_of_the_whole_model_exports_a_plain_transformers_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    in_empty_folder(tmp_path, monkeypatch)
    quick = [f"{key}={value}" for key, value in {**QUICK, "rounds": 2}.items()]
    result = train_cfg(load_config([*quick, "algo=fedit", "adapter=none", "plan=full"]))
    assert result.exported.name == "model"
    x = torch.rand(2, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        trained = result.module.model.eval()(pixel_values=x).logits
        for model in (AutoModelForImageClassification.from_pretrained(result.exported), flt.load(result.exported)):
            torch.testing.assert_close(model.eval()(pixel_values=x).logits, trained, rtol=0, atol=1e-6)


def test_a_recipe_of_pairs_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    in_empty_folder(tmp_path, monkeypatch)
    assert train("algo=hafl", "adapter=none", "plan=full") == 2
    assert "it works on rank-1 components" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize("given", ["algo=fl_tac", "algo=fl_tac grouping=oracle data=digits_two heads=task"])
def test_heads_alone_are_clustered_and_pictured(given: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    in_empty_folder(tmp_path, monkeypatch)
    assert train(*given.split(), "adapter=none", "plan.train=[head]", "rounds=2", "name=heads") == 0
    assert "round/clustering_acc" in metrics(tmp_path / "lightning_logs" / "heads" / "version_0")[-1]
