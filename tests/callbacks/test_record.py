"""The record of a run: what its lines say, that a resumed run writes the same ones, and that it stays small."""

from __future__ import annotations

import errno
import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from commands import train
from fake_federator import clients_of, layout_of
from reports import tiny_run
from toys import toy_clients, toy_federator

from flt.algorithm.grouping.kmeans import KMeansGrouping
from flt.algorithm.recipe import Recipe
from flt.algorithm.rule.mean import Mean
from flt.callbacks.clusters import Clusters
from flt.callbacks.record import Record
from flt.callbacks.record_format import QUANTILES
from flt.callbacks.record_header import _limits, evenly
from flt.server.callback import FedCallback


def lines_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


class Measured(FedCallback):
    """Adds an accuracy to every update, of which that of client 1 is the worst."""

    def on_job_end(self, federator: Any, update: Any) -> None:
        update.metrics["distributed/val_acc"] = 0.5 + 0.1 * abs(update.job[0] - 1)
        update.metrics["distributed/val_loss"] = float("nan")


def recorded(folder: Path, clients: int = 4, **changes: Any) -> list[dict[str, Any]]:
    """The lines of a toy federation with clusters."""
    specs = toy_clients(clients, jobs=2)
    tasks = {(client, index): f"task{index}" for client in range(clients) for index in range(2)}
    recipe = Recipe(Mean("uniform"), grouping=KMeansGrouping(2))
    callbacks = [Clusters(tasks), Measured(), Record(folder, tasks, "flt train", "cpu")]
    toy_federator(recipe, specs, callbacks=callbacks, **changes).fit()
    return lines_of(folder / "record.jsonl")


def test_the_first_line_describes_jobs_and_how_the_run_was_made(tmp_path: Path) -> None:
    head, *_ = recorded(tmp_path)
    assert head["jobs"] == [[client, index] for client in range(4) for index in range(2)]
    assert [head["tasks"][task] for task in head["task"]] == ["task0", "task1"] * 4
    assert (head["command"], head["clients"], head["of"], head["since"]) == ("flt train", 4, 8, 1)
    assert {"flt", "python", "torch", "lightning"} <= set(head["versions"])
    assert head["hardware"].startswith("CPU (")
    assert len(head["counts"]) == len(head["examples"]) == len(head["ranks"]) == 8


def test_each_round_has_the_values_of_each_job_its_group_and_its_point(tmp_path: Path) -> None:
    _, *rounds = recorded(tmp_path)
    assert [line["round"] for line in rounds] == list(range(1, len(rounds) + 1))
    for line in rounds:
        values = line["clients"]["received/val_acc"]["values"]
        assert values == pytest.approx([0.6, 0.6, 0.5, 0.5, 0.6, 0.6, 0.7, 0.7])
        assert line["clients"]["received/val_loss"]["values"] == [None] * 8
        assert set(line["groups"]) <= {1, 2}
        assert len(line["groups"]) == 8
        assert line["points"]["jobs"] == list(range(8))
        assert line["points"]["groups"] == line["groups"]
        assert len(line["points"]["x"]) == len(line["points"]["y"]) == 8


