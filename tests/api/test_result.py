"""The result of a run in Python and in a notebook."""

from __future__ import annotations

import sys
from html.parser import HTMLParser
from pathlib import Path
from types import ModuleType
from typing import Any

import pandas as pd
import pytest
import torch
from commands import in_empty_folder
from torch.utils.data import ConcatDataset
from toys import Toy, toy_data

import flt
from flt.api import Result
from flt.core.errors import InputError

ROUNDS = [
    {"round": 1, "round/val_acc": 0.25, "round/val_loss": 2.0, "comm/total_up": 1000, "comm/total_down": 2000},
    {"round": 2, "round/val_acc": 0.5, "round/val_loss": 1.0, "comm/total_up": 2000, "comm/total_down": 4000,
     "test/acc": 0.75, "time/total_seconds": 4.0},
]  # fmt: skip
FOLDER = Path("lightning_logs/hafl/version_3")


def result_of(rounds: list[dict[str, float]], path: Path = FOLDER, algo: str = "hafl", **changes: Any) -> Result:
    return Result(torch.nn.Linear(2, 2), rounds[-1], path, rounds, path / "adapter", algo, **changes)  # type: ignore[arg-type]  # any module


class TestRepr:
    def test_it_is_one_short_line(self) -> None:
        assert repr(result_of(ROUNDS)) == (
            "Result(hafl, 2 rounds, test acc 0.7500, 2.0 kB up, 4.0 kB down, lightning_logs/hafl/version_3)"
        )

    @pytest.mark.parametrize(
        ("metrics", "shown"),
        [
            ({"round/val_acc": 0.25, "round/val_loss": 2.0}, "Result(hafl, 1 round, val_acc 0.2500, x)"),
            ({"round/val_loss": 2.0, "test/loss": 3.0}, "Result(hafl, 1 round, test loss 3.0000, x)"),
            (
                {"clients/val_acc": 0.5, "clients/val_acc_worst10": 0},
                "Result(hafl, 1 round, clients' val_acc 0.5000, x)",
            ),
            ({}, "Result(hafl, 1 round, x)"),
        ],
    )
    def test_it_has_the_best_figure_that_was_measured(self, metrics: dict[str, float], shown: str) -> None:
        assert repr(result_of([{"round": 1, **metrics}], Path("x"))) == shown


class Cells(HTMLParser):
    """Rows of the cells' texts, and the names of the tags."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.rows: list[list[str]] = []
        self.tags: set[str] = set()
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self.tags.add(tag)
        if tag == "tr":
            self.rows.append([])

    def handle_data(self, data: str) -> None:
        self.rows[-1].append(data)


class TestHtml:
    def test_it_is_the_table_that_a_run_prints(self) -> None:
        rows = Cells(result_of(ROUNDS)._repr_html_()).rows
        assert rows[0] == ["model", "accuracy", "loss"]
        assert ["global model, validation", "0.5000", "1.0000"] in rows
        assert ["global model, test", "0.7500", "-"] in rows
        assert ["bytes up (clients to server)", "2.0 kB", "1.0 kB per round"] in rows
        assert rows[-2:] == [["recipe", "hafl"], ["folder", "lightning_logs/hafl/version_3"]]

    def test_names_are_escaped(self) -> None:
        last = {"round": 1, "task/<script>x</script>/val_acc": 0.5}
        page = Cells(result_of([last], Path("<img src=x>"), "<b>")._repr_html_())
        assert page.tags == {"table", "thead", "tbody", "tr", "th", "td"}
        assert ["folder", "<img src=x>"] in page.rows
        assert ["task <script>x</script>, validation", "0.5000", "-"] in page.rows


class TestHistory:
    def test_rounds_are_the_index_and_missing_figures_are_nan(self) -> None:
        history = result_of(ROUNDS).history
        assert history.index.name == "round"
        assert list(history.index) == [1, 2]
        assert list(history["round/val_acc"]) == [0.25, 0.5]
        assert history["test/acc"].isna().tolist() == [True, False]
        assert list(history.columns) == sorted(history.columns)

    def test_a_change_of_the_frame_changes_nothing_else(self) -> None:
        result = result_of(ROUNDS)
        changed = result.history
        changed.loc[1, "round/val_acc"] = 9.0
        assert result.history.loc[1, "round/val_acc"] == 0.25
        assert result.round_metrics[0]["round/val_acc"] == 0.25


@pytest.fixture
def called(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Calls of flt.predict, flt.evaluate and flt.report, which return the number of the call."""
    calls: list[Any] = []
    for name, function in (
        ("inference.predict", "predict"),
        ("inference.evaluate", "evaluate"),
        ("reports.page", "report"),
    ):
        module = ModuleType(f"flt.{name}")
        setattr(
            module, function, lambda *given, _name=function, **named: calls.append((_name, *given, named)) or len(calls)
        )
        monkeypatch.setitem(sys.modules, f"flt.{name}", module)
    return calls  # fmt: skip


