"""What a configuration says reaches the loaders, the model and the callbacks of a run."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest
import tiny
from commands import in_empty_folder, metrics, train
from torch.utils.data import Subset

from flt.client.trainer import LocalTrainer
from flt.models.adapters.lora import LoraSettings, attach
from flt.run import build
from flt.run.compose import load_config
from flt.run.workload import federation


@pytest.fixture
def arguments(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A tiny BERT and texts of one to nine words."""
    in_empty_folder(tmp_path, monkeypatch)
    model, data = tiny.save_bert(tmp_path / "bert"), tiny.save_reviews(tmp_path / "reviews.csv")
    return ["algo=fedit", f"model={model}", f"data={data}", "model.max_length=16", "clients=2", "batch_size=4"]


def local_trainer_and_data(arguments: list[str]) -> tuple[LocalTrainer, Subset]:
    cfg = load_config(arguments)
    made = federation(cfg)
    layout, recipe = attach(made.module, LoraSettings(), 0), build.recipe(cfg, 1)
    return LocalTrainer(made.module, layout, recipe, build.local_settings(cfg), {}, made.collate), made.clients[0].data[
        0
    ].training_set


def padded(local_trainer: LocalTrainer, data: Subset) -> int:
    """Tokens of one pass that are nothing but padding."""
    return sum(int((batch["attention_mask"] == 0).sum()) for batch in local_trainer.loader(data, 3))


def test_a_fit_sees_batches_of_similar_lengths_unless_the_window_is_one(arguments: list[str]) -> None:
    similar, data = local_trainer_and_data(arguments)
    plain, _ = local_trainer_and_data([*arguments, "length_window=1"])
    assert padded(similar, data) < 0.5 * padded(plain, data)


def test_evaluation_goes_from_the_shortest_text_to_the_longest(arguments: list[str]) -> None:
    local_trainer, data = local_trainer_and_data(arguments)
    lengths = [batch["attention_mask"].sum(1).tolist() for batch in local_trainer.loader(data, None)]
    flat = list(itertools.chain.from_iterable(lengths))
    assert flat == sorted(flat)
    assert len(flat) == len(data)
    assert np.ptp(flat) > 3


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (["precision=bf16-mixed"], "eager"),
        (["precision=bf16-mixed", "model.attention=sdpa"], "sdpa"),
        (["precision=32-true"], "sdpa"),
        (["precision=32-true", "model.attention=eager"], "eager"),
    ],
)
def test_in_bf16_on_a_cpu_attention_is_eager_unless_told_otherwise(
    overrides: list[str], expected: str, arguments: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    made = federation(load_config([*arguments, *overrides]))
    assert made.module.model.config._attn_implementation == expected


@pytest.mark.slow
def test_a_column_parts_the_evaluation_whose_figures_are_means_over_its_values(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    in_empty_folder(tmp_path, monkeypatch)
    given = [
        "algo=fedit",
        "clients=2",
        "rounds=2",
        "eval.examples=null",
        "eval.test_examples=null",
        "data.column=label",
    ]
    found = {}
    for name, wanted in (("parted", "true"), ("whole", "false")):
        assert train(*given, f"eval.by_column={wanted}", f"name={name}") == 0
        found[name] = metrics(tmp_path / "lightning_logs" / name / "version_0")[-1]
    validation = federation(load_config([*given, "eval.by_column=true"])).validation
    assert [sorted({*map(int, part.labels)}) for part in validation.values()] == [
        [label] for label in range(5)
    ]  # the other digits pre-train the backbone
    parts = [float(found["parted"][f"task/{name}/val_acc"]) for name in validation]
    sizes = [len(part) for part in validation.values()]
    assert float(found["parted"]["round/val_acc"]) == pytest.approx(np.mean(parts))
    few = federation(load_config([*given, "eval.by_column=true", "eval.examples=4"])).validation
    assert [len(part) for part in few.values()] == [4] * 5
    # parts of 35 or 36 examples: the mean over them is nearly that over examples
    assert float(found["parted"]["test/acc"]) == pytest.approx(float(found["whole"]["test/acc"]), abs=0.01)
    assert float(found["whole"]["round/val_acc"]) == pytest.approx(np.average(parts, weights=sizes))


@pytest.mark.slow
def test_distributed_models_are_evaluated_where_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    in_empty_folder(tmp_path, monkeypatch)
    found = []
    for name, wanted in (("with", "true"), ("without", "false")):
        assert train("algo=hafl", "selection=truncate", f"eval.distributed={wanted}", f"name={name}") == 0
        found.append("distributed/rise_loss" in metrics(tmp_path / "lightning_logs" / name / "version_0")[0])
    assert found == [True, False]
