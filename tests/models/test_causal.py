"""Causal models: the loss counts each token of a response once, and nothing else."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
import peft
import pytest
import torch
import transformers
from commands import in_empty_folder
from tiny import LAYERS, save_decoder, save_instructions
from torch import Tensor

from flt.api import Result
from flt.api import train as train_cfg
from flt.core.errors import InputError
from flt.core.quiet import quiet
from flt.data import dataset_sources
from flt.data.examples import Collate, Examples
from flt.data.instructions import encode_instructions
from flt.models.backbones import load
from flt.models.causal import CausalModule
from flt.models.config import ModelConfig
from flt.models.module import Optimizer
from flt.run.compose import load_config
from flt.run.workload import federation

PAD = 3
KINDS = {"gpt2": "transformer.h", "llama": "model.layers"}
"""Model type -> where its blocks are."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("causal")
    save_decoder(made / "gpt2")
    save_instructions(made / "rows.parquet", rows=60, categories=("open_qa", "closed_qa", "summarization", "closed_qa"))
    return made


@pytest.fixture(scope="module")
def examples(folder: Path) -> Examples:
    cfg = dataset_sources.DataConfig(
        name="file", path=str(folder / "rows.parquet"), response="response", prompts=["a {instruction} {context} a"]
    )
    raw, backbone = dataset_sources.load(cfg), backbone_of(folder)
    return encode_instructions(raw.splits["train"], raw, backbone.tokenizer, 16)


def backbone_of(folder: Path) -> Any:
    return load(ModelConfig(name="hub", path=str(folder / "gpt2"), max_length=16), "causal", 1, 0)


@pytest.fixture
def module(folder: Path) -> CausalModule:
    return CausalModule(backbone_of(folder).model, Optimizer())


@torch.no_grad()
def by_hand(module: CausalModule, items: list[dict[str, Tensor]]) -> tuple[np.ndarray, np.ndarray]:
    """Negative log-likelihood of each response token, one text at a time, and whether the model ranks it first."""
    losses, hits = [], []
    for item in items:
        logits = module.model(input_ids=item["input_ids"][None]).logits[0].double().numpy()
        for at, token in enumerate(item["labels"].tolist()):
            if token != -100:
                scores = logits[at - 1]
                losses.append(np.log(np.exp(scores - scores.max()).sum()) + scores.max() - scores[token])
                hits.append(scores.argmax() == token)
    return np.array(losses), np.array(hits)


def validate(module: CausalModule, items: list[dict[str, Tensor]], batch_size: int) -> dict[str, float]:
    loader = torch.utils.data.DataLoader(items, batch_size, collate_fn=Collate(PAD))  # type: ignore[arg-type]  # a list
    with quiet():
        trainer = pl.Trainer(logger=False, enable_checkpointing=False, enable_progress_bar=False, accelerator="cpu")
        return dict(trainer.validate(module, loader, verbose=False)[0])


def test_the_training_loss_is_the_mean_over_a_batch_s_response_tokens(module: CausalModule, examples: Examples) -> None:
    items = [examples[i] for i in range(9)]
    losses, _ = by_hand(module, items)
    np.testing.assert_allclose(module.model(**Collate(PAD)(items)).loss.item(), losses.mean(), rtol=1e-5)


@pytest.mark.parametrize("batch_size", [1, 7, 64])
def test_validation_counts_every_token_alike_however_examples_are_batched(
    batch_size: int, module: CausalModule, examples: Examples
) -> None:
    items = [examples[i] for i in range(len(examples))]
    losses, hits = by_hand(module, items)
    found = validate(module, items, batch_size)
    assert found["val_loss"] == pytest.approx(losses.mean(), rel=1e-6)
    assert found["val_perplexity"] == pytest.approx(np.exp(losses.mean()), rel=1e-5)
    assert found["val_acc"] == pytest.approx(hits.mean(), rel=1e-6)
    # which the mean over batches, or over examples, is not
    means = [by_hand(module, items[i : i + 7])[0].mean() for i in range(0, len(items), 7)]
    assert abs(np.mean(means) - losses.mean()) > 1e-3


