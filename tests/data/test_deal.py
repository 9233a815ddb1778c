"""Clients whose data differ in kind: each has the examples of one task."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from stacks import texts

from flt.core.errors import InputError
from flt.data.clients import ClientSpec
from flt.data.deal import TaskData, deal
from flt.run.compose import load_config

NAMES = ("comp.a", "comp.b", "rec.a", "misc")
TASKS = {"comp": ["comp.*"], "rec": ["rec.*"]}


def dealt(
    named: dict[str, list[str]], *overrides: str, tasks: int = 1, clients: int = 6, names: tuple[str, ...] = NAMES
) -> list[ClientSpec]:
    cfg = load_config(["partition.kind=by_task", f"clients={clients}", *overrides])
    cfg.data["tasks"] = named
    return deal(cfg, [TaskData(f"task{i}", {"train": texts(80, classes=4)}, names=names) for i in range(tasks)])


def classes_of(client: ClientSpec) -> set[int]:
    (job,) = client.data
    rows = np.concatenate([job.train, job.held_out])
    return set(texts(80, classes=4).labels[rows].tolist())


def test_each_client_has_the_classes_of_one_task_and_the_rest_is_a_task_too() -> None:
    clients = dealt(TASKS)
    kinds = [classes_of(client) for client in clients]
    assert all(found <= {0, 1} or found <= {2} or found <= {3} for found in kinds)
    assert set().union(*kinds) == {0, 1, 2, 3}
    rows = Counter(i for c in clients for part in (c.data[0].train, c.data[0].held_out) for i in part.tolist())
    assert rows == Counter(range(80))


def test_with_a_job_per_task_each_client_has_one_job() -> None:
    clients = dealt({}, "jobs=per_task", tasks=2)
    assert [len(client.data) for client in clients] == [1] * 6
    assert {client.data[0].task for client in clients} == {"task0", "task1"}
    for task in ("task0", "task1"):
        own = [c.data[0] for c in clients if c.data[0].task == task]
        assert sorted(np.concatenate([np.concatenate([d.train, d.held_out]) for d in own]).tolist()) == list(range(80))


@pytest.mark.parametrize(
    ("named", "words"),
    [
        ({}, ["data.tasks={}", "by_task needs them"]),
        ({"comp": ["nothing"]}, ["data.tasks.comp=nothing", "no class has this name"]),
        ({"comp": ["comp.*"], "other": ["comp.b"]}, ["data.tasks.other=comp.b", "aren't in comp"]),
    ],
)
def test_tasks_that_divide_nothing_are_refused_in_a_line(named: dict[str, list[str]], words: list[str]) -> None:
    with pytest.raises(InputError) as error:
        dealt(named)
    assert "\n" not in str(error.value)
    assert all(word in str(error.value) for word in words), str(error.value)


def test_a_class_without_training_examples_belongs_to_its_task() -> None:
    clients = dealt({"comp": ["comp.*"], "rest": ["rec.*", "misc", "never"]}, names=(*NAMES, "never"))
    assert set().union(*map(classes_of, clients)) == {0, 1, 2, 3}


@pytest.mark.parametrize("kind", ["by_column", "by_column_dirichlet"])
def test_all_jobs_of_a_client_have_the_same_values_of_the_column(kind: str) -> None:
    """German is the most frequent language of the first task, and French that of the second."""
    cfg = load_config([f"partition.kind={kind}", "partition.alpha=100", "clients=3", "jobs=per_task"])
    columns = [np.array(["de"] * 60 + ["fr"] * 20), np.array(["de"] * 10 + ["fr"] * 70)]
    tasks = [
        TaskData(name, {"train": texts(80, classes=4)}, {"train": column})
        for name, column in zip("ab", columns, strict=True)
    ]
    for client in deal(cfg, tasks):
        rows = {job.task: np.concatenate([job.train, job.held_out]) for job in client.data}
        assert rows.keys() == {"a", "b"}
        assert len({str(value) for task, own in rows.items() for value in columns["ab".index(task)][own]}) == 1
