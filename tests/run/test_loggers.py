"""The key ``logger``: what Lightning's loggers get, read back from their files and compared with metrics.csv."""

from __future__ import annotations

import csv
import importlib.util
import json
import os
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
from commands import in_empty_folder, metrics, train
from lightning.pytorch.loggers import MLFlowLogger, WandbLogger

from flt.cli.main import main
from flt.run.compose import compose_config, expand, load_config
from flt.run.loggers import check_installed
from flt.run.remote_loggers import IDS, MlflowRun, WandbRun

RUN = Path("lightning_logs/fedit/version_0")
ARGUMENTS = ("algo=fedit", "logger=csv,wandb,mlflow", "rounds=2")
with_wandb = pytest.mark.skipif(importlib.util.find_spec("wandb") is None, reason="needs the extra wandb")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A run of two rounds that a resume continued to three, logged by all but TensorBoard, without a network."""
    folder = tmp_path_factory.mktemp("loggers")
    with pytest.MonkeyPatch.context() as patch:
        in_empty_folder(folder, patch)
        patch.delenv("WANDB_MODE", raising=False)
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        assert train(*ARGUMENTS) == 0
        assert main(["train", "algo=fedit", "rounds=3", "resume=last"]) == 0
        yield folder / RUN


def expected(run: Path) -> dict[tuple[int, str], float]:
    """(Round, metric) -> value of metrics.csv."""
    with (run / "metrics.csv").open() as file:
        return {
            (int(row["round"]), key): float(value)
            for row in csv.DictReader(file)
            for key, value in row.items()
            if value and key != "round"
        }


@pytest.mark.slow
def test_csv_has_each_metric_of_each_round_also_of_those_before_a_resume(run: Path) -> None:
    with (run / "csv" / "metrics.csv").open() as file:
        found = {
            (int(row["step"]), key): float(value)
            for row in csv.DictReader(file)
            for key, value in row.items()
            if value and key != "step"
        }
    # the test examples were evaluated after round 2, too, which the resumed run's own file doesn't know
    assert {key: found[key] for key in expected(run)} == expected(run)
    assert {key for key in found if key not in expected(run)} <= {(2, "test/acc"), (2, "test/loss")}
    assert "algo: fedit" in (run / "csv" / "hparams.yaml").read_text()


@pytest.mark.slow
def test_mlflow_has_each_metric_with_the_round_as_step_in_one_run(run: Path) -> None:
    from mlflow.tracking import MlflowClient

    client = MlflowClient((run / "mlruns").absolute().as_uri())
    (experiment,) = (one for one in client.search_experiments() if one.name == "lightning_logs")
    (found,) = client.search_runs([experiment.experiment_id])
    assert found.info.run_id == json.loads((run / IDS).read_text())["mlflow"]
    assert found.info.status == "FINISHED"
    assert found.info.run_name == "fedit/version_0"
    assert {key: found.data.params[key] for key in ("algo", "seed", "rounds", "local.lr")} == {
        "algo": "fedit", "seed": "0", "rounds": "2", "local.lr": "0.005",
    }  # fmt: skip
    points = {
        (point.step, key): point.value
        for key in found.data.metrics
        for point in client.get_metric_history(found.info.run_id, key)
    }
    assert {key: points[key] for key in expected(run)} == expected(run)


@pytest.mark.slow
def test_wandb_has_each_metric_with_the_round_as_step_in_files_of_one_run(run: Path) -> None:
    files = sorted((run / "wandb").glob("offline-run-*/run-*.wandb"))
    assert len(files) == 2  # one of each process; W&B joins those of one id
    name = json.loads((run / IDS).read_text())["wandb"]
    points, settings = {}, {}
    for record in (record for file in files for record in records(file)):
        if record.WhichOneof("record_type") == "run":
            assert (record.run.run_id, record.run.display_name) == (name, "fedit/version_0")
        if record.WhichOneof("record_type") == "config":
            settings.update({item.key: json.loads(item.value_json) for item in record.config.update})
        if record.WhichOneof("record_type") == "history":
            row = {item.key or ".".join(item.nested_key): json.loads(item.value_json) for item in record.history.item}
            points.update({(row["trainer/global_step"], key): value for key, value in row.items() if "/" in key})
    assert {key: settings[key] for key in ("algo", "seed", "rounds", "local.lr")} == {
        "algo": "fedit", "seed": 0, "rounds": 3, "local.lr": 0.005,
    }  # fmt: skip
    assert {key: points[key] for key in expected(run)} == expected(run)


def records(file: Path) -> Iterator[Any]:
    """Yields the records of a file of W&B: after seven bytes, blocks of 32 KiB with parts of records, as in LevelDB."""
    from wandb.proto.wandb_internal_pb2 import Record

    data, place, parts = file.read_bytes(), 7, b""
    while place + 7 <= len(data):
        if 2**15 - place % 2**15 < 7:
            place += 2**15 - place % 2**15
            continue
        _, length, kind = struct.unpack("<IHB", data[place : place + 7])
        parts += data[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (1, 4):  # whole, or the last part
            yield Record.FromString(parts)
            parts = b""


@pytest.mark.slow
def test_a_run_without_tensorboard_has_no_events_and_names_no_command_for_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    in_empty_folder(tmp_path, monkeypatch)
    assert train("algo=fedit", "logger=[]") == 0
    assert not list(tmp_path.rglob("events.*"))
    assert not list(tmp_path.rglob("hparams.yaml"))
    assert "tensorboard" not in capsys.readouterr().out
    assert len(metrics(RUN)) == 1


@pytest.mark.slow
def test_a_server_that_fails_is_one_warning_and_the_run_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    in_empty_folder(tmp_path, monkeypatch)
    calls = []

    def fails(self: MLFlowLogger, given: Any, step: int | None = None) -> None:
        calls.append(step)
        raise ConnectionError("the server is away\nsecond line")

    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setattr(MLFlowLogger, "log_metrics", fails)
    assert train("algo=fedit", "logger=mlflow", "rounds=3") == 0
    assert calls == [1]
    told = [record.getMessage() for record in caplog.records if "mlflow" in record.getMessage()]
    assert told == ["logger=mlflow failed, so that the run goes on without it: the server is away"]
    assert len(metrics(RUN)) == 3


@with_wandb
def test_wandb_without_a_login_is_one_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuses(self: WandbLogger) -> None:
        raise RuntimeError("No API key configured")

    monkeypatch.setattr(WandbLogger, "experiment", property(refuses))
    logger = WandbRun(tmp_path)
    logger.log_hyperparams({"seed": 0})
    logger.log_metrics({"round/val_acc": 0.5}, step=1)
    logger.finalize("success")
    assert (logger.experiment, logger.version) == (None, None)
    assert caplog.text.count("No API key configured") == 1
    assert not (tmp_path / IDS).exists()


@pytest.mark.parametrize(("given", "seconds"), [(None, 20), ("300", 300)])
def test_a_server_of_wandb_that_does_not_answer_is_waited_for_twenty_seconds_unless_the_user_says_otherwise(
    given: str | None, seconds: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wandb = pytest.importorskip("wandb", reason="needs the extra wandb")
    found = []

    def init(**_: Any) -> None:
        settings = wandb.Settings()
        settings.update_from_env_vars(os.environ)
        found.append(settings.init_timeout)
        raise TimeoutError

    monkeypatch.setattr(wandb, "init", init)
    with patch.dict(os.environ, {} if given is None else {"WANDB_INIT_TIMEOUT": given}):
        WandbRun(tmp_path).log_metrics({"round/val_acc": 0.5}, step=1)
    assert found == [seconds]


@pytest.mark.parametrize(("given", "mode"), [(None, "offline"), ("offline", "offline"), ("online", "online")])
def test_wandb_uploads_nothing_unless_it_is_asked_to(
    given: str | None, mode: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wandb = pytest.importorskip("wandb", reason="needs the extra wandb")
    started = []
    monkeypatch.setattr(wandb, "init", lambda **settings: started.append(settings) or 1 / 0)
    monkeypatch.delenv("WANDB_MODE", raising=False)
    if given is not None:
        monkeypatch.setenv("WANDB_MODE", given)
    WandbRun(tmp_path).log_metrics({"round/val_acc": 0.5}, step=1)
    (settings,) = started
    assert (settings["settings"].mode, settings.get("mode")) == (mode, None)


def test_ids_that_no_server_makes_are_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    monkeypatch.setattr(MlflowRun, "build", lambda self, run_id: asked.append(run_id))
    long = json.dumps({"x": "a" * 2**17, "mlflow": "0a5c"})
    for text in (long, '{"mlflow": "../../x"}', '{"mlflow": 3}', "[1]", "{", '{"mlflow": "0a5c"}'):
        (tmp_path / IDS).write_text(text)
        MlflowRun(tmp_path).log_metrics({"x": 1.0})
    assert asked == [None, None, None, None, None, "0a5c"]


class TestTheKey:
    @pytest.mark.parametrize(
        ("given", "loggers"),
        [
            ("csv", ["csv"]),
            ("tensorboard,csv", ["tensorboard", "csv"]),
            ("[tensorboard,csv]", ["tensorboard", "csv"]),
            ("[]", []),
            ("null", []),
        ],
    )
    def test_a_list_is_written_with_or_without_brackets(self, given: str, loggers: list[str]) -> None:
        assert list(compose_config([f"logger={given}"]).logger) == loggers

    def test_in_a_sweep_a_comma_means_two_runs_unless_it_is_in_brackets(self) -> None:
        assert expand(["logger=csv,wandb"]) == [["logger=csv"], ["logger=wandb"]]
        assert expand(["logger=[csv,wandb]"]) == [["logger=[csv,wandb]"]]

    @pytest.mark.parametrize(
        ("given", "line"),
        [
            ("txt", "logger=txt: allowed is tensorboard, csv, wandb, mlflow, or several of them; [] for none"),
            ("csv,csv", "logger=csv,csv: allowed is each logger only once"),
        ],
    )
    def test_a_wrong_name_is_one_line(self, given: str, line: str) -> None:
        with pytest.raises(ValueError, match="logger=") as error:
            load_config([f"logger={given}"])
        assert str(error.value) == line

    @with_wandb
    def test_a_missing_package_is_one_line_with_the_command_that_installs_it(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        in_empty_folder(tmp_path, monkeypatch)
        find = importlib.util.find_spec
        without = lambda name, *rest: None if name == "mlflow" else find(name, *rest)  # noqa: E731  # used once
        monkeypatch.setattr(importlib.util, "find_spec", without)
        check_installed(["csv", "wandb"])
        assert train("logger=csv,mlflow") == 2
        told = capsys.readouterr().err.splitlines()[-1]
        assert told.endswith(
            "logger=mlflow: the package mlflow is missing; allowed is an installed package: pip install 'flt[mlflow]'"
        )
        assert not list(tmp_path.iterdir())