def test_a_diverged_model_shows_that_its_loss_is_no_number(module: CausalModule, examples: Examples) -> None:
    with torch.no_grad():
        module.model.transformer.ln_f.weight[0] = float("nan")
    assert np.isnan(validate(module, [examples[0]], 1)["val_loss"])


def run(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *overrides: str, **tasks: list[str]) -> Result:
    in_empty_folder(tmp_path, monkeypatch)
    monkeypatch.setenv("FLT_DATA", str(folder))
    common = ["data=dolly", "data.local=rows.parquet", f"model={folder / 'gpt2'}", "model.max_length=16", "clients=3"]
    quick = ["rounds=2", "local.steps=3", "batch_size=4", "eval.examples=20", "eval.client_examples=4"]
    cfg = load_config([*common, *quick, *overrides])
    return train_cfg(dataclasses.replace(cfg, data={**cfg.data, "tasks": tasks}))


@pytest.mark.slow
def test_a_federation_of_clients_by_a_column_lowers_the_loss_with_lora_alone(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    column = ["partition.kind=by_column", "data.column=client"]
    result = run(folder, tmp_path, monkeypatch, "algo=fedit", "local.lr=0.02", *column)
    first, last = (figures["round/val_loss"] for figures in result.round_metrics)
    assert last < first
    assert np.exp(last) == pytest.approx(result.round_metrics[-1]["round/val_perplexity"], rel=1e-4)
    trains = {name for name, parameter in result.module.named_parameters() if parameter.requires_grad}
    assert trains
    assert all("lora_" in name for name in trains)


@pytest.mark.slow
def test_fl_tac_makes_a_job_of_each_category(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    result = run(folder, tmp_path, monkeypatch, "algo=fl_tac", open=["open_qa"], closed=["closed_*", "summ*"])
    assert {key for key in result.metrics if key.startswith("task/") and key.endswith("val_loss")} == {
        "task/open/val_loss", "task/closed/val_loss",
    }  # fmt: skip
    assert (result.exported / "group_1" / "adapter_config.json").is_file()


def test_a_client_of_a_column_is_the_same_in_all_of_its_tasks(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    in_empty_folder(tmp_path, monkeypatch)
    monkeypatch.setenv("FLT_DATA", str(folder))
    common = ["data=dolly", "data.local=rows.parquet", f"model={folder / 'gpt2'}", "model.max_length=16", "clients=3"]
    cfg = load_config(["algo=fl_tac", "partition.kind=by_column", "data.column=client", *common])
    made = federation(dataclasses.replace(cfg, data={**cfg.data, "tasks": {"a": ["open_qa"], "b": ["closed_qa"]}}))
    raw = dataset_sources.load(dataset_sources.DataConfig(**cfg.data))
    owners, categories = raw.values("train", "client"), raw.values("train", "category")
    found = {}
    for client in made.clients:
        for job in client.data:
            rows = job.dataset.rows[np.concatenate([job.train, job.held_out])]
            (owner,), (category,) = set(owners[rows].tolist()), set(categories[rows].tolist())
            found[client.id, job.task] = (owner, raw.label_names[category], len(rows))
    expected = {
        (owner, task): (owner, name, int(((owners == owner) & (categories == raw.label_names.index(name))).sum()))
        for owner in range(3)
        for task, name in (("a", "open_qa"), ("b", "closed_qa"))
    }
    assert found == expected


def test_a_card_says_that_the_model_writes_text(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    result = run(folder, tmp_path, monkeypatch, "algo=fedit", "rounds=1", "local.lr=0.02")
    plain = transformers.AutoModelForCausalLM.from_pretrained(folder / "gpt2")
    ids = torch.tensor([[5, 6, 7, 8]])
    before = plain(ids).logits.detach()
    loaded = peft.PeftModel.from_pretrained(plain, result.exported)
    assert isinstance(loaded, peft.PeftModelForCausalLM)
    found = loaded(ids).logits.detach()
    torch.testing.assert_close(found, result.module.eval()(input_ids=ids).detach(), atol=1e-5, rtol=0)
    assert not torch.allclose(found, before, atol=1e-2)
    assert loaded.generate(input_ids=ids, max_new_tokens=2).shape[1] > 4


def adapter(result: Result) -> dict[str, Tensor]:
    return {name: value.detach() for name, value in result.module.named_parameters() if "lora_" in name}


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_activations_from_the_cache_train_the_same_upper_blocks(
    kind: str, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_decoder(tmp_path / "decoder", kind)
    common = ["algo=fedit", "model.adapt_layers=top1", "rounds=1", f"model.path={tmp_path / 'decoder'}"]
    plain, cached = (run(folder, tmp_path, monkeypatch, *common, f"prefix_cache={switch}") for switch in ("off", "on"))
    found = adapter(cached)
    assert found
    assert {name.partition(f"{KINDS[kind]}.")[2][0] for name in found} == {str(LAYERS - 1)}
    for name, value in adapter(plain).items():
        torch.testing.assert_close(found[name], value, atol=1e-5, rtol=0)
    assert cached.metrics["round/val_loss"] == pytest.approx(plain.metrics["round/val_loss"], abs=1e-4)


@pytest.mark.slow
def test_bf16_and_recomputed_activations_lower_the_loss_too(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    common = ["algo=fedit", "local.lr=0.02", "model.gradient_checkpointing=true"]
    exact = run(folder, tmp_path, monkeypatch, *common).round_metrics
    rounded = run(folder, tmp_path, monkeypatch, *common, "precision=bf16-mixed").round_metrics
    for history in (exact, rounded):
        assert history[1]["round/val_loss"] < history[0]["round/val_loss"]
    assert rounded[-1]["round/val_loss"] == pytest.approx(exact[-1]["round/val_loss"], rel=0.1)


@pytest.mark.slow
@pytest.mark.parametrize("algo", ["algo=flora", "algo=sa_fedlora plan.until=1"])
def test_a_recipe_that_changes_the_base_leaves_a_model_with_the_logits_of_the_trained_one(
    algo: str, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    result = run(folder, tmp_path, monkeypatch, *algo.split(), "local.lr=0.02")
    assert result.exported.name == "model"
    ids = torch.tensor([[5, 6, 7, 8]])
    merged = transformers.AutoModelForCausalLM.from_pretrained(result.exported)
    with torch.no_grad():
        torch.testing.assert_close(merged(ids).logits, result.module.model(ids).logits, atol=1e-4, rtol=0)
    assert merged.get_output_embeddings().weight is merged.get_input_embeddings().weight
    assert merged.config.use_cache
    assert not any('"use_cache": false' in path.read_text() for path in result.exported.glob("*.json"))


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["model.head=label_names"], ["model.head=label_names", "linear", "causal"]),
        (["data.response=text"], ["data.response=text", "instruction"]),
        (["heads=task"], ["heads=task", "shape, shared", "no head"]),
        (["model.adapt_layers=top9"], ["model.adapt_layers=top9", "top3"]),
        (["jobs=per_task"], ["data.tasks.verse=poetry", "closed_qa, open_qa"]),
    ],
)
def test_what_a_causal_run_cannot_have_is_one_line(
    overrides: list[str], words: list[str], folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tasks = {"verse": ["poetry"]} if overrides == ["jobs=per_task"] else {"long": ["summarization"]}
    with pytest.raises(InputError) as error:
        run(folder, tmp_path, monkeypatch, "algo=fedit", *overrides, **tasks)
    assert "\n" not in str(error.value)
    assert all(word in str(error.value) for word in words), str(error.value)
    assert not (tmp_path / "lightning_logs").exists()
