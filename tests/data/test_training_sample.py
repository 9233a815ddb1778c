"""The sample of the clients' training examples."""

from __future__ import annotations

import numpy as np
import torch
from toys import toy_clients

from flt.data.clients import ClientSpec, JobData
from flt.data.examples import Examples
from flt.data.joint_jobs import JointJobs, TaskData
from flt.data.stores import ImageStore
from flt.data.training_sample import training_samples

LABELS = np.repeat([0, 1, 2], [60, 30, 30])


def clients() -> list[ClientSpec]:
    """Two clients that hold every third example out, and leave the last twenty to nobody."""
    examples = Examples(ImageStore(torch.arange(120.0).view(-1, 1, 1, 1), None, None), LABELS)
    positions = np.arange(100)
    held_out = positions % 3 == 0
    parts = [positions < 50, positions >= 50]
    return [
        ClientSpec(number, (JobData(examples, positions[part & ~held_out], positions[part & held_out]),))
        for number, part in enumerate(parts)
    ]


def test_the_sample_has_each_class_in_its_share_and_no_held_out_example() -> None:
    (sample,) = training_samples(clients(), 33, seed=0).values()
    assert isinstance(sample, Examples)
    # of the 66 training examples, 40 are of class 0, 20 of class 1 and 6 of class 2: half of each
    assert np.bincount(sample.labels).tolist() == [20, 10, 3]
    assert not (sample.rows % 3 == 0).any()
    assert len(set(sample.rows.tolist())) == 33
    assert sample.rows.max() < 100


def test_a_seed_gives_one_sample_and_another_seed_another() -> None:
    first, again, other = (training_samples(clients(), 33, seed)[""] for seed in (0, 0, 1))
    assert isinstance(first, Examples)
    assert isinstance(again, Examples)
    assert isinstance(other, Examples)
    assert first.rows.tolist() == again.rows.tolist()
    assert first.rows.tolist() != other.rows.tolist()


def test_a_size_above_the_number_of_examples_takes_all() -> None:
    (sample,) = training_samples(clients(), 1000, seed=0).values()
    assert len(sample) == 66  # type: ignore[arg-type]  # has a length


def test_data_of_ones_own_have_a_random_sample_for_each_task() -> None:
    owners = toy_clients(3, jobs=2)
    samples = training_samples(owners.values(), 10, seed=0)
    assert sorted(samples) == ["task0", "task1"]
    for index, sample in enumerate(samples.values()):
        trained = {tuple(x.tolist()) for client in owners.values() for x, _ in client.data[index].training_set}
        chosen = [tuple(sample[i][0].tolist()) for i in range(10)]
        assert len(sample) == len(set(chosen)) == 10  # type: ignore[arg-type]  # has a length
        assert set(chosen) <= trained


def test_jobs_with_several_tasks_have_a_sample_of_each_task_as_jobs_of_one_task_have_it() -> None:
    store = ImageStore(torch.arange(120.0).view(-1, 1, 1, 1), None, None)
    tasks = [
        TaskData(name, {"train": Examples(store, labels)}, head=name, width=2)
        for name, labels in (("first", LABELS % 2), ("second", LABELS // 2))
    ]
    shares = [np.arange(60), np.arange(60, 120)]
    joint, alone = JointJobs(tasks, 0.25, seed=3), [JointJobs([task], 0.25, seed=3) for task in tasks]
    both = training_samples([ClientSpec(n, (joint.job([s, s]),)) for n, s in enumerate(shares)], 20, seed=0)
    assert sorted(both) == ["first", "second"]
    for task, jobs in zip(tasks, alone, strict=True):
        own = training_samples([ClientSpec(n, (jobs.job([s]),)) for n, s in enumerate(shares)], 20, seed=0)
        one, other = both[task.name], own[task.name]
        assert isinstance(one, Examples)
        assert isinstance(other, Examples)
        assert one.rows.tolist() == other.rows.tolist()
        assert one.labels.tolist() == task.splits["train"].labels[one.rows].tolist()
