"""The code of README.md and of the guides in docs/, run from the first block to the last, with small settings."""

from __future__ import annotations

import contextlib
import csv
import json
import re
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from commands import in_empty_folder
from pages import DOCS, ROOT, blocks, commands, run, run_page, shortened
from reports import written
from tiny import save_bert, save_decoder, save_instructions

README = ROOT / "README.md"
GUIDES = sorted((DOCS / "guides").glob("*.md"))
TINY = {"local.steps": 1, "batch_size": 4, "eval.examples": 20, "eval.client_examples": 4, "clients": 4}
ROUNDS = {"csv_to_predictions": 2, "compare_papers": 2, "causal_model": 1, "watch_a_run": 2}
"""Guide -> rounds of its runs, where its own number takes long."""
WITH_REPORTS = ("csv_to_predictions", "watch_a_run")
CLASSES = {"billing", "login", "delivery", "defect"}
DOLLY = (
    "brainstorming", "classification", "closed_qa", "creative_writing", "general_qa", "information_extraction",
    "open_qa", "summarization",
)  # fmt: skip


def predictions_have_the_names_of_the_classes(folder: Path, names: dict[str, object]) -> None:
    with (folder / "predictions.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 20
    assert {row["prediction"] for row in rows} <= CLASSES
    assert all(0.25 <= float(row["probability"]) <= 1 for row in rows)
    assert json.loads((folder / "tickets_model" / "config.json").read_text())["id2label"].keys() == {"0", "1", "2", "3"}


def the_run_has_a_report_a_picture_and_a_log(folder: Path, names: dict[str, object]) -> None:
    run = folder / "lightning_logs" / "watched" / "version_0"
    assert (run / "csv" / "metrics.csv").is_file()
    assert list(run.glob("confusion*.png"))
    assert all(
        page.stat().st_size > 1e6
        for page in (folder / "both.html", folder / "lightning_logs/second/version_0/report.html")
    )


def the_own_module_has_learned(folder: Path, names: dict[str, object]) -> None:
    assert names["again"] is not names["module"]
    history = [path.name for path in folder.glob("lightning_logs/*/version_*/metrics.csv")]
    assert len(history) == 2


def a_table_and_figures_are_there(folder: Path, names: dict[str, object]) -> None:
    made = {path.suffix for path in (folder / "comparison").rglob("*")}
    assert {".csv", ".tex", ".png", ".pdf", ".svg"} <= made


def a_model_is_there(folder: Path, names: dict[str, object]) -> None:
    assert (folder / "dolly_model" / "model.safetensors").is_file()


def the_run_has_five_rounds(folder: Path, names: dict[str, object]) -> None:
    with (folder / "lightning_logs/long/version_0/metrics.csv").open() as file:
        assert len(list(csv.DictReader(file))) == 5


def two_processes_gave_the_same_bits(folder: Path, names: dict[str, object]) -> None:
    one, two = names["one"], names["two"]
    assert isinstance(one, dict)
    assert isinstance(two, dict)
    assert one
    assert all(one[name].equal(two[name]) for name in one)


CHECKS: dict[str, Callable[[Path, dict[str, object]], None]] = {
    "csv_to_predictions": predictions_have_the_names_of_the_classes,
    "watch_a_run": the_run_has_a_report_a_picture_and_a_log,
    "own_module": the_own_module_has_learned,
    "compare_papers": a_table_and_figures_are_there,
    "causal_model": a_model_is_there,
    "resume_and_faults": the_run_has_five_rounds,
    "several_devices": two_processes_gave_the_same_bits,
}


def test_each_guide_is_checked() -> None:
    assert {page.stem for page in GUIDES} == set(CHECKS)
    assert all(blocks(page) for page in GUIDES)


@pytest.mark.slow
@pytest.mark.parametrize("page", GUIDES, ids=lambda page: page.stem)
def test_a_guide_runs_from_its_first_block_to_its_last(
    page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if page.stem == "several_devices":  # its processes don't know of what is left out in this one
        monkeypatch.chdir(tmp_path)
    else:
        in_empty_folder(tmp_path, monkeypatch)
    save_bert(tmp_path / "encoder")
    save_decoder(tmp_path / "decoder", "llama")
    (tmp_path / "data").mkdir()
    save_instructions(tmp_path / "data" / "dolly15k.parquet", rows=160, categories=DOLLY)
    monkeypatch.setenv("FLT_DATA", str(tmp_path / "data"))
    rounds = {"rounds": ROUNDS[page.stem]} if page.stem in ROUNDS else {}
    with written() if page.stem in WITH_REPORTS else contextlib.nullcontext():
        names = run_page(page, TINY | rounds, {"minilm": "./encoder"})
    CHECKS[page.stem](tmp_path, names)


@pytest.mark.slow
def test_the_commands_of_the_readme_run_in_their_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    in_empty_folder(tmp_path, monkeypatch)
    save_bert(tmp_path / "encoder")
    exec(blocks(DOCS / "guides" / "csv_to_predictions.md")[0].text, {})  # a csv of one's own
    with written():
        for words in commands(README):
            if words[0] == "flt":
                words = [word.replace("seed=0,1,2", "seed=0") for word in words]
                code, printed = run(shortened(words, TINY | {"rounds": 1}, {"minilm": "./encoder"}))
                assert code == 0, printed
    with (tmp_path / "predictions.csv").open(newline="") as file:
        assert {row["prediction"] for row in csv.DictReader(file)} <= CLASSES
    assert Path("lightning_logs/compare/sweep_0/table.tex").is_file()
    assert list(tmp_path.glob("lightning_logs/hafl/*/report.html"))


def test_the_readme_s_other_commands_are_targets_of_make_and_files_of_the_environment() -> None:
    others = [words for words in commands(README) if words[0] != "flt"]
    for program, *words in others:
        assert program in ("make", "source")
        if program == "make":
            subprocess.run(["make", "-n", "-C", str(ROOT), *words], check=True, capture_output=True)
    for target in re.findall(r"`make ([a-z-]+)`", README.read_text()):
        subprocess.run(["make", "-n", "-C", str(ROOT), target], check=True, capture_output=True)


@pytest.mark.slow
def test_the_code_of_the_readme_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    in_empty_folder(tmp_path, monkeypatch)
    names: dict[str, object] = {"__name__": "__main__"}
    exec(blocks(DOCS / "guides" / "own_module.md")[0].text, names)
    exec(
        """class MyLightningModule(DigitClassifier):
    def predict_step(self, batch, _):
        return self(batch[0])
dataset, new_dataset = TensorDataset(images[new], labels[new] - 5), TensorDataset(images[new][:10])""",
        names,
    )
    (block,) = (block for block in blocks(README) if block.language == "python")
    exec(block.text.replace("rounds=10", "rounds=2"), names)
