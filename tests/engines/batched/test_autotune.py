"""How many jobs at once: timed, capped by memory, recorded, and halved where memory doesn't suffice."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf
from stacks import Results, Spy, assert_equal, assignments_of, batched, federator_of

from flt.api import train
from flt.core.errors import InputError
from flt.engines.batched import autotune
from flt.engines.batched.engine import BatchedEngine, BatchedSettings
from flt.engines.process_group import ProcessGroup
from flt.engines.serial import SerialEngine
from flt.run import build
from flt.run.compose import load_config
from flt.run.resume import configure
from flt.server.engine import Assignment

pytestmark = pytest.mark.slow  # whole runs and fits


CPU = torch.device("cpu")


def rates(*seconds: float) -> tuple[list[int], Callable[[int], float]]:
    """What was tried, and a clock that gives the candidates these times."""
    tried: list[int] = []
    times: dict[int, float] = {}

    def timed(jobs: int) -> float:
        tried.append(jobs)
        times.setdefault(jobs, seconds[len(times) % len(seconds)])
        return times[jobs]

    return tried, timed


@pytest.mark.parametrize(
    ("jobs", "seconds", "tried", "best"),
    [
        (30, (1.0, 0.6, 0.4, 0.5), [1, 2, 5, 10, 5, 5], 5),
        (7, (1.0, 0.6, 0.4, 0.3), [1, 2, 5, 7, 7, 7], 7),
        (30, (1.0, 1.2), [1, 2, 1, 1], 1),
        (5, (1.0, 0.99, 0.985), [1, 2, 5, 5, 2, 1, 5, 2, 1], 1),
        (5, (1.0, 0.99, 0.975), [1, 2, 5, 5, 2, 1, 5, 2, 1], 5),
        (1000, (1.0, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4), [1, 2, 5, 10, 20, 50, 100, 100, 100], 100),
    ],
)
def test_more_jobs_are_tried_until_it_gets_slower(
    jobs: int, seconds: Sequence[float], tried: list[int], best: int
) -> None:
    found, timed = rates(*seconds)
    assert autotune.best_jobs(timed, jobs, CPU) == best
    assert found == tried


def test_what_memory_would_not_hold_is_not_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    used = iter([7, 17, 27, 57])  # before the first fit, and after each
    monkeypatch.setattr(autotune, "peak_memory", lambda device: next(used))
    monkeypatch.setattr(autotune, "available_memory", lambda device: 100)
    tried, timed = rates(1.0, 0.6, 0.4)
    assert autotune.best_jobs(timed, 30, CPU) == 5
    assert max(tried) == 5  # 50 for 5 jobs, so 100 for 10


def test_a_disturbed_time_does_not_decide() -> None:
    """Two at once are the fastest, and are disturbed when they are first timed."""
    times = {1: iter([1.0, 1.0, 1.0]), 2: iter([1.1, 0.7, 0.7]), 5: iter([1.3])}
    assert autotune.best_jobs(lambda jobs: next(times[jobs]), 30, CPU) == 2


def test_a_trial_out_of_memory_ends_the_search() -> None:
    def timed(jobs: int) -> float:
        if jobs > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return 1 / jobs

    assert autotune.best_jobs(timed, 30, CPU) == 2


def test_memory_is_measured_in_bytes() -> None:
    assert 2**20 < autotune.peak_memory(CPU) < 2**45
    assert 2**20 < autotune.available_memory(CPU) < 2**45


def test_the_first_cohort_is_timed_once_and_what_was_found_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    federator = federator_of(sizes=(8, 8, 8, 8))
    assignments = assignments_of(federator)
    recorded: list[Any] = []
    engine = BatchedEngine(federator.engine.local_trainer, federator.clients, BatchedSettings(), recorded.append)
    timed: list[int] = []

    def seconds(assignments: Sequence[Assignment]) -> float:
        timed.append(len(assignments))
        seconds_of = BatchedEngine.seconds(engine, assignments)
        assert seconds_of > 0
        return {1: 1.0, 2: 0.5, 4: 0.6}[len(assignments)]

    monkeypatch.setattr(engine, "seconds", seconds)
    spy = Spy().on(engine)
    assert_equal(list(engine.run(iter(assignments))), list(federator.engine.run(assignments)))
    list(engine.run(iter(assignments)))
    assert timed[:3] == [1, 2, 4]
    assert recorded == [{"name": "batched", "jobs": 2}]
    assert spy.sizes == [2, 2, 2, 2]


@pytest.mark.parametrize(
    "error", [torch.OutOfMemoryError("CUDA out of memory"), RuntimeError("DefaultCPUAllocator: not enough memory")]
)
def test_out_of_memory_halves_the_jobs_and_loses_none(error: RuntimeError, caplog: Any) -> None:
    federator = federator_of(sizes=(8, 8, 8, 8, 8))
    assignments = assignments_of(federator)
    recorded: list[Any] = []
    engine = BatchedEngine(federator.engine.local_trainer, federator.clients, BatchedSettings(jobs=5), recorded.append)
    fit, sizes = engine._fit, []

    def narrow(assignments: Sequence[Assignment]) -> Results:
        sizes.append(len(assignments))
        if len(assignments) > 2:
            raise error
        return fit(assignments)

    engine._fit = narrow  # type: ignore[method-assign]  # as if memory were short
    assert_equal(list(engine.run(assignments)), list(federator.engine.run(assignments)))
    assert sizes == [5, 2, 2, 1]
    list(engine.run(assignments))
    assert sizes[4:] == [2, 2, 1]
    assert recorded == [{"name": "batched", "jobs": 2}]
    assert sum("out of memory with 5 jobs" in record.message for record in caplog.records) == 1


def test_another_error_is_not_swallowed(monkeypatch: pytest.MonkeyPatch) -> None:
    federator = federator_of()
    engine, assignments = batched(federator), assignments_of(federator)

    def broken(assignments: Sequence[Assignment]) -> Results:
        raise RuntimeError("something else")

    monkeypatch.setattr(engine, "_fit", broken)
    with pytest.raises(RuntimeError, match="something else"):
        list(engine.run(assignments))


@pytest.mark.parametrize(("key", "value"), [("engine.jobs", "0"), ("engine.jobs", "many")])
def test_a_wrong_number_of_jobs_is_refused(key: str, value: str) -> None:
    federator = federator_of()
    cfg = load_config(["engine=batched", f"{key}={value}"])
    with pytest.raises(InputError, match=rf"^{key}={value}: .*allowed is|^{key}={value}: allowed is"):
        build.engine(cfg, federator.engine.local_trainer, federator.clients, ProcessGroup())


def test_engines_are_made_by_name() -> None:
    federator = federator_of()
    made = [
        build.engine(load_config([f"engine={name}"]), federator.engine.local_trainer, federator.clients, ProcessGroup())
        for name in ("serial", "batched")
    ]
    assert [type(engine) for engine in made] == [SerialEngine, BatchedEngine]


def test_the_run_records_what_was_timed_and_a_resume_keeps_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []

    def chosen(seconds: Any, jobs: int, device: torch.device) -> int:
        calls.append(jobs)
        return 3

    monkeypatch.setattr(autotune, "best_jobs", chosen)
    given = [
        "algo=fedit", "engine=batched", "clients=4", "local.steps=1", "batch_size=4", f"root={tmp_path}",
        "eval.client_examples=0",
    ]  # fmt: skip
    result = train(dataclasses.replace(load_config(given), rounds=1))
    assert OmegaConf.load(result.path / "config.yaml").engine == {"name": "batched", "jobs": 3}
    cfg = configure([*given, "resume=last", "rounds=2"])
    assert cfg.engine == {"name": "batched", "jobs": 3}
    train(cfg)
    assert calls == [4]
    assert configure([*given, "resume=last", "engine.jobs=2"]).engine["jobs"] == 2
    with pytest.raises(InputError, match="engine"):
        configure(["algo=fedit", "engine=serial", f"root={tmp_path}", "resume=last"])