def test_many_jobs_have_quantiles_and_the_worst_ten(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("flt.callbacks.record_header.PART", 1100)
    head, *rounds = recorded(tmp_path, rounds=12)
    assert not head["each_job"]
    (part,) = {json.dumps(line["clients"]["received/val_acc"]) for line in rounds if "clients" in line}
    found = json.loads(part)
    assert found["quantiles"] == pytest.approx(np.quantile([0.6, 0.6, 0.5, 0.5, 0.6, 0.6, 0.7, 0.7], QUANTILES))
    assert found["worst"][:3] == [[1, 0, 0.5], [1, 1, 0.5], [0, 0, 0.6]]
    assert found["count"] == 8


@pytest.mark.slow
@pytest.mark.parametrize("algo", ["hafl", "fl_tac", "sa_fedlora"])
def test_a_resumed_run_writes_the_lines_of_an_uninterrupted_one(algo: str, tmp_path: Path) -> None:
    def at_every_start(run: Path) -> list[dict[str, Any]]:
        head, *rounds = lines_of(run / "record.jsonl")
        return [{key: value for key, value in head.items() if key != "started"}, *rounds]

    whole, parts = tiny_run(tmp_path / "whole", algo), tiny_run(tmp_path / "parts", algo)
    lines = (parts / "record.jsonl").read_text().splitlines()
    (last,) = (parts / "checkpoints").glob("round_0003*.json")
    last.unlink()  # the run was killed in round 3, after its line was written and before its checkpoint
    (parts / "record.jsonl").write_text("\n".join([*lines, '{"round": 4, "cli']))
    tiny_run(tmp_path / "parts", algo, f"resume={parts}")
    assert at_every_start(parts) == at_every_start(whole)
    assert lines_of(parts / "record.jsonl")[0]["started"] == json.loads(lines[0])["started"]


@pytest.mark.slow
def test_a_resumed_run_of_an_earlier_version_is_recorded_from_then_on(tmp_path: Path) -> None:
    run = tiny_run(tmp_path, "fedit")
    (run / "record.jsonl").unlink()
    assert train(f"resume={run}", "algo=fedit", "clients=4", "rounds=4", f"root={tmp_path}") == 0
    head, *rounds = lines_of(run / "record.jsonl")
    assert head["since"] == 4
    assert [line["round"] for line in rounds] == [4]


def other_layers(head: dict[str, Any]) -> None:
    head["layers"][0][1] += 1


DAMAGE: dict[str, Callable[[dict[str, Any]], Any]] = {
    "never due": lambda head: head["every"].update(clients=0),
    "due at no number": lambda head: head.update(every=3),
    "a part is missing": lambda head: head["every"].pop("groups"),
    "other jobs": lambda head: head["jobs"].reverse(),
    "other layers": other_layers,
    "another format": lambda head: head.update(format=99),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_resume_begins_a_new_record_if_the_old_one_is_not_of_the_run(damage: str, tmp_path: Path) -> None:
    head, *rounds = recorded(tmp_path)
    tasks = {(client, index): f"task{index}" for client in range(4) for index in range(2)}
    federator = toy_federator(Recipe(Mean("uniform")), toy_clients(4, jobs=2))
    federator.fit()
    record = Record(tmp_path, tasks, "flt train", "cpu")
    record.on_fit_start(federator)
    assert lines_of(record.path) == [head, *rounds[: federator.state.rounds]]
    DAMAGE[damage](head)
    record.path.write_text("\n".join(map(json.dumps, [head, *rounds])))
    record.on_fit_start(federator)
    record.on_log(federator, {})
    new, line = lines_of(record.path)
    assert (new["since"], line["round"]) == (federator.state.rounds + 1, federator.round)
    assert new["jobs"] == [list(job) for job in sorted(tasks)]


def test_a_full_disk_ends_the_record_and_not_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def full(path: Path, *how: Any, **more: Any) -> Any:
        raise OSError(errno.ENOSPC, "No space left on device")

    federator = toy_federator(Recipe(Mean("uniform")), toy_clients(2))
    tasks = {(client, 0): "" for client in range(2)}
    record = Record(tmp_path, tasks, "flt.fit", "cpu")
    federator.callbacks = [record]
    record.on_fit_start(federator)
    monkeypatch.setattr(Path, "open", full)
    with caplog.at_level(logging.WARNING, "flt"):
        record.on_log(federator, {})
        record.on_log(federator, {})
    assert [entry.getMessage() for entry in caplog.records] == [
        "record.jsonl: No space left on device; the report of this run will lack what comes from here on"
    ]


@pytest.mark.parametrize(
    ("rounds", "jobs", "ranks"), [(1000, 1000, [8] * 24), (1000, 10, [8] * 400), (100_000, 100, [8] * 24), (10, 3, [4])]
)
def test_the_limits_keep_the_record_to_a_few_megabytes(rounds: int, jobs: int, ranks: list[int]) -> None:
    limits = _limits(rounds, jobs, jobs, ranks)
    components, every = sum(ranks), limits["every"]
    job = '"999":"' + "f" * (components // 4) + '",'
    sizes = {
        "clients": 4 * 8 * jobs if limits["each_job"] else 4 * (9 * 8 + 10 * 15 + 60),
        "trained": 3 * components,
        "by_job": len(job) * len(limits["shown"]),
        "importance": 3 * 11 * components,
        "active": 2 * len(ranks),
        "groups": 2 * jobs,
        "points": 25 * jobs,
    }
    assert sizes.keys() == every.keys()
    assert sum(sizes[part] * (rounds // every[part]) for part in sizes) < 5_000_000
    assert rounds > 10 or set(every.values()) == {1}


def test_jobs_are_left_out_evenly() -> None:
    assert evenly(list(range(100)), 5) == [0, 25, 50, 74, 99]
    assert evenly([3, 1], 5) == [3, 1]


def test_two_hundred_jobs_are_listed_at_most() -> None:
    from types import SimpleNamespace

    from flt.callbacks.record_header import LISTED, begin

    clients = clients_of(2500)
    server = SimpleNamespace(layout=layout_of([4]))
    federator: Any = SimpleNamespace(clients=clients, server=server, rounds=3, state=SimpleNamespace(rounds=0))
    header = begin(federator, {(client, 0): "" for client in clients}, "flt", "cpu")
    assert len(header.jobs) == LISTED
    assert (header.line["of"], header.each_job) == (2500, False)
