"""Files of a run contain no example and no path of the user. The terminal shows paths in the command only."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from commands import in_empty_folder, train

from flt.cli.main import main
from flt.models.module import ClientModule

pytestmark = pytest.mark.slow  # whole runs and fits


WORD = "unmistakableword"
"""A word that every example contains."""
FOLDER = "unmistakablefolder"
"""Folder of the data and the model, whose whole path the user gives."""


@pytest.fixture
def given(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Arguments for a user's data set and backbone, by their whole paths."""
    from transformers import BertConfig, BertForSequenceClassification

    in_empty_folder(tmp_path, monkeypatch)
    folder = tmp_path / FOLDER
    folder.mkdir()
    (folder / "data.csv").write_text("text,label\n" + "".join(f"{WORD} {i},{i % 2}\n" for i in range(80)))
    shape = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    BertForSequenceClassification(BertConfig(vocab_size=40, **shape)).save_pretrained(folder / "model")
    (folder / "model" / "vocab.txt").write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "word"]))
    (folder / "model" / "tokenizer_config.json").write_text('{"tokenizer_class": "BertTokenizer"}')
    return [f"data={folder / 'data.csv'}", f"model={folder / 'model'}", "name=run"]


def written(folder: Path) -> dict[str, bytes]:
    """Returns all files of a run except its configuration, which needs the paths of the data for a resume."""
    files = [path for path in (folder / "lightning_logs").rglob("*") if path.is_file()]
    return {str(path.relative_to(folder)): path.read_bytes() for path in files if path.name != "config.yaml"}


def assert_silent(files: dict[str, bytes]) -> None:
    for name, data in files.items():
        for secret in (WORD, FOLDER):
            assert secret.encode() not in data, (name, secret)


@pytest.mark.parametrize(
    ("algo", "card"),
    [
        ("fedit", "adapter_config.json"),
        ("flora", "config.json"),
        ("c2a", "flt_adapter.json"),
        ("local", "flt_base.json"),
    ],
)
def test_logs_figures_checkpoints_and_cards_name_no_example_and_no_folder(
    algo: str, card: str, given: list[str], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert train(*given, f"algo={algo}") == 0
    files = written(tmp_path)
    for kind in (card, "metrics.csv", "events."):
        assert any(Path(name).name.startswith(kind) for name in files), kind
    out, err = capfd.readouterr()
    command, *lines = out.splitlines()
    assert f"data={tmp_path / FOLDER / 'data.csv'} model={tmp_path / FOLDER / 'model'}" in command
    assert_silent({**files, "stdout": "\n".join(lines).encode(), "stderr": err.encode()})


def test_a_sweep_shows_each_run_s_arguments_as_they_were_given(
    given: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("flt.api.train", lambda cfg: SimpleNamespace(path=Path(cfg.root)))
    monkeypatch.setattr("flt.cli.sweep._compare", lambda folders, root: None)
    data = given[0].removeprefix("data=")
    assert main(["sweep", f"data=digits,{data}", "ranks=[2,4]", "seed=0,1"]) == 0
    out = capsys.readouterr().out
    assert f": flt sweep data=digits,{data} 'ranks=[2,4]' seed=0,1\n" in out
    assert f"\nrun 4 of 4: data={data} 'ranks=[2,4]' seed=1\n" in out


def test_a_failure_quotes_no_example(
    given: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    step, calls = ClientModule.training_step, list[int]()

    def failing(module: Any, batch: Any, batch_idx: int) -> Any:
        calls.append(batch_idx)
        if len(calls) == 2:
            raise ValueError(f"can't read {WORD} of {FOLDER}")
        return step(module, batch, batch_idx)

    monkeypatch.setattr(ClientModule, "training_step", failing)
    assert train(*given, "algo=fedit", "min_updates=1") == 0
    assert "round 1 has no update from client 1, job 0: ValueError in test_no_leaks.py" in caplog.text
    assert_silent({**written(tmp_path), "log": caplog.text.encode()})


def test_going_on_names_no_folder_of_the_runs(
    given: list[str], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    runs = [*given, f"root={tmp_path / FOLDER / 'runs'}", "resume=last"]
    for said in ("resume=last: there is no run in runs/run yet", "run/version_0 has finished after"):
        assert train(*runs) == 0
        assert said in caplog.text
        assert FOLDER not in caplog.text
        caplog.clear()