class TestMethods:
    def test_they_call_the_functions_with_the_runs_folder(self, called: list[Any]) -> None:
        result = result_of(ROUNDS)
        assert result.predict("new.csv", out="p.csv", group=1) == 1
        assert result.evaluate("test.csv", split="test") == 2
        assert result.report() == 3
        assert called == [
            ("predict", FOLDER, "new.csv", "p.csv", {"group": 1}),
            ("evaluate", FOLDER, "test.csv", "test", {}),
            ("report", FOLDER, None, {}),
        ]

    def test_after_fit_they_get_a_copy_of_the_module_and_its_collate_function(self, called: list[Any]) -> None:
        result = result_of(ROUNDS, has_own_module=True, collate_fn=list)
        result.predict([1, 2])
        result.evaluate([1, 2], collate_fn=None)
        (_, _, data, _, predicting), (*_, evaluating) = called
        assert data == [1, 2]
        assert predicting["collate_fn"] is list
        assert evaluating["collate_fn"] is None  # what the caller says counts
        assert predicting["module"] is not result.module
        assert torch.equal(predicting["module"].weight, result.module.weight)


def shares() -> list[flt.ClientSpec]:
    return flt.partition(toy_data(60), alpha=5.0, clients=3)


@pytest.fixture(scope="module")
def fitted(tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tmp_path_factory.mktemp("result")
    with pytest.MonkeyPatch.context() as patch:
        in_empty_folder(folder, patch)
        yield flt.fit(
            Toy(),
            shares(),
            "fedit",
            2,
            batch_size=4,
            progress=False,
            overrides=["local.steps=3", f"root={folder}/runs"],
        )


@pytest.mark.slow
def test_history_is_what_metrics_csv_holds(fitted: Result) -> None:
    assert fitted.has_own_module
    assert fitted.algo == "fedit"
    written = pd.read_csv(fitted.path / "metrics.csv", index_col="round")
    pd.testing.assert_frame_equal(fitted.history, written, check_exact=True)


@pytest.mark.slow
def test_predictions_after_fit_are_those_of_the_trained_module(fitted: Result) -> None:
    before = {name: value.clone() for name, value in fitted.module.state_dict().items()}
    inputs = torch.stack([toy_data(60)[i][0] for i in range(9)])
    predicted = fitted.predict(list(inputs))
    torch.testing.assert_close(predicted, fitted.module(inputs).detach(), rtol=0, atol=1e-6)
    after = fitted.module.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(after[name], value) for name, value in before.items())


@pytest.mark.slow
def test_without_a_predict_step_a_batch_that_forward_does_not_take_is_one_line(fitted: Result) -> None:
    with pytest.raises(
        InputError, match=r"^module=Toy: it has no predict_step, so forward got the whole batch: "
    ) as said:
        fitted.predict(toy_data(9))  # batches of inputs and labels
    assert str(said.value).endswith("; allowed is a module whose predict_step takes a batch of the data set")


@pytest.mark.slow
def test_an_evaluation_after_fit_is_that_of_the_run(fitted: Result) -> None:
    held_out = [job.validation_set(None) for client in shares() for job in client.data]
    found = fitted.evaluate(ConcatDataset(held_out))
    assert found == {key: pytest.approx(fitted.metrics[f"round/{key}"]) for key in ("val_acc", "val_loss")}


@pytest.mark.slow
def test_the_report_of_a_result_is_a_file_in_its_folder(fitted: Result) -> None:
    assert fitted.report().parent == fitted.path
    assert fitted.report(fitted.path / "own.html").read_text().lstrip().startswith("<!")
