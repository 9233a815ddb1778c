"""Evaluation of exported models: the run's own figures, scikit-learn's figures, and labels by name."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.metrics import accuracy_score, confusion_matrix, precision_recall_fscore_support
from torch.utils.data import TensorDataset
from toys import Toy, toy_data
from trained import Trained

import flt
from flt.cli.evaluate import _head
from flt.core.errors import InputError
from flt.data.task_rounds import with_task_changes
from flt.inference.class_matching import by_task
from flt.inference.evaluation import Evaluation, TaskEvaluation
from flt.inference.metrics import ClassScore, Scores
from flt.inference.models import find_models
from flt.inference.own_data import own_settings
from flt.run.stored import read_run
from flt.run.workload import federation

CLASSES = ["good film", "bad film", "good book", "bad book"]
slow = pytest.mark.slow


def evaluated(*arguments: object, **settings: object) -> Evaluation:
    found = flt.evaluate(*arguments, **settings)  # type: ignore[arg-type]  # whatever a test gives
    assert isinstance(found, Evaluation)
    return found


def own_figures(run: Path, prefix: str = "test/") -> dict[str, float]:
    return {key.removeprefix(prefix): v for key, v in read_run(run).history[-1].items() if key.startswith(prefix)}


@pytest.mark.parametrize(
    "name", ["text", "tasks", *(pytest.param(name, marks=slow) for name in ("merged", "c2a", "names", "photos"))]
)
def test_the_runs_own_test_examples_give_its_own_test_figures(trained: Trained, name: str) -> None:
    run = trained(name)
    found, own = evaluated(run).metrics, own_figures(run)
    assert found["accuracy"] == pytest.approx(own["acc"], abs=1e-7)
    assert found["nll"] == pytest.approx(own["loss"], abs=1e-6)


@pytest.mark.slow
def test_a_causal_model_has_the_runs_own_loss_and_perplexity(trained: Trained) -> None:
    run = trained("causal")
    found, own = evaluated(run), own_figures(run)
    assert found.metrics == pytest.approx(
        {"loss": own["loss"], "perplexity": own["perplexity"], "accuracy": own["acc"]}
    )
    assert "confusion_matrix" not in found.as_dict()["tasks"]["all"]


def test_the_validation_split_gives_the_validation_figures_of_the_last_round(trained: Trained) -> None:
    run = trained("text")
    found, own = evaluated(run, split="validation").metrics, own_figures(run, "round/")
    assert (found["accuracy"], found["nll"]) == pytest.approx((own["val_acc"], own["val_loss"]), abs=1e-6)


def test_the_figures_are_those_of_scikit_learn(trained: Trained) -> None:
    run = trained("text")
    rows = flt.predict(run, "reviews.csv", probabilities=True)
    true, predicted = rows["label_name"].tolist(), rows["prediction"].tolist()
    found = evaluated(run, "reviews.csv")
    scores = found.tasks[0].scores
    assert found.metrics["accuracy"] == pytest.approx(accuracy_score(true, predicted), abs=1e-6)
    wanted = precision_recall_fscore_support(true, predicted, labels=CLASSES, zero_division=0)
    for number, own in enumerate(("precision", "recall", "f1", "support")):
        assert [getattr(one, own) for one in scores.classes] == pytest.approx(wanted[number].tolist(), abs=1e-6)
    assert np.array_equal(scores.confusion, confusion_matrix(true, predicted, labels=CLASSES))
    of_truth = [row[f"probability_{row['label_name']}"] for _, row in rows.iterrows()]
    assert found.metrics["nll"] == pytest.approx(-np.log(of_truth).mean(), abs=1e-6)
    seen = [f for f, n, p in zip(wanted[2], wanted[3], [predicted.count(c) for c in CLASSES], strict=True) if n or p]
    assert found.metrics["macro_f1"] == pytest.approx(float(np.mean(seen)), abs=1e-6)


def test_labels_are_matched_by_name_whatever_their_order_and_numbers(trained: Trained, tmp_path: Path) -> None:
    with open("reviews.csv") as file:
        rows = [row for row in csv.DictReader(file) if row["label_name"] in ("bad book", "good book")]
    plain, numbered = tmp_path / "plain.csv", tmp_path / "numbered.csv"
    plain.write_text("text,label\n" + "".join(f"{r['text']},{r['label_name']}\n" for r in rows))
    numbered.write_text(
        "text,label,label_name\n" + "".join(f"{r['text']},{7 - int(r['label'])},{r['label_name']}\n" for r in rows)
    )
    first, second = (evaluated(trained("text"), path) for path in (plain, numbered))
    assert first.metrics == second.metrics
    assert [one.support for one in first.tasks[0].scores.classes] == [0, 0, 30, 30]


def test_numbers_are_positions_of_classes_with_names_and_a_line_says_so(
    trained: Trained, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "n.csv").write_text("text,label\ngood film,0\nbad book,3\n")
    found = evaluated(trained("text"), tmp_path / "n.csv")
    assert [one.support for one in found.tasks[0].scores.classes] == [1, 0, 0, 1]
    assert "numbers of the model's classes: 0 is good film, 3 is bad book" in caplog.text


def test_classes_that_training_merged_are_merged_again() -> None:
    merges = {"all": {"animal": ["cat", "d*"], "thing": ["car"]}}
    ((task, rows, labels),) = by_task(
        ["car", "cat", "dog", "thing"], np.array([0, 1, 2, 3]), {"all": ["animal", "thing"]}, merges
    )
    assert (task, rows.tolist(), labels.tolist()) == ("all", [0, 1, 2, 3], [1, 0, 0, 1])


def test_examples_go_to_the_task_that_knows_their_class() -> None:
    classes = {"low": ["5", "6"], "high": ["7", "8"]}
    found = by_task(["8", "5", "7"], np.array([0, 1, 1, 2]), classes, {"low": {}, "high": {}})
    assert [(task, rows.tolist(), labels.tolist()) for task, rows, labels in found] == [
        ("low", [1, 2], [0, 0]), ("high", [0, 3], [1, 0]),
    ]  # fmt: skip


def test_tasks_with_the_same_classes_must_be_told_apart_by_the_user() -> None:
    with pytest.raises(InputError, match=r"task=None: the classes of the data fit several tasks; allowed is a, b"):
        by_task(["no", "yes"], np.array([0, 1]), {"a": ["no", "yes"], "b": ["yes", "no"]}, {"a": {}, "b": {}})


def test_each_task_has_the_model_with_which_the_run_evaluates_it(trained: Trained) -> None:
    run = trained("tasks")
    last = read_run(run).history[-1]
    found = evaluated(run, split="validation")
    for task in found.tasks:
        assert task.metrics["accuracy"] == pytest.approx(last[f"task/{task.task}/val_acc"], abs=1e-7)
        assert task.model in task.models
    whole = evaluated(run, "digits", "validation")
    alone = evaluated(run, "digits", "validation", group=found.tasks[0].model)
    assert [task.metrics for task in alone.tasks] == [
        task.metrics for task in whole.tasks if task.model == found.tasks[0].model
    ]


def test_without_a_global_model_the_figures_are_means_over_the_clients(trained: Trained) -> None:
    task = evaluated(trained("personal"), "reviews.csv").tasks[0]
    own = [scores.metrics["accuracy"] for scores in task.models.values()]
    assert list(task.models) == ["client_0", "client_1"]
    assert task.metrics["accuracy"] == pytest.approx(sum(own) / 2)
    written = task.as_dict()
    assert written["model"] is None
    assert written["worst_10_percent"]["accuracy"] == min(own)
    assert "confusion_matrix" not in written


def test_a_clients_own_model_has_the_runs_own_figures_on_the_examples_that_the_client_holds_out(
    trained: Trained,
) -> None:
    run = trained("alone")  # nothing is averaged: the final models are those that the clients have just trained
    (task,) = evaluated(run).tasks
    own = own_figures(run, "clients/fitted_")
    figures = task.as_dict()["held_out"]
    assert figures["mean"]["accuracy"] == pytest.approx(own["val_acc"], abs=1e-7)
    assert figures["mean"]["nll"] == pytest.approx(own["val_loss"], abs=1e-6)
    each = [scores.metrics["accuracy"] for scores in task.clients.values()]
    assert figures["standard_deviation"]["accuracy"] == pytest.approx(float(np.std(each)))
    assert figures["worst_10_percent"]["accuracy"] == min(each)
    assert list(figures["clients"]) == ["client_0", "client_1"]


@pytest.mark.parametrize("name", ["tasks", pytest.param("changing", marks=slow)])
def test_a_client_of_a_group_is_evaluated_with_the_groups_model_on_what_the_run_lets_it_hold_out(
    trained: Trained, name: str
) -> None:
    run = trained(name)
    cfg = own_settings(run)
    clients = with_task_changes(federation(cfg).clients, cfg.task_changes or {})
    jobs = {(one.id, index): job.at(cfg.rounds) for one in clients for index, job in enumerate(one.data)}
    tasks = {task.task: task for task in evaluated(run).tasks}
    seen = 0
    for model in find_models(run):
        module: Any = flt.load(model.folder).eval()
        for client, index in model.inputs.jobs:
            rows = list(jobs[client, index].validation_set(cfg.eval.client_examples))
            if rows:
                with torch.no_grad():
                    logits = module(torch.stack([row["pixel_values"] for row in rows])).logits
                wanted = torch.nn.functional.cross_entropy(logits, torch.stack([row["labels"] for row in rows]))
                scores = tasks[jobs[client, index].task].clients[f"client_{client}"]
                assert scores.metrics["nll"] == pytest.approx(float(wanted), abs=1e-5)
                seen += 1
    assert seen == sum(len(task.clients) for task in tasks.values()) > 0


def test_the_clients_are_evaluated_where_that_is_asked_for_or_usual(trained: Trained) -> None:
    run = trained("text")
    assert not evaluated(run, clients=False).tasks[0].clients
    assert not evaluated(run, split="validation").tasks[0].clients
    assert evaluated(run, split="validation", clients=True).tasks[0].clients.keys() == {"client_0", "client_1"}
    with pytest.raises(InputError, match="clients=True: only the run's own data belong to its clients"):
        flt.evaluate(run, "reviews.csv", clients=True)
    with pytest.raises(InputError, match=r"data.label=x: .*; allowed is nothing without data="):
        flt.evaluate(run, overrides=["data.label=x"])


def test_the_values_of_a_column_have_the_runs_own_figures_and_their_mean_is_the_tasks(trained: Trained) -> None:
    run = trained("values")
    found = evaluated(run)
    assert found.metrics["accuracy"] == pytest.approx(own_figures(run)["acc"], abs=1e-7)
    assert found.metrics["nll"] == pytest.approx(own_figures(run)["loss"], abs=1e-6)
    of_values = evaluated(run, split="validation").tasks[0].values
    last = read_run(run).history[-1]
    assert {value: scores.metrics["nll"] for value, scores in of_values.items()} == pytest.approx(
        {value: last[f"task/{value}/val_loss"] for value in CLASSES}, abs=1e-6
    )
    other = evaluated(run, "reviews.csv", overrides=["data.column=label_name"]).as_dict()["tasks"]["all"]
    assert {value: one["examples"] for value, one in other["values"].items()} == dict.fromkeys(sorted(CLASSES), 30)


def test_data_of_further_tasks_are_left_out_and_a_line_says_so(
    trained: Trained, caplog: pytest.LogCaptureFixture
) -> None:
    run = trained("tasks")
    whole = {task.task: task for task in evaluated(run, "digits").tasks}
    (low,) = evaluated(run, "digits", task="low").tasks
    assert low.metrics == whole["low"].metrics
    export = run / "adapter" / whole["high"].model
    caplog.clear()
    (high,) = evaluated(export).tasks
    assert high.metrics == whole["high"].metrics
    assert "left out are examples of tasks that the models don't know: low" in caplog.text


def test_the_json_has_the_keys_that_are_documented(trained: Trained) -> None:
    found = json.loads(json.dumps(evaluated(trained("text"), "reviews.csv").as_dict(), allow_nan=False))
    assert list(found) == ["schema", "run", "data", "split", "kind", "metrics", "tasks"]
    task = found["tasks"]["all"]
    assert list(task) == ["model", "examples", "metrics", "classes", "confusion_matrix", "models"]
    assert list(task["classes"][0]) == ["class", "precision", "recall", "f1", "support"]
    assert (found["schema"], found["run"], found["split"], task["examples"]) == (1, "text/version_0", None, 120)
    assert sum(map(sum, task["confusion_matrix"])) == 120


def test_in_python_an_evaluation_is_shown_in_one_line_and_a_batch_has_an_example(trained: Trained) -> None:
    found = evaluated(trained("text"), "reviews.csv")
    assert repr(found).startswith(
        f"Evaluation('text/version_0', 'reviews.csv', accuracy={found.metrics['accuracy']:.4g}, "
    )
    with pytest.raises(InputError, match="batch_size=0: allowed is an integer >= 1"):
        flt.evaluate(trained("text"), "reviews.csv", batch_size=0)


def test_an_export_alone_reads_new_data_and_a_run_of_an_earlier_version_does_too(
    trained: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = evaluated(trained("merged" if "merged" in trained.done else "text"), "reviews.csv").metrics
    name = "merged" if "merged" in trained.done else "text"
    reviews = trained.place / "reviews.csv"
    run = trained.copy(name, tmp_path)
    monkeypatch.chdir(tmp_path)
    export = next(run / kind for kind in ("adapter", "model") if (run / kind).is_dir())
    (export / "flt_inputs.json").unlink()
    assert evaluated(run, reviews).metrics == pytest.approx(wanted)
    alone = shutil.copytree(export, tmp_path / "sent")
    with pytest.raises(InputError, match=r"flt_inputs.json is missing.*allowed is an export of this version"):
        flt.evaluate(alone, reviews)


def test_a_users_module_is_evaluated_in_python_with_its_own_metrics(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    data = toy_data(60)
    toy, again, rows = (seeded(kind) for kind in (Toy, Toy, Rows))
    result = flt.fit(toy, flt.partition(data, by=None, clients=2), "fedit", 1, validation=data, progress=False)
    found = flt.evaluate(result.path, data, module=again)
    assert isinstance(found, dict)
    own = {key: value for key, value in result.metrics.items() if key.startswith("round/")}
    assert found == pytest.approx({key.removeprefix("round/"): value for key, value in own.items()}, abs=1e-6)
    with pytest.raises(InputError, match=r"a module of your own.*take module="):
        flt.evaluate(result.path, "digits")
    with torch.no_grad():
        inputs = torch.stack([data[i][0] for i in range(5)])
        wanted = result.module.eval()(inputs)
    assert torch.allclose(flt.predict(result.path, TensorDataset(inputs), module=rows, batch_size=2), wanted, atol=1e-6)


def seeded(kind: type[Toy]) -> Toy:
    torch.manual_seed(0)
    return kind()


class Rows(Toy):
    """A toy that predicts examples without labels."""

    def predict_step(self, batch: list[torch.Tensor], batch_idx: int) -> torch.Tensor:
        return self(batch[0])


def test_a_notebook_shows_the_figures_in_tables_in_which_names_are_escaped() -> None:
    classes = tuple(ClassScore(name, 0.5, 0.25, 0.125, 4) for name in ("<b>", "b"))
    scores = Scores({"accuracy": 0.75, "entropy": 1.0}, 8, classes, ((1, 3), (2, 2)))
    found = Evaluation(
        "hafl/version_0", "<i>.csv", "test", "text", (TaskEvaluation("all", "model", {"model": scores}),)
    )
    page = found._repr_html_()
    for cell in ("0.7500", "8", "0.1250", "&lt;b&gt;", "all"):
        assert f"<td>{cell}</td>" in page
    assert "<caption>hafl/version_0 &lt;i&gt;.csv test</caption>" in page
    assert "<b>" not in page
    assert "entropy" not in page


def test_a_head_is_said_with_its_classes() -> None:
    scores = Scores({"accuracy": 0.75}, 8, tuple(ClassScore(str(n), 0, 0, 0, 4) for n in range(5, 17)), ())
    task = TaskEvaluation("all", "group_2/head_12", {"group_2/head_12": scores})
    assert _head(task) == "head_12 is the head for the classes 5, 6, 7, 8, 9, 10, 11, 12, 13, 14 and 2 more"
    assert _head(TaskEvaluation("all", "group_2", {"group_2": scores})) == ""
