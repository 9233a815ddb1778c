"""What a run leaves is loaded by peft and transformers, with the logits of the model that was trained."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import safetensors.torch
import torch
import transformers
from commands import QUICK, in_empty_folder
from lora_exports import X, loaded, trained, with_dead_pairs_at_zero
from slowly import slowly
from torch import Tensor, nn
from toys import FEATURES, Toy, toy_module

from flt.api import Result
from flt.api import train as train_cfg
from flt.callbacks.checkpoint import newest
from flt.export.metadata import Card
from flt.export.write import export, merge
from flt.models import embedded
from flt.models.adapters.lora import LoraSettings, attach
from flt.run.compose import load_config
from flt.run.workload import federation

pytestmark = pytest.mark.slow  # whole runs and fits


def run(folder: Path, monkeypatch: pytest.MonkeyPatch, *overrides: str) -> Result:
    in_empty_folder(folder, monkeypatch)
    quick = [f"{key}={value}" for key, value in (QUICK | {"local.steps": 5}).items()]
    return train_cfg(load_config([*quick, *overrides]))


def images() -> Tensor:
    return torch.rand(6, 1, 8, 8, generator=torch.Generator().manual_seed(0))


@torch.no_grad()
def logits(model: nn.Module) -> Tensor:
    return model.eval()(pixel_values=images()).logits


def backbone(classes: int) -> nn.Module:
    """The base, as docs/results_of_a_run.md says."""
    return transformers.AutoModelForImageClassification.from_pretrained(
        embedded.embedded(), num_labels=classes, ignore_mismatched_sizes=True
    )


@pytest.mark.parametrize(
    "overrides",
    [
        "algo=fedit",
        "algo=hafl",
        pytest.param("algo=scaffold", marks=pytest.mark.slow),
        "algo=fedit adapter.alpha=3.3 adapter.rank=7",
        pytest.param("algo=fedit adapter.target_modules=[fc1,layers.1.attention.v_proj]", marks=pytest.mark.slow),
        pytest.param("algo=fedit adapter.head=none", marks=pytest.mark.slow),
    ],
)
def test_an_adapter_has_the_logits_of_the_trained_module(
    overrides: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    result = run(tmp_path, monkeypatch, *overrides.split())
    assert result.exported == result.path / "adapter"
    base = backbone(5)
    before = logits(base)
    found = logits(loaded(base, result.exported))
    torch.testing.assert_close(found, logits(result.module.model), rtol=0, atol=1e-6)
    assert not torch.allclose(found, before, atol=1e-3)


def test_the_card_names_the_base_and_nothing_of_this_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    result = run(tmp_path, monkeypatch, "algo=fedit")
    card = json.loads((result.exported / "adapter_config.json").read_text())
    assert card["base_model_name_or_path"] == "embedded"
    files = {"README.md", "adapter_config.json", "adapter_model.safetensors"}
    files |= {"classes.json", "flt_base.json", "flt_inputs.json"}
    assert {path.name for path in result.exported.iterdir()} == files
    for place in (Path.home(), tmp_path, Path(__file__).parents[2], embedded.embedded().parent):
        assert str(place) not in json.dumps([card, json.loads((result.exported / "flt_base.json").read_text())])


@pytest.mark.slow
@pytest.mark.parametrize("algo", ["fedsa_lora", *slowly("local", "fedit plan.private=[head]")])
def test_clients_that_keep_tensors_of_their_own_have_a_folder_each(
    algo: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    result = run(tmp_path, monkeypatch, *f"algo={algo}".split(), "clients=3", "local.lr=0.02")
    assert sorted(path.name for path in result.exported.iterdir() if path.is_dir()) == [
        "client_0",
        "client_1",
        "client_2",
    ]
    found = [logits(loaded(backbone(5), result.exported / f"client_{number}")) for number in range(3)]
    torch.testing.assert_close(found[0], logits(result.module.model), rtol=0, atol=1e-6)
    assert not torch.allclose(found[0], found[1], atol=1e-3)


@pytest.mark.slow
def test_several_groups_have_a_folder_each(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    result = run(tmp_path, monkeypatch, "algo=fl_tac", "clients=4")
    found = newest(result.path / "checkpoints")
    assert found is not None
    server = found[0].server
    groups = sorted(set(server.groups) - {server.home})
    found = [path.name for path in sorted(result.exported.iterdir()) if path.is_dir()]
    assert found == [f"group_{gid}" for gid in groups]
    seen = []
    for gid in groups:
        result.module.load_state_dict(server.groups[gid].weights, strict=False)
        seen.append(logits(loaded(backbone(2), result.exported / f"group_{gid}")))
        torch.testing.assert_close(seen[-1], logits(result.module.model), rtol=0, atol=1e-6)
    assert not torch.equal(seen[0], seen[1])


@pytest.mark.slow
@pytest.mark.parametrize("algo", ["flora", *slowly("fedit")])
def test_each_head_has_a_folder_of_its_own(algo: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tasks = ["data=digits_two", "jobs=per_task", "partition.kind=iid"]
    result = run(tmp_path, monkeypatch, f"algo={algo}", *tasks)
    assert sorted(path.name for path in result.exported.iterdir() if path.is_dir()) == ["head_2", "head_5"]
    found = newest(result.path / "checkpoints")
    assert found is not None
    weights = found[0].server.groups[0].weights
    adapter = {name: value for name, value in weights.items() if "#" not in name}
    classifier = result.module.model.classifier
    for classes in (2, 5):
        result.module.load_state_dict(adapter, strict=False)
        for part in ("weight", "bias"):
            getattr(classifier, part).data = weights[f"model.classifier.{part}#{classes}"]
        folder = result.exported / f"head_{classes}"
        if algo == "flora":
            model: nn.Module = transformers.AutoModelForImageClassification.from_pretrained(folder)
        else:
            model = loaded(backbone(classes), folder)
        assert logits(model).shape == (6, classes)
        torch.testing.assert_close(logits(model), logits(result.module.model), rtol=0, atol=1e-6)


@pytest.mark.slow
def test_a_cluster_leaves_the_heads_of_its_own_jobs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    result = run(tmp_path, monkeypatch, "algo=fl_tac", "data=digits_two", "grouping.k=2")
    found = newest(result.path / "checkpoints")
    assert found is not None
    tasks = federation(load_config([f"clients={QUICK['clients']}", "algo=fl_tac", "data=digits_two"]))
    heads = {(client.id, i): data.head for client in tasks.clients for i, data in enumerate(client.data)}
    expected = {f"group_{gid}/head_{heads[job]}" for job, gid in found[0].server.assignment.items()}
    assert {str(path.relative_to(result.exported)) for path in result.exported.glob("*/*") if path.is_dir()} == expected


@pytest.mark.parametrize(
    "overrides", [*slowly(""), "ranks=[2,4,8] selection=truncate"], ids=["one rank", "several ranks"]
)
def test_flora_leaves_a_model_that_transformers_loads(
    overrides: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    result = run(tmp_path, monkeypatch, "algo=flora", "rounds=2", *overrides.split())
    assert result.exported == result.path / "model"
    assert not (result.path / "adapter").exists()
    model = transformers.AutoModelForImageClassification.from_pretrained(result.exported)
    torch.testing.assert_close(logits(model), logits(result.module.model), rtol=0, atol=1e-6)
    assert str(embedded.embedded().parent) not in (result.exported / "config.json").read_text()


def bare(kind: type[pl.LightningModule]) -> pl.LightningModule:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return kind()


@pytest.mark.parametrize(
    "alive",
    [{}, {"fc1": (0, 3), "fc2": (1, 2, 3)}, {"fc1": (), "fc2": (2,)}, {"fc1": (1,), "fc2": ()}],
    ids=["all", "other ranks", "first layer without pairs", "last layer without pairs"],
)
@pytest.mark.parametrize("alpha", [8.0, 3.3])
def test_layers_of_any_living_rank_load_with_equal_logits(
    alive: dict[str, tuple[int, ...]], alpha: float, tmp_path: Path
) -> None:
    module = bare(Toy)
    layout = attach(module, LoraSettings(rank=4, alpha=alpha), 0)
    state = trained(module, layout, alive)
    folder = export(module, layout, state, tmp_path, Card())
    model = loaded(bare(Toy), folder).eval()
    expected = with_dead_pairs_at_zero(module, layout, state)
    torch.testing.assert_close(model(X), expected(X), rtol=1e-6, atol=1e-5)


class Alike(pl.LightningModule):
    """Names that end alike: ``fc`` is the end of ``inner.fc``, and ``head`` of ``inner.head``."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(FEATURES, FEATURES)
        self.inner = nn.ModuleDict({"fc": nn.Linear(FEATURES, FEATURES), "head": nn.Linear(FEATURES, FEATURES)})
        self.head = nn.Linear(FEATURES, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.tanh(self.inner["fc"](torch.tanh(self.fc(x))))
        return self.head(torch.tanh(self.inner["head"](x)))


@pytest.mark.parametrize(
    "alive",
    [{}, {"fc": (0, 1), "inner.fc": (0, 2, 3), "inner.head": (1,)}, {"inner.fc": ()}, {"fc": ()}],
    ids=["all", "other ranks", "inner without pairs", "outer without pairs"],
)
@pytest.mark.filterwarnings("ignore:.*fan_in_fan_out.*")
def test_names_that_end_alike_are_told_apart(alive: dict[str, tuple[int, ...]], tmp_path: Path) -> None:
    module = bare(Alike)
    layout = attach(module, LoraSettings(rank=4, alpha=8.0, target_modules=["fc"], head="head"), 0)
    state = trained(module, layout, {name: pairs for name, pairs in alive.items() if name in layout.layers})
    folder = export(module, layout, state, tmp_path, Card())
    model = loaded(bare(Alike), folder).eval()
    expected = with_dead_pairs_at_zero(module, layout, state)
    torch.testing.assert_close(model(X), expected(X), rtol=1e-6, atol=1e-5)


def test_merging_gives_the_module_without_adapters(tmp_path: Path) -> None:
    module, layout = toy_module()
    state = trained(module, layout, {})
    merged = merge(module, layout, dict(state.groups[0].weights))
    fresh = Toy()
    fresh.load_state_dict(merged)
    module.load_state_dict(state.groups[0].weights, strict=False)
    torch.testing.assert_close(fresh(X), module(X), rtol=1e-5, atol=1e-5)


def test_an_export_replaces_the_one_before_and_leaves_no_other_folder(tmp_path: Path) -> None:
    module, layout = toy_module()
    for alive in ({"fc1": (0,)}, {}):
        export(module, layout, trained(module, layout, alive), tmp_path, Card())
    assert [path.name for path in tmp_path.iterdir()] == ["adapter"]
    tensors = safetensors.torch.load_file(tmp_path / "adapter/adapter_model.safetensors")
    assert tensors["base_model.model.fc1.lora_A.weight"].shape[0] == 4


def test_a_user_s_module_with_a_changed_base_is_a_state_dict(tmp_path: Path) -> None:
    module, layout = toy_module()
    state: Any = trained(module, layout, {})
    state = dataclasses.replace(state, base=dataclasses.replace(state.base, version=1))
    folder = export(module, layout, state, tmp_path, Card())
    fresh = Toy()
    fresh.load_state_dict(safetensors.torch.load_file(folder / "model.safetensors"))
    module.load_state_dict(state.groups[0].weights, strict=False)
    torch.testing.assert_close(fresh(X), module(X), rtol=1e-5, atol=1e-5)
