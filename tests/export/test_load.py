"""flt.load: every kind of export has the logits of the global model, in the same batch; anything else is one line."""

from __future__ import annotations

import importlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import tiny
import torch
from commands import QUICK, in_empty_folder
from exports import pixels, words
from slowly import slowly
from torch import Tensor, nn
from toys import FEATURES, Toy, toy_clients

import flt
from flt.api import Result
from flt.api import train as train_cfg
from flt.callbacks.checkpoint import newest
from flt.core.errors import InputError
from flt.export import base
from flt.models import embedded
from flt.models.label_name_head import LabelNameClassifier
from flt.run.compose import load_config

pytestmark = pytest.mark.slow  # whole runs and fits


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    in_empty_folder(tmp_path, monkeypatch)
    return tmp_path


def run(*overrides: str) -> Result:
    quick = {**QUICK, "local.steps": 3, "eval.client_examples": 0}
    return train_cfg(load_config([*(f"{key}={value}" for key, value in quick.items()), *overrides]))


def texts(folder: Path, kind: str) -> list[str]:
    model, data = tiny.save_bert(folder / kind, kind=kind), tiny.save_reviews(folder / "reviews.csv")
    return [f"model={model}", f"data={data}", "model.max_length=16", "batch_size=4"]


@torch.no_grad()
def logits(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
    return model(**batch).logits


def assert_same_logits(loaded: nn.Module, trained: nn.Module, batch: dict[str, Tensor]) -> None:
    assert not any(sub.training for sub in loaded.modules())
    torch.testing.assert_close(logits(loaded, batch), logits(trained.eval(), batch), rtol=0, atol=1e-5)


@pytest.mark.parametrize("overrides", ["algo=fedit", "algo=c2a", "algo=fedit model.random=true"])
def test_where_the_bases_folder_lies_the_runs_configuration_knows_and_no_card(overrides: str, folder: Path) -> None:
    result = run(*texts(folder, "bert"), *overrides.split())
    cards = "".join(path.read_text() for path in result.exported.glob("*.json"))
    assert str(folder) not in cards
    expected = logits(result.module.model, words())
    torch.testing.assert_close(logits(flt.load(result.exported), words()), expected, rtol=0, atol=1e-5)
    alone = shutil.move(result.exported, folder / "alone")
    with pytest.raises(InputError, match="base=None: its base was the folder bert, .*; allowed is base=<path"):
        flt.load(alone)


@pytest.mark.parametrize("foreign", ["bert", "- model", "model: bert", "model: !made {path: bert}", "model: [", "\0"])
def test_another_programs_configuration_around_an_export_is_none(foreign: str, folder: Path) -> None:
    (folder / "config.yaml").write_text(foreign)
    assert base.place_of(folder / "sent", "bert") is None


def test_where_a_base_lies_only_the_configuration_of_its_own_run_says(folder: Path) -> None:
    inner, bert = folder / "run" / "adapter" / "group_0" / "head_1", folder / "bert"
    inner.mkdir(parents=True)
    (folder / "config.yaml").write_text(f"model: {{path: {bert}}}")
    assert base.place_of(inner, "bert") is None
    (folder / "run" / "config.yaml").write_text(f"model: {{path: {bert}}}")
    for place in (inner, folder / "run" / "adapter"):
        assert base.place_of(place, "bert") == str(bert)
        assert base.place_of(place, "another") is None


@pytest.mark.parametrize(
    "overrides",
    [
        "algo=c2a",
        "algo=c2a plan=full",
        "algo=fedit adapter=none",
        *slowly("algo=c2a adapter=houlsby model.adapt_layers=top1", "algo=fedit", "algo=flora"),
    ],
)
def test_an_image_model_is_loaded_by_its_folder_alone(overrides: str) -> None:
    result = run(*overrides.split())
    assert_same_logits(flt.load(result.exported), result.module.model, pixels())


@pytest.mark.parametrize(
    ("kind", "overrides"),
    [
        ("distilbert", "algo=c2a adapter.label_source=client adapter.factorise=false"),
        ("bert", "algo=c2a adapter=houlsby"),
        ("bert", "algo=fedit model.head=label_names"),
        *slowly(("bert", "algo=fedit"), ("bert", "algo=c2a model.head=label_names")),
        *slowly(("bert", "algo=flora model.head=label_names")),
    ],
)
def test_a_text_model_is_loaded_with_its_head(kind: str, overrides: str, folder: Path) -> None:
    result = run(*texts(folder, kind), *overrides.split())
    loaded = flt.load(result.exported)
    assert isinstance(loaded, LabelNameClassifier) == ("label_names" in overrides)
    assert_same_logits(loaded, result.module.model, words())


@pytest.mark.slow
@pytest.mark.parametrize("adapter", ["c2a", *slowly("lora")])
def test_a_group_is_chosen_by_its_folder(adapter: str) -> None:
    result = run("algo=fl_tac", f"adapter={adapter}", "clients=4")
    found = newest(result.path / "checkpoints")
    assert found is not None
    seen = []
    for path in sorted(result.exported.glob("group_*")):
        weights = found[0].server.groups[int(path.name.removeprefix("group_"))].weights
        result.module.load_state_dict(weights, strict=False)
        assert_same_logits(flt.load(path), result.module.model, pixels())
        seen.append(logits(result.module.model, pixels()))
    assert not torch.allclose(seen[0], seen[1], atol=1e-4)
    with pytest.raises(flt.InputError, match=r"adapter: allowed is one of its folders: group_\d, group_\d$"):
        flt.load(result.exported)


@pytest.mark.slow
@pytest.mark.parametrize("adapter", ["c2a", *slowly("houlsby")])
def test_every_head_has_a_folder_where_jobs_have_different_ones(adapter: str) -> None:
    tasks = ["data.tasks.low=['5','6']", "data.tasks.high=['7','8','9']"]
    result = run("algo=fl_tac", "grouping=everyone", f"adapter={adapter}", "clients=3", *tasks)
    loaded = [flt.load(path) for path in sorted(result.exported.glob("head_*"))]
    assert [logits(model, pixels()).shape[1] for model in loaded] == [2, 3]
    shared = [{n: p for n, p in m.named_parameters() if adapter in n} for m in loaded]
    assert shared[0].keys() == shared[1].keys() != set()
    for name, tensor in shared[0].items():
        assert torch.equal(tensor, shared[1][name])
    with pytest.raises(flt.InputError, match="allowed is one of its folders: head_2, head_3$"):
        flt.load(result.exported)


@pytest.mark.slow
def test_the_card_has_the_settings_and_no_place_of_this_machine(folder: Path) -> None:
    result = run("algo=c2a", "adapter.rank=4")
    files = {"README.md", "classes.json", "flt_base.json", "flt_inputs.json"}
    files |= {"flt_adapter.json", "flt_adapter.safetensors"}
    assert {path.name for path in result.exported.iterdir()} == files
    card, about = (json.loads((result.exported / f"flt_{name}.json").read_text()) for name in ("adapter", "base"))
    assert (card["adapter"]["name"], card["adapter"]["rank"]) == ("c2a", 4)
    assert (card["adapt_layers"], card["classes"]) == ("all", 5)
    assert (about["architecture"], about["config"]["num_labels"]) == ("ViTForImageClassification", 5)
    assert (card["source"], about["package"]) == ("embedded", None)
    assert str(folder) not in json.dumps([card, about])
    assert str(embedded.embedded().parent) not in json.dumps([card, about])


@pytest.mark.slow
@pytest.mark.parametrize("algo", ["fedit", "c2a"])
def test_a_base_in_a_package_is_named_by_both_its_places(
    algo: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder / "here/sentences").mkdir(parents=True)
    (folder / "here/sentences/__init__.py").touch()
    tiny.save_bert(folder / "here/sentences/model")
    monkeypatch.syspath_prepend(folder / "here")
    named = ["model=hub", "model.path=org/sentences", "model.package=sentences/model", "model.max_length=16"]
    result = run(*named, f"data={tiny.save_reviews(folder / 'reviews.csv')}", f"algo={algo}")
    said = "".join(path.read_text() for path in result.exported.glob("*.json"))
    assert str(folder) not in said
    assert '"org/sentences"' in said
    monkeypatch.syspath_prepend(shutil.move(folder / "here", folder / "there"))  # another machine has it elsewhere
    importlib.invalidate_caches()
    assert_same_logits(flt.load(result.exported), result.module.model, words())
    shutil.rmtree(folder / "there")  # and another one only the hub
    with pytest.raises(flt.InputError, match="org/sentences"):
        flt.load(result.exported)


def of_a_user(folder: Path, algo: str) -> Any:
    given = {"rounds": 1, "progress": False, "overrides": ["local.steps=2", f"root={folder}"]}
    return flt.fit(Toy(), list(toy_clients(2).values()), algo, **given)  # type: ignore[arg-type]  # mixed values


@pytest.mark.parametrize("algo", ["fedit", "flora"])
def test_a_users_module_is_loaded_into_one_that_is_given(algo: str, folder: Path) -> None:
    torch.manual_seed(0)
    result = of_a_user(folder, algo)
    x = torch.randn(3, FEATURES)
    torch.manual_seed(0)
    with torch.no_grad():
        torch.testing.assert_close(flt.load(result.exported, Toy())(x), result.module.eval()(x), rtol=0, atol=1e-5)
    with pytest.raises(flt.InputError, match=r"^model=None: .*allowed is "):
        flt.load(result.exported)


def test_a_base_that_is_given_is_used_instead_of_the_one_on_the_card(folder: Path) -> None:
    result = run(*texts(folder, "bert"), "algo=c2a")
    bert = load_base(folder / "bert", result)
    shutil.rmtree(folder / "bert")
    assert_same_logits(flt.load(result.exported, bert), result.module.model, words())
    with pytest.raises(flt.InputError, match="no such folder"):
        flt.load(result.exported)


def load_base(place: Path, result: Result) -> nn.Module:
    kind: Any = type(result.module.model)
    return kind.from_pretrained(place, num_labels=result.module.model.config.num_labels)


# ---------------------------------------------------------------------------------------------- refusals


def add_a_tensor(export: Path) -> None:
    tensors = safetensors.torch.load_file(export / "flt_adapter.safetensors")
    safetensors.torch.save_file({**tensors, "strange": torch.ones(1)}, export / "flt_adapter.safetensors")


def drop_a_tensor(export: Path) -> None:
    tensors = safetensors.torch.load_file(export / "flt_adapter.safetensors")
    tensors.pop(min(tensors))
    safetensors.torch.save_file(tensors, export / "flt_adapter.safetensors")


def change(name: str = "flt_adapter", **given: Any) -> Callable[[Path], None]:
    def write(export: Path) -> None:
        card = json.loads((export / f"{name}.json").read_text())
        (export / f"{name}.json").write_text(json.dumps({**card, **given}))

    return write


BROKEN: dict[str, tuple[Callable[[Path], None], str]] = {
    "empty": (lambda export: shutil.rmtree(export), "nothing that flt exports is in it"),
    "no tensors": (lambda export: (export / "flt_adapter.safetensors").unlink(), "No such file"),
    "a pickle": (
        lambda export: torch.save({}, export / "flt_adapter.safetensors"),
        "flt_adapter.safetensors is cut off",
    ),
    "no JSON": (lambda export: (export / "flt_adapter.json").write_text("{"), "JSONDecodeError"),
    "another card": (lambda export: (export / "flt_adapter.json").write_text("[]"), "flt_adapter.json=list"),
    "a tensor too few": (drop_a_tensor, "is missing"),
    "a tensor too many": (add_a_tensor, "strange is none"),
    "no such adapter": (change(adapter={"name": "os"}), "adapter=os"),
    "another setting": (change(adapter={"name": "c2a", "rank": 0}), "adapter.rank=0"),
    "other sizes": (change(adapter={"name": "c2a", "rank": 5}), "size mismatch for "),
    "other classes": (change(classes=7), "size mismatch for "),
    "no class": (change("flt_base", architecture="os"), "architecture=os"),
    "labels that are no numbers": (change(label_counts=["a"]), "label_counts"),
    "labels below zero": (change(label_counts=[3, -1]), "label_counts"),
    "no list of labels": (change(label_counts=7), "label_counts=7"),
    "no source": (change(source=""), "model=None"),
}


@pytest.fixture(scope="module")
def export(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("export")
    with pytest.MonkeyPatch.context() as patch:
        in_empty_folder(path, patch)
        return path / run("algo=c2a").exported


@pytest.mark.parametrize("case", BROKEN)
def test_a_broken_folder_is_refused_in_one_line(case: str, export: Path, folder: Path) -> None:
    shutil.copytree(export, folder / "export")
    spoil, message = BROKEN[case]
    spoil(folder / "export")
    with pytest.raises(flt.InputError, match=message) as caught:
        flt.load(folder / "export")
    assert "\n" not in str(caught.value)
    assert "allowed is" in str(caught.value)


def test_loading_leaves_the_global_generators_as_they_were(export: Path) -> None:
    before, numpys = torch.get_rng_state(), np.random.get_state()[1].copy()  # type: ignore[index]  # a tuple by default
    flt.load(export)
    assert torch.equal(torch.get_rng_state(), before)
    assert np.array_equal(np.random.get_state()[1], numpys)  # type: ignore[index]  # as above


def test_peft_never_unpickles_where_its_weights_are_missing(folder: Path) -> None:
    exported = run("algo=fedit").exported
    torch.save({}, exported / "adapter_model.bin")
    (exported / "adapter_model.safetensors").unlink()
    with pytest.raises(flt.InputError, match="the tensors are missing"):
        flt.load(exported)


@pytest.mark.slow
def test_a_whole_model_takes_no_other() -> None:
    exported = run("algo=flora").exported
    with pytest.raises(
        flt.InputError, match="^model=Linear: .*holds the whole model; allowed is nothing for this export$"
    ):
        flt.load(exported, nn.Linear(2, 2))
