"""The commands ``flt evaluate`` and ``flt predict``: what they print, and one line for every mistake."""

from __future__ import annotations

import csv
import errno
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from trained import Trained

import flt
from flt.cli.main import main
from flt.core.errors import InputError
from flt.inference import confusion


@pytest.fixture
def run(trained_runs: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of a run of texts in four classes, in the working folder."""
    found = trained_runs.copy("text", tmp_path)
    shutil.copy(trained_runs.place / "reviews.csv", tmp_path)
    monkeypatch.chdir(tmp_path)
    return found.relative_to(tmp_path)


def test_a_reader_goes_from_a_csv_to_a_csv_of_predictions(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("new.csv").write_text('id,text\n1,good film\n2,"bad, bad book"\n')
    assert main(["predict", "last", "data=new.csv", "out=predictions.csv", "probabilities=true"]) == 0
    head, *rows = Path("predictions.csv").read_text().splitlines()
    assert head.startswith("id,text,prediction,probability,probability_good film,")
    assert [row[0] for row in rows] == ["1", "2"]
    assert rows[1].startswith('2,"bad, bad book",')
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.splitlines() == ["flt predict: last", "2 rows: predictions.csv"]


def test_without_out_nothing_but_the_csv_is_on_standard_output(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("new.csv").write_text("text\ngood\n")
    assert main(["predict", str(run), "data=new.csv"]) == 0
    head, row = capsys.readouterr().out.splitlines()
    assert head == "text,prediction,probability"
    assert row.startswith("good,")


def test_json_is_all_that_is_on_standard_output(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["evaluate", "last", "data=reviews.csv", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["tasks"]["all"]["examples"] == 120
    assert (run / "confusion_reviews.png").is_file()


def test_the_tables_have_the_models_and_the_classes(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("pictures").mkdir()
    assert main(["evaluate", str(run), "out=pictures"]) == 0
    printed = capsys.readouterr()
    for word in (
        "reviews.csv, test",
        "macro f1",
        "good film",
        "precision",
        "mean of 2 clients",
        " in all ",
        "worst client",
        "client_1",
    ):
        assert word in printed.out
    assert all(len(line) <= 80 for line in printed.out.splitlines())
    assert "confusion matrix: pictures/confusion_reviews_test.png" in printed.err


def test_figures_are_shown_even_if_no_picture_can_be_written(
    run: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(confusion, "write_atomically", refuse)
    assert main(["evaluate", str(run), "data=reviews.csv"]) == 0
    printed = capsys.readouterr()
    assert "good film" in printed.out
    assert "isn't written to the run's folder: Permission denied; out= names another folder" in printed.err
    assert main(["evaluate", str(run), "data=reviews.csv", "out=."]) == 2
    assert "error: out=.: Permission denied" in capsys.readouterr().err


def no_run(run: Path) -> None:
    Path("empty").mkdir()


def another_version(run: Path) -> None:
    path = next(run.glob("*/flt_inputs.json"))
    path.write_text(json.dumps({**json.loads(path.read_text()), "version": 99}))


def no_inputs(run: Path) -> None:
    shutil.copytree(run / "adapter", "sent")
    Path("sent/flt_inputs.json").unlink()


def cut_weights(run: Path) -> None:
    path = run / "adapter" / "adapter_model.safetensors"
    path.write_bytes(path.read_bytes()[:-40])


def moved(run: Path) -> None:
    shutil.copytree(run / "adapter", "sent")


def merged(run: Path) -> None:
    assert main(["merge", str(run), "out=merged"]) == 0


def cut_merged(run: Path) -> None:
    merged(run)
    path = Path("merged/model.safetensors")
    path.write_bytes(path.read_bytes()[:10_000])


def bad_settings(run: Path) -> None:
    (run / "config.yaml").write_text("{{{: bad")


def no_json(run: Path) -> None:
    (run / "adapter" / "classes.json").write_text("{")


def too_many_names(run: Path) -> None:
    (run / "adapter" / "classes.json").write_text('{"all": ["a", "b", "c", "d", "e"]}')
    Path("letters.csv").write_text("text,label\ngood,a\nbad,e\n")


def unfinished(run: Path) -> None:
    shutil.rmtree(run / "adapter")


def file(text: str | bytes, name: str = "a.csv") -> Callable[[Path], None]:
    def prepare(run: Path) -> None:
        Path(name).write_bytes(text if isinstance(text, bytes) else text.encode())

    return prepare


def arrays(run: Path) -> None:
    np.savez("a.npz", x_test=np.zeros((2, 4, 4), np.uint8))


def images(run: Path) -> None:
    for name in ("a/1.png", "b/2.png"):
        Path("pictures", name).parent.mkdir(parents=True)
        Image.new("L", (8, 8)).save(Path("pictures", name))


def nothing(run: Path) -> None:
    """Everything is in order."""


LAST = "lightning_logs/text/version_0"
BAD: dict[str, tuple[Callable[[Path], None], str, str]] = {
    "not a run": (no_run, "empty data=reviews.csv", "run=empty: flt has written neither a run nor a model there"),
    "no folder": (nothing, "nowhere data=reviews.csv", "run=nowhere: there is no such folder"),
    "unfinished": (unfinished, f"{LAST} data=reviews.csv", f"run={LAST}: it has no adapter/ or model/"),
    "a newer version": (another_version, f"{LAST} data=reviews.csv", "flt_inputs.json: version=99: allowed is 1"),
    "an older version": (no_inputs, "sent data=reviews.csv", "run=sent: flt_inputs.json is missing"),
    "broken weights": (
        cut_weights,
        f"{LAST} data=reviews.csv",
        f"folder={LAST}/adapter: adapter_model.safetensors is cut off or damaged; allowed is",
    ),
    "broken merged weights": (
        cut_merged,
        "merged data=reviews.csv",
        "folder=merged: model.safetensors is cut off or damaged; allowed is",
    ),
    "a base of a merged model": (merged, "merged data=reviews.csv base=./bert", "base=./bert: merged holds the whole"),
    "broken settings": (bad_settings, f"{LAST} data=reviews.csv", f"run={LAST}: "),
    "an export alone": (
        moved,
        "sent data=reviews.csv",
        "base=None: its base was the folder bert, and the export doesn't say where that lies; allowed is base=<path",
    ),
    "no such base": (moved, "sent data=reviews.csv base=./none", "base=./none: no such folder, and no hub id"),
    "broken names": (no_json, f"{LAST} data=reviews.csv", "run="),
    "too many names": (too_many_names, f"{LAST} data=letters.csv", "classes.json=5 names: allowed is names of at most"),
    "no such file": (nothing, f"{LAST} data=none.csv", "data"),
    "no such data": (nothing, f"{LAST} data=nothing", "data=nothing: allowed is"),
    "no column": (file("a,label\nx,good film\n"), f"{LAST} data=a.csv", "data.text=text: no such column; allowed is a"),
    "wrong column": (nothing, f"{LAST} data=reviews.csv data.text=txt", "data.text=txt: no such column; allowed is"),
    "an empty file": (file(""), f"{LAST} data=a.csv", "data.path=a.csv: it is empty; allowed is a data set with"),
    "a binary file": (file(bytes([0, 1, 255, 254, 147])), f"{LAST} data=a.csv", "data.encoding=None: a.csv isn't UTF"),
    "no text": (file(b"text,label\n\xff\xfe\x81,good film\n"), f"{LAST} data=a.csv", "data.encoding=None"),
    "images": (arrays, f"{LAST} data=a.npz", "data.text=text: no such column"),
    "an unknown key": (nothing, f"{LAST} data=reviews.csv batch=3", "COMMAND=batch=3: the nearest is batch_size; "),
    "an unknown setting": (nothing, f"{LAST} data=reviews.csv data.txt=x", "data.txt=x: there is no such key"),
    "no batch": (nothing, f"{LAST} data=reviews.csv batch_size=0", "batch_size=0: allowed is an integer >= 1"),
    "no group": (nothing, f"{LAST} data=reviews.csv group=7", "group=7: no exported model is called so"),
    "no task": (nothing, f"{LAST} data=reviews.csv task=x", "task=x: "),
    "no device": (nothing, f"{LAST} data=reviews.csv device=tpu9", "device=tpu9: "),
    "a test file": (nothing, f"{LAST} data=reviews.csv data.test_path=reviews.csv", "data.test_path=reviews.csv: "),
    "a share of rows": (nothing, f"{LAST} data=reviews.csv data.test=0.5", "data.test=0.5: the rows of the file"),
    "no data": (nothing, f"{LAST} data=", "data"),
    "a folder of images": (images, f"{LAST} data=pictures", "data"),
    "a split of a file": (nothing, f"{LAST} data=reviews.csv split=dev", "split=dev: "),
}


@pytest.mark.parametrize("command", ["evaluate", "predict"])
@pytest.mark.parametrize("what", BAD)
def test_a_mistake_is_one_line_and_leaves_nothing(
    what: str, command: str, run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    prepare, words, start = BAD[what]
    prepare(run)
    before = sorted(Path().rglob("*"))
    capsys.readouterr()
    assert main([command, *words.split()]) == 2
    printed = capsys.readouterr()
    lines = [line for line in printed.err.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1, printed.err
    assert lines[0].startswith(f"error: {start.replace('COMMAND', command)}"), lines[0]
    assert "Traceback" not in printed.err
    assert printed.out == ""
    assert sorted(Path().rglob("*")) == before


OUT = {
    "out=a.txt": "out=a.txt: allowed is a file that ends in .csv, .jsonl, .parquet",
    "out=none/a.csv": "out=none/a.csv: allowed is a file in a folder that exists",
    "out=reviews.csv": "out=reviews.csv: allowed is another file than data=",
    "out=taken.csv": "out=taken.csv: there is a folder",
    "probabilities=perhaps": "probabilities=perhaps: ",
}


@pytest.mark.parametrize("word", OUT)
def test_predictions_are_written_only_to_a_file_of_their_own(
    word: str, run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("taken.csv").mkdir()
    before = Path("reviews.csv").read_bytes()
    assert main(["predict", "last", "data=reviews.csv", word]) == 2
    assert f"error: {OUT[word]}" in capsys.readouterr().err
    assert Path("reviews.csv").read_bytes() == before


def test_rows_are_not_chosen_by_their_values_for_a_prediction(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for word in ("data.where={label_name:[bad film]}", "data.train_examples=3"):
        assert main(["predict", "last", "data=reviews.csv", word]) == 2
        assert "the rows of the file or folder are read whole; allowed is nothing here" in capsys.readouterr().err


@pytest.mark.parametrize("words", ["train", "evaluate last", "predict last out=out.csv"])
@pytest.mark.parametrize(
    ("name", "content", "line"),
    [
        ("a.csv", b"text,label\n", "data.path=a.csv: it is empty; allowed is a data set with examples"),
        ("a.csv", b"", "data.path=a.csv: it is empty; allowed is a data set with examples"),
        ("a.jsonl", b"", "data.path=a.jsonl: it is empty; allowed is a data set with examples"),
        ("a.csv", bytes([0, 1, 255, 254, 147]), "data.encoding=None: a.csv isn't UTF-8; allowed is"),
        ("a.parquet", b"PAR1", "data.path=a.parquet: ArrowInvalid: "),
        ("none.csv", b"", "data.path=none.csv: allowed is an existing file"),
    ],
)
def test_training_evaluation_and_prediction_refuse_a_file_in_the_same_words(
    words: str, name: str, content: bytes, line: str, run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if name != "none.csv":
        Path(name).write_bytes(content)
    assert main([*words.split(), f"data={name}"]) == 2
    assert f"error: {line}" in capsys.readouterr().err
    assert not Path("out.csv").exists()


def test_an_export_away_from_its_run_is_used_with_its_base(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copytree(run / "adapter", "sent")
    for command in ("predict", "evaluate"):
        found = []
        for words in ([str(run)], ["sent", "base=./bert"]):
            assert main([command, *words, "data=reviews.csv"]) == 0
            found.append(capsys.readouterr().out)
        assert found[0] == found[1]
    with pytest.raises(InputError, match="^base=./bert: the module holds its own base; allowed is nothing with module"):
        flt.predict("sent", "reviews.csv", module=object(), base="./bert")


def test_a_merged_folder_is_used_like_a_run(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (run / "adapter" / "flt_inputs.json").unlink()  # as in a run of an earlier version
    assert main(["merge", str(run), "out=merged"]) == 0
    capsys.readouterr()
    found = []
    for name in (str(run), "merged"):
        assert main(["predict", name, "data=reviews.csv"]) == 0
        found.append(list(csv.DictReader(capsys.readouterr().out.splitlines())))
        assert main(["evaluate", name, "data=reviews.csv", "--json"]) == 0
        found[-1].append(json.loads(capsys.readouterr().out)["metrics"])
    (*rows, figures), (*merged_rows, merged_figures) = found
    assert [row["prediction"] for row in rows] == [row["prediction"] for row in merged_rows]
    assert figures == pytest.approx(merged_figures, abs=1e-5)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
@pytest.mark.parametrize("command", ["evaluate", "predict"])
def test_a_gpu_that_is_not_there_is_one_line(command: str, run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([command, "last", "data=reviews.csv", "device=cuda"]) == 2
    assert "error: device=cuda: " in capsys.readouterr().err
