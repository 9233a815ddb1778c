"""Predictions for new data: the model's own, in the order of the rows, in bounded memory, written at once."""

from __future__ import annotations

import csv
import json
import logging
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow.parquet
import pytest
import torch
import transformers
from trained import Trained

import flt
from flt.core.errors import InputError
from flt.export.inputs import TaskInputs
from flt.inference import predict as predicting
from flt.inference.predict import _predicted
from flt.inference.predictor import Predictor
from flt.inference.rows import Rows, open_rows

TEXTS = ["good film", "very very bad book", "", "not a good film", "bad", "a film"]


def alone(run: Path, texts: Sequence[str]) -> tuple[list[str], list[float]]:
    """The classes of texts and their probabilities by transformers and peft, one text after another."""
    export = next(run / kind for kind in ("adapter", "model") if (run / kind).is_dir())
    model: Any = flt.load(export)
    tokenizer = transformers.AutoTokenizer.from_pretrained(export)
    found = []
    for text in texts:
        with torch.no_grad():
            logits = model(**tokenizer(text, truncation=True, max_length=12, return_tensors="pt")).logits[0]
        found.append(torch.softmax(logits.double(), -1))
    (names,) = json.loads((export / "classes.json").read_text()).values()
    return [names[int(one.argmax())] for one in found], [float(one.max()) for one in found]


