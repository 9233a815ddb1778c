"""The global model on training examples beside validation examples."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from commands import in_empty_folder, metrics, train
from toys import Toy, toy_clients, toy_data, toy_federator, toy_module, weights_of

from flt.algorithm.plan import AdapterPlan
from flt.algorithm.recipe import Recipe
from flt.algorithm.rule.mean import Mean
from flt.callbacks.evaluate import Evaluate
from flt.server.federator import Federator

TASKS = {(client, index): f"task{index}" for client in range(3) for index in range(2)}
VALIDATION = {f"task{index}": toy_data(40, seed=7, task=index) for index in range(2)}
TRAINING = {f"task{index}": toy_data(30, task=index) for index in range(2)}


def evaluated(every: int = 1, rounds: int = 2, recipe: Recipe | None = None) -> Federator:
    callback = Evaluate(VALIDATION, TASKS, every, training=TRAINING)
    federator = toy_federator(recipe, toy_clients(3, jobs=2), rounds=rounds, callbacks=[callback])
    federator.fit()
    return federator


def by_hand(federator: Federator) -> dict[str, tuple[float, float]]:
    """Loss and accuracy of the final model, as means over the two tasks."""
    module: Toy = toy_module()[0]
    module.load_state_dict(weights_of(federator), strict=False)
    module.eval()
    found = {}
    for name, sets in (("train", TRAINING), ("validation", VALIDATION)):
        with torch.no_grad():
            logits = {task: module(data.tensors[0]) for task, data in sets.items()}
        labels = {task: data.tensors[1] for task, data in sets.items()}
        losses = [float(torch.nn.functional.cross_entropy(logits[task], labels[task])) for task in sets]
        hits = [float((logits[task].argmax(-1) == labels[task]).float().mean()) for task in sets]
        found[name] = (sum(losses) / 2, sum(hits) / 2)
    return found


def test_the_gap_is_how_much_better_the_model_is_on_training_examples() -> None:
    federator = evaluated()
    last, expected = federator.history[-1], by_hand(federator)
    assert (last["train/loss"], last["train/acc"]) == pytest.approx(expected["train"], rel=1e-5)
    assert (last["round/val_loss"], last["round/val_acc"]) == pytest.approx(expected["validation"], rel=1e-5)
    assert last["gap/loss"] == pytest.approx(expected["validation"][0] - expected["train"][0], abs=1e-5)
    assert last["gap/acc"] == pytest.approx(expected["train"][1] - expected["validation"][1], abs=1e-5)
    assert last["gap/loss"] != 0


def test_the_gap_is_logged_where_the_global_model_is_evaluated_and_only_there() -> None:
    logged = [("train/loss" in metrics, "gap/acc" in metrics) for metrics in evaluated(every=2, rounds=3).history]
    assert logged == [(False, False), (True, True), (True, True)]
    private = Recipe(Mean(), plan=AdapterPlan(private=["B"]))
    assert not any(key.startswith(("train/", "gap/")) for key in evaluated(recipe=private).history[-1])


def test_a_run_logs_the_gap_if_it_is_asked_to_and_its_other_metrics_stay(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    in_empty_folder(tmp_path, monkeypatch)
    assert train("algo=fedit", "name=plain") == 0
    assert train("algo=fedit", "name=gap", "eval.train_examples=30") == 0
    (plain,), (gap,) = (metrics(tmp_path / "lightning_logs" / name / "version_0") for name in ("plain", "gap"))
    assert {key: gap[key] for key in plain} == plain
    assert sorted(gap.keys() - plain.keys()) == ["gap/acc", "gap/loss", "train/acc", "train/loss"]


@pytest.mark.parametrize(
    ("given", "line"),
    [
        (["eval.train_examples=-1"], "eval.train_examples=-1: allowed is an integer >= 0"),
        (
            ["eval.by_column=true", "eval.train_examples=5"],
            "eval.train_examples=5: allowed is 0 with eval.by_column=true",
        ),
    ],
    ids=["negative", "by column"],
)
def test_a_wrong_number_is_refused(
    given: list[str], line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    in_empty_folder(tmp_path, monkeypatch)
    assert train("algo=fedit", *given) == 2
    assert capsys.readouterr().err == f"error: {line}\n"
