"""Jobs with several tasks: their examples, labels and tags, beside a job for each task of the same federation."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from commands import in_empty_folder

from flt.callbacks.fault_injection import with_flipped_labels
from flt.core.errors import InputError
from flt.data.clients import JobData, class_names_of
from flt.data.examples import OUTPUTS, Collate
from flt.data.joint import JointExamples
from flt.data.samplers import lengths_of
from flt.models.heads import head_names
from flt.run.assembly import assemble
from flt.run.compose import load_config
from flt.run.federation import Federation
from flt.run.workload import federation

SHARES = ["clients=6", "data=digits_two", "partition.kind=quantity", "partition.min_share=0.05", "partition.alpha=0.3"]


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    in_empty_folder(tmp_path, monkeypatch)


def built(*overrides: str) -> Federation:
    return federation(load_config(["algo=fedit", *SHARES, *overrides]))


def jobs_of(made: Federation) -> list[JobData]:
    assert all(len(client.data) == 1 for client in made.clients)
    return [client.data[0] for client in made.clients]


def test_a_client_trains_on_the_examples_of_all_its_jobs_for_one_task() -> None:
    slots, joint = built("jobs=per_task"), jobs_of(built())
    assert {len(client.data) for client in slots.clients} == {1, 2}  # a client lacks a task
    for client, job in zip(slots.clients, joint, strict=True):
        data: Any = job.dataset
        for positions, kept in ((job.train, "train"), (job.held_out, "held_out")):
            found = data.by_task(positions)
            for own in client.data:
                assert np.array_equal(found[own.task], getattr(own, kept))
        assert job.task == "+".join(own.task for own in client.data)
        assert job.examples == sum(own.examples for own in client.data) == len(job.train)


@pytest.mark.parametrize(("heads", "names"), [("task", ["digit", "parity"]), ("shape", ["5", "2"])])
def test_an_example_says_which_rows_of_the_joint_head_belong_to_its_task(heads: str, names: list[str]) -> None:
    job = next(job for job in jobs_of(built(f"heads={heads}")) if len(job.parts) == 2)
    assert job.head == "+".join(names)
    assert [part.head for part in job.parts] == names
    data: Any = job.dataset
    for i in (0, len(data) - 1):
        item, of_task = data[i], data.parts[i > 0]
        own = of_task[0 if i == 0 else len(of_task) - 1]
        assert item[OUTPUTS].tolist() == ([0, 5] if i == 0 else [5, 7])
        assert int(item["labels"]) == int(own["labels"]) + (0 if i == 0 else 5)
        assert torch.equal(item["pixel_values"], own["pixel_values"])
    batch = Collate()([data[0], data[len(data) - 1]])
    assert batch[OUTPUTS].tolist() == [[0, 5], [5, 7]]


def test_a_client_with_one_task_has_the_head_of_this_task_and_no_tags() -> None:
    job = next(job for job in jobs_of(built("heads=task")) if len(job.parts) == 1)
    assert job.head == job.task in ("digit", "parity")
    assert OUTPUTS not in job.training_set[0]


def test_tasks_that_share_a_head_have_no_tags() -> None:
    made = built("heads=shared")
    assert not made.heads
    for job in jobs_of(made):
        assert job.head == ""
        assert OUTPUTS not in job.training_set[0]


def test_all_jobs_count_the_classes_of_all_tasks_in_one_order() -> None:
    made = built("heads=task")
    for job in jobs_of(made):
        assert job.label_names == ("5", "6", "7", "8", "9", "odd", "even")
        outputs = [int(job.training_set[i]["labels"]) for i in range(job.examples)]
        counted = np.bincount(np.asarray(job.class_numbers)[outputs], minlength=7)
        assert job.label_counts == tuple(counted.tolist())
    assert made.class_names() == {"digit": ("5", "6", "7", "8", "9"), "parity": ("odd", "even")}
    assert class_names_of(jobs_of(made)) == made.class_names()
    assert made.task_heads() == {"digit": "digit", "parity": "parity"}


def test_the_shares_of_each_task_are_held_out_by_class() -> None:
    for job in jobs_of(built("heads=task")):
        data: Any = job.dataset
        train, held_out = (data.by_task(positions) for positions in (job.train, job.held_out))
        for at, task in enumerate(data.tasks):
            labels = data.parts[at].labels
            kept = np.bincount(labels[held_out.get(task, [])], minlength=5)
            every = kept + np.bincount(labels[train[task]], minlength=5)
            assert np.all(abs(kept - 0.2 * every) <= 1)


def test_wrong_labels_of_hostile_clients_stay_in_their_task() -> None:
    clients = built("heads=task").clients
    hostile = with_flipped_labels(clients, frozenset({clients[0].id}))[0].data[0]
    right = clients[0].data[0]
    for i in range(right.examples):
        item, wrong = right.training_set[i], hostile.training_set[i]
        first, end = item[OUTPUTS].tolist() if OUTPUTS in item else (0, len(right.class_numbers))
        assert int(wrong["labels"]) == first + end - 1 - int(item["labels"])
    outputs = [int(hostile.training_set[i]["labels"]) for i in range(right.examples)]
    assert hostile.label_counts == tuple(np.bincount(np.asarray(right.class_numbers)[outputs], minlength=7).tolist())


def test_lengths_of_joint_texts_are_those_of_the_tasks() -> None:
    class Texts:
        lengths = np.array([3, 1])

        def __len__(self) -> int:
            return 2

    class Images(Texts):
        lengths = None

    texts: Any = [Texts(), Texts()]
    images: Any = [Texts(), Images()]
    found = lengths_of(JointExamples(texts, "ab", [range(2)] * 2))
    assert found is not None
    assert found.tolist() == [3, 1, 3, 1]
    assert lengths_of(JointExamples(images, "ab", [range(2)] * 2)) is None


def test_divided_classes_stay_together_unless_heads_are_chosen() -> None:
    usual = ["data=digits", "clients=3", "partition.kind=iid"]
    whole = federation(load_config(["algo=fedit", *usual]))
    assert [job.parts for job in jobs_of(whole)] == [()] * 3
    divided = federation(load_config(["algo=fedit", *usual, "heads=task"]))
    assert set(divided.validation) == {"low", "high"}
    assert all(job.head == "low+high" for job in jobs_of(divided))


BAD = {
    "tasks that change": (
        ["heads=shared", "task_changes={digit: [parity, 2]}"],
        "task_changes=.*several.*jobs=per_task",
    ),
    "tests of clients": (["eval.client_test_examples=20"], "eval.client_test_examples=20: jobs have several tasks"),
    "labels of a batch": (["algo=c2a", "heads=task", "adapter.histogram=batch"], "adapter.histogram=batch: .*several"),
    "rounds of a task": (["task_rounds={digit: [1, 2]}"], "task_rounds=.*several tasks.*jobs=per_task"),
    "a change of a task": (["task_changes={digit: [parity, 2]}"], "task_changes=.*several tasks.*jobs=per_task"),
    "names as a head": (["model.head=label_names"], "model.head=label_names"),
    "a head that stays frozen": (["heads=task", "adapter.head=none"], "adapter.head=none"),
}


@pytest.mark.parametrize("name", BAD)
def test_what_several_tasks_in_a_job_cannot_have_is_refused_in_a_line(name: str) -> None:
    overrides, said = BAD[name]
    cfg = load_config([*([] if "algo=c2a" in overrides else ["algo=fedit"]), *SHARES, *overrides])
    with pytest.raises(InputError, match=said) as refused:
        assemble(cfg, federation(cfg))
    assert "\n" not in str(refused.value)


def test_the_name_of_a_task_cannot_hold_what_joins_names() -> None:
    assert head_names("task", {"a+b": 2, "c": 2}) == {"a+b": "a+b", "c": "c"}
    with pytest.raises(InputError, match=r"heads=task: a task is called a\+b"):
        head_names("task", {"a+b": 2, "c": 2}, joint=True)


def test_a_copy_of_a_job_keeps_its_tasks() -> None:
    job = jobs_of(built("heads=task"))[0]
    assert dataclasses.replace(job.but(rounds=(1, 2))).parts == job.parts