@pytest.mark.parametrize("name", ["text", pytest.param("merged", marks=pytest.mark.slow)])
def test_each_row_gets_what_the_model_alone_says_of_it(trained: Trained, name: str, tmp_path: Path) -> None:
    run = trained(name)
    ids = ["007", "=1+2", "-3", "@a", "+5", "x"]
    pd.DataFrame({"id": ids, "text": TEXTS}).to_csv(tmp_path / "new.csv", index=False)
    assert flt.predict(run, tmp_path / "new.csv", tmp_path / "out.csv", batch_size=2) == 6
    with (tmp_path / "out.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    names, probabilities = alone(run, TEXTS)
    assert list(rows[0]) == ["id", "text", "prediction", "probability"]
    assert [row["id"] for row in rows] == ids
    assert [row["text"] for row in rows] == TEXTS
    assert [row["prediction"] for row in rows] == names
    assert [float(row["probability"]) for row in rows] == pytest.approx(probabilities, abs=1e-6)


@pytest.mark.slow
def test_a_c2a_model_computes_with_the_activations_of_the_batch(trained: Trained) -> None:
    run = trained("c2a")
    export = trained.export("c2a")
    tokenizer = transformers.AutoTokenizer.from_pretrained(export)
    with torch.no_grad():
        batch = tokenizer(TEXTS, truncation=True, max_length=12, padding=True, return_tensors="pt")
        wanted = torch.softmax(flt.load(export)(**batch).logits.double(), -1).max(-1).values
    assert flt.predict(run, TEXTS)["probability"].tolist() == pytest.approx(wanted.tolist(), abs=1e-6)


def test_all_sources_and_formats_give_the_same_predictions(trained: Trained, tmp_path: Path) -> None:
    run, frame = trained("text"), pd.DataFrame({"text": TEXTS, "label": ["anything"] * 6})
    wanted = flt.predict(run, TEXTS)["prediction"].tolist()
    frame.to_parquet(tmp_path / "a.parquet")
    frame.to_feather(tmp_path / "a.feather")
    frame.to_json(tmp_path / "a.jsonl", orient="records", lines=True)
    frame.to_json(tmp_path / "a.json", orient="records", indent=1)
    frame.to_csv(tmp_path / "a.csv.gz", index=False)
    frame.to_csv(tmp_path / "a.tsv", index=False, sep="\t")
    for path in sorted(tmp_path.iterdir()):
        assert flt.predict(run, path)["prediction"].tolist() == wanted, path.name
        path.unlink()
    assert flt.predict(run, frame)["prediction"].tolist() == wanted
    for ending in (".csv", ".jsonl", ".parquet"):
        assert flt.predict(run, frame, tmp_path / f"p{ending}") == 6
    lines = [json.loads(line) for line in (tmp_path / "p.jsonl").read_text().splitlines()]
    table = pyarrow.parquet.read_table(tmp_path / "p.parquet").to_pylist()
    assert lines == table
    assert [row["prediction"] for row in lines] == wanted


def test_json_lines_may_have_values_of_several_types_and_keys_that_come_later(
    trained: Trained, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    rows = [{"text": text, "v": [1, "x", None, 2.5, [3], True][i]} for i, text in enumerate(TEXTS)]
    rows[3]["later"] = 1
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = flt.predict(trained("text"), tmp_path / "a.jsonl")
    assert found["v"].fillna("nothing").tolist() == ["1", "x", "nothing", "2.5", "[3]", "true"]
    assert found["prediction"].tolist() == flt.predict(trained("text"), TEXTS)["prediction"].tolist()
    assert "keys that the first row lacks are left out: later" in caplog.text


@pytest.mark.parametrize(
    ("text", "why"),
    [("id,text\n1,good\n2\n", r"Row #3: Expected 2 columns, got 1"), ("", "it is empty")],
)
def test_a_damaged_file_is_refused_with_its_row(trained: Trained, tmp_path: Path, text: str, why: str) -> None:
    (tmp_path / "a.csv").write_text(text)
    with pytest.raises(InputError, match=why):
        flt.predict(trained("text"), tmp_path / "a.csv", tmp_path / "out.csv")
    assert not (tmp_path / "out.csv").exists()


def test_the_files_of_a_folder_are_predicted_one_after_another(trained: Trained, tmp_path: Path) -> None:
    for name, part in (("a.csv", TEXTS[:3]), ("b.csv", TEXTS[3:])):
        pd.DataFrame({"text": part}).to_csv(tmp_path / name, index=False)
    found = flt.predict(trained("text"), tmp_path)
    assert found["prediction"].tolist() == flt.predict(trained("text"), TEXTS)["prediction"].tolist()


def test_probabilities_of_all_classes_add_up_to_one(trained: Trained) -> None:
    found = flt.predict(trained("text"), TEXTS, probabilities=True)
    columns = [name for name in found if name.startswith("probability_")]
    assert columns == [f"probability_{name}" for name in ("good film", "bad film", "good book", "bad book")]
    assert found[columns].sum(axis=1).tolist() == pytest.approx([1.0] * 6)
    assert found[columns].max(axis=1).tolist() == found["probability"].tolist()


def test_columns_that_are_called_like_the_results_are_replaced(
    trained: Trained, caplog: pytest.LogCaptureFixture
) -> None:
    found = flt.predict(trained("text"), pd.DataFrame({"text": TEXTS, "prediction": ["old"] * 6}))
    assert list(found) == ["text", "prediction", "probability"]
    assert "old" not in found["prediction"].tolist()
    assert "columns prediction are replaced" in caplog.text


def test_the_most_certain_of_several_models_predicts_and_a_line_says_so(
    trained: Trained, caplog: pytest.LogCaptureFixture
) -> None:
    run, figures = trained("personal"), {}
    for client in ("client_0", "client_1"):
        rows = flt.predict(run, TEXTS, group=client, probabilities=True)
        shares = rows[[name for name in rows if name.startswith("probability_")]].to_numpy()
        figures[client] = float((-(shares * np.log(shares)).sum(1) / np.log(4)).mean())
    chosen = min(figures, key=lambda name: figures[name])
    with caplog.at_level(logging.INFO, "flt"):
        found = flt.predict(run, TEXTS)
    assert found.equals(flt.predict(run, TEXTS, group=chosen))
    assert f"{chosen} predicts: it is the most certain on the first 6 rows" in caplog.text
    assert f"{figures[chosen]:.3f}" in caplog.text


def test_of_equally_certain_models_the_first_predicts_and_only_the_first_rows_decide(
    trained: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    run = shutil.copytree(trained("personal"), tmp_path / "version_0")
    for name in ("adapter_model.safetensors", "flt_base.json"):
        shutil.copy(run / "adapter" / "client_0" / name, run / "adapter" / "client_1" / name)
    monkeypatch.setattr("flt.inference.predict.SAMPLE", 2)
    with caplog.at_level(logging.INFO, "flt"):
        flt.predict(run, TEXTS)
    assert "client_0 predicts: it is the most certain on the first 2 rows" in caplog.text


def test_a_group_may_be_given_by_its_number_and_a_task_by_its_name(trained: Trained) -> None:
    run = trained("tasks")
    low = flt.predict(run, "digits", task="low")
    assert set(low["prediction"]) <= {"5", "6"}
    assert set(flt.predict(run, "digits", group=2)["prediction"]) <= {"5", "6", "7", "8"}


def test_tasks_that_share_a_models_outputs_are_told_apart_by_the_user(trained: Trained) -> None:
    run = trained("shared")
    with pytest.raises(InputError, match="task=None: they share the outputs of model; allowed is digit, parity"):
        flt.predict(run, "digits")
    assert set(flt.predict(run, "digits", task="parity")["prediction"]) <= {"odd", "even"}


def test_one_of_several_data_sets_is_predicted_if_the_user_says_which(trained: Trained) -> None:
    run = trained("shared")
    with pytest.raises(
        InputError,
        match=r"^data=digits_two: it consists of several data sets, .*; allowed is data.use=\[digit\] or data",
    ):
        flt.predict(run, "digits_two", task="parity")
    found = flt.predict(run, "digits_two", task="parity", overrides=["data.use=[parity]"])
    assert len(found) == evaluated_examples(run, "parity")


def evaluated_examples(run: Path, task: str) -> int:
    found: Any = flt.evaluate(run)
    return int(found.as_dict()["tasks"][task]["examples"])


@pytest.mark.slow
def test_images_of_a_folder_are_named_and_those_of_a_table_numbered(trained: Trained, tmp_path: Path) -> None:
    run = trained("photos")
    found = flt.predict(run, "photos")
    assert sorted(found["file_name"])[:2] == ["dark/0.png", "dark/1.png"]
    names = [f"dark/{i}.png" for i in range(3)]
    images = [Path("photos", name).read_bytes() for name in names]
    pd.DataFrame({"image": images}).to_parquet(tmp_path / "images.parquet")
    table = flt.predict(run, tmp_path / "images.parquet")
    assert table["row"].tolist() == [1, 2, 3]
    by_name = found.set_index("file_name").loc[names]
    assert table["prediction"].tolist() == by_name["prediction"].tolist()
    assert table["probability"].tolist() == pytest.approx(by_name["probability"].tolist(), abs=1e-6)


def test_an_interrupted_prediction_leaves_nothing_and_keeps_the_old_file(trained: Trained, tmp_path: Path) -> None:
    (tmp_path / "out.csv").write_text("old")

    def interrupt(done: int, total: int | None) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        flt.predict(trained("text"), TEXTS, tmp_path / "out.csv", watch=interrupt)
    assert [path.name for path in tmp_path.iterdir()] == ["out.csv"]
    assert (tmp_path / "out.csv").read_text() == "old"


def test_logits_that_are_not_finite_are_refused(trained: Trained, monkeypatch: pytest.MonkeyPatch) -> None:
    load = predicting.load_model

    def damaged(*arguments: Any) -> Any:
        loaded = load(*arguments)
        for parameter in loaded.backbone.model.parameters():
            parameter.data.fill_(float("nan"))
        return loaded

    monkeypatch.setattr(predicting, "load_model", damaged)
    with pytest.raises(InputError, match="run=logits that aren't finite: allowed is a model whose training"):
        flt.predict(trained("text"), TEXTS)


class Stub(Predictor):
    """A predictor that says the same of every row at once."""

    names = ["a", "b"]  # a constant in the place of a property

    def log_probabilities(self, table: Any, inputs: Sequence[str]) -> torch.Tensor:
        return torch.log(torch.tensor([[0.25, 0.75]], dtype=torch.float64)).repeat(table.num_rows, 1)


def anonymous_memory() -> int:
    """Bytes of memory of this process that aren't those of a file."""
    (line,) = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("RssAnon")]
    return int(line.split()[1]) * 1024


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="only Linux says how much memory a process has")
@pytest.mark.parametrize("ending", ["csv", "jsonl", "parquet"])
def test_the_memory_does_not_grow_with_the_number_of_rows(ending: str, tmp_path: Path) -> None:
    path, rows, text = tmp_path / f"big.{ending}", 80_000, "word " * 200
    many: dict[str, Callable[[], None]] = {
        "csv": lambda: _write(path, "id,text\n", (f'{i},"{text}"\n' for i in range(rows))),
        "jsonl": lambda: _write(path, "", (f'{{"id": {i}, "text": "{text}"}}\n' for i in range(rows))),
        "parquet": lambda: _write_parquet(path, rows, text),
    }
    many[ending]()
    opened = open_rows(path, TaskInputs("text", ("text",)))
    peaks, before, done = [0], anonymous_memory(), 0
    for columns in _predicted(Stub(None, 64), opened, False, lambda *_: peaks.append(anonymous_memory())):  # type: ignore[arg-type]  # no model
        done += len(columns["prediction"])
    assert done == rows
    assert max(peaks) - before < 0.75 * rows * len(text)


def _write(path: Path, head: str, lines: Any) -> None:
    with path.open("w") as file:
        file.write(head)
        file.writelines(lines)


def _write_parquet(path: Path, rows: int, text: str) -> None:
    schema = pyarrow.schema([("id", pyarrow.int64()), ("text", pyarrow.string())])
    with pyarrow.parquet.ParquetWriter(path, schema, use_dictionary=False, compression="none") as writer:
        for start in range(0, rows, 10_000):
            ids = list(range(start, start + 10_000))
            writer.write_table(pyarrow.table({"id": ids, "text": [f"{text}{i}" for i in ids]}, schema=schema))


def test_batches_of_rows_can_be_read_again(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("text\n" + "x\n" * 5)
    rows: Rows = open_rows(tmp_path / "a.csv", TaskInputs("text", ("text",)))
    assert rows.count == 5
    for _ in range(2):
        assert [table.num_rows for table in rows.batches(2)] == [2, 2, 1]
