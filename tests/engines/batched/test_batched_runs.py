"""Whole runs of the batched engine: what the command line trains, with the parts around the engine."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from stacks import Spy
from tiny import save_bert, save_reviews

from flt.api import Result, train
from flt.core import cache
from flt.engines.batched.engine import BatchedEngine
from flt.run.compose import load_config


@pytest.mark.parametrize("cached", ["off", pytest.param("on", marks=pytest.mark.slow)])
@pytest.mark.slow
def test_a_run_is_the_serial_one_up_to_rounding(
    cached: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, flt_cache: Path
) -> None:
    monkeypatch.setattr(cache, "folder", lambda: tmp_path / "cache")
    save_bert(tmp_path / "bert")
    save_reviews(tmp_path / "reviews.csv")
    spy = Spy()
    fit = BatchedEngine._fit

    def counted(engine: BatchedEngine, tasks: Any) -> Any:
        spy.sizes.append(len(tasks))
        return fit(engine, tasks)

    monkeypatch.setattr(BatchedEngine, "_fit", counted)

    def run(*overrides: str) -> Result:
        given = [
            "algo=fedit", f"model={tmp_path}/bert", f"data={tmp_path}/reviews.csv", f"root={tmp_path}/runs",
            "clients=4", "rounds=1", "local.steps=3", "batch_size=4", "local.lr=1e-3", "cohort.size=null",
            f"prefix_cache={cached}", "model.adapt_layers=top2",
        ]  # fmt: skip
        return train(load_config([*given, *overrides]))

    one, other = run("engine=serial"), run("engine=batched", "engine.jobs=3")
    assert spy.sizes == [3, 1]
    assert one.metrics.keys() == other.metrics.keys()
    # the bytes of a message count the digits of its figures
    same = {key for key in one.metrics if not key.startswith(("time/", "comm/"))}
    assert {"round/val_acc", "round/val_loss"} <= same
    for key in same:
        assert other.metrics[key] == pytest.approx(one.metrics[key], abs=1e-4), key


@pytest.mark.slow
def test_the_clusters_of_a_memory_are_those_of_the_serial_run(tmp_path: Path) -> None:
    def run(engine: str) -> list[dict[str, float]]:
        given = [
            "algo=fl_tac_memory", "data=digits_two", "model=embedded", f"root={tmp_path}/{engine}", "clients=4",
            "rounds=2", "local.steps=4", "eval.test_examples=10", f"engine={engine}",
        ]  # fmt: skip
        return train(load_config(given)).round_metrics

    for one, other in zip(run("serial"), run("batched"), strict=True):
        found = {key: value for key, value in one.items() if key.startswith(("cluster/", "round/clustering"))}
        assert {"cluster/within", "cluster/between", "cluster/rand", "round/clustering_acc"} <= set(found)
        assert {key: other[key] for key in found} == pytest.approx(found, abs=1e-4)
