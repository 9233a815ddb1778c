"""The report that a run writes itself: at its end, while it runs, and never at the run's cost."""

from __future__ import annotations

import errno
import logging
import os
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
from commands import train
from reports import TINY, Page, data_of, tiny_run, written

from flt.reports import live, page
from flt.run.compose import load_config

pytestmark = pytest.mark.slow  # whole runs


def test_a_run_writes_its_report_unless_it_is_told_not_to(tmp_path: Path) -> None:
    with written():
        run = tiny_run(tmp_path, "fedit")
        assert not (tiny_run(tmp_path, "fedit", "report=false") / "report.html").exists()
    text = (run / "report.html").read_text()
    assert len(data_of(text)["chart-score"]["data"][0]["y"]) == 3
    assert 'data-reload="' not in text
    assert "flt.load(" in text  # written after the export


def test_true_is_the_default() -> None:
    assert load_config([]).report is True
    assert len(live.live_reports(load_config([]))) == 1


def test_a_resumed_run_may_change_the_key(tmp_path: Path) -> None:
    run = tiny_run(tmp_path, "fedit", "report=false")
    with written():
        assert train(f"resume={run}", "algo=fedit", *TINY[1:], "rounds=4", "report=true", f"root={tmp_path}") == 0
    assert len(data_of((run / "report.html").read_text())["chart-score"]["data"][0]["y"]) == 4


def test_a_running_run_has_a_page_that_says_so_and_reloads_itself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pages = []
    one = page.one

    def kept(run: Path, running: bool = False) -> str:
        pages.append(one(run, running))
        return pages[-1]

    monkeypatch.setattr(live, "EVERY", 0.0)
    monkeypatch.setattr(page, "one", kept)
    with written():
        tiny_run(tmp_path, "fedit")
    *running, final = pages
    assert len(running) == 3
    for done, text in enumerate(running):
        assert 'data-reload="' in text
        assert f", round {done} of 3." in Page(text).texts
    assert 'data-reload="' not in final


def test_the_page_isn_t_written_more_often_than_every_twenty_seconds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    times = []
    monkeypatch.setattr(page, "one", lambda run, running=False: times.append(running) or "")
    with written():
        tiny_run(tmp_path, "fedit", "rounds=6")
    assert live.EVERY >= 20
    assert times == [False]


@pytest.mark.parametrize("engine", [[], ["engine=distributed", "engine.strategy=ddp_fork", "devices=2"]])
def test_an_interrupted_run_has_a_page_that_no_longer_says_that_it_runs(
    engine: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(live, "EVERY", 0.0)
    report = live.LiveReport()
    monkeypatch.setattr(live, "LiveReport", lambda: report)
    watch = report.on_round_start

    def interrupted(federator: Any) -> None:
        watch(federator)
        if federator.round == 3:
            raise KeyboardInterrupt

    monkeypatch.setattr(report, "on_round_start", interrupted)
    with written(), patch.dict(os.environ):  # a launcher leaves variables there
        assert train("algo=fedit", "rounds=5", "clients=3", f"root={tmp_path}", *engine) == 130
    text = (tmp_path / "fedit" / "version_0" / "report.html").read_text()
    assert 'data-reload="' not in text
    assert "Not finished" in Page(text).texts


@pytest.mark.parametrize(
    ("error", "why"), [(OSError(errno.ENOSPC, "No space left on device"), "No space left on device"),
                       (ZeroDivisionError("a fault of flt's\nsecond line"), "a fault of flt's")]
)  # fmt: skip
def test_a_report_that_can_not_be_written_is_a_warning_and_the_run_ends_well(
    error: Exception, why: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def full(path: Path, data: bytes) -> None:
        raise error

    monkeypatch.setattr(live, "EVERY", 0.0)
    monkeypatch.setattr(live, "write_atomically", full)
    with written(), caplog.at_level(logging.WARNING, "flt"):
        run = tiny_run(tmp_path, "fedit")
    assert (run / "adapter").is_dir()
    (line,) = [entry.getMessage() for entry in caplog.records if "report" in entry.getMessage()]
    assert line.startswith(f"report.html couldn't be written ({why}); flt report ")


def test_the_report_changes_no_bit_of_a_run(tmp_path: Path) -> None:
    plain = tiny_run(tmp_path / "plain", "hafl", "report=false")
    with written():
        shown = tiny_run(tmp_path / "shown", "hafl")
    name = "adapter/adapter_model.safetensors"
    assert (plain / name).read_bytes() == (shown / name).read_bytes()
