"""What clients cost that are in no cohort: their positions, and nothing that is computed from them."""

from __future__ import annotations

import dataclasses
import pickle
from typing import Any

import numpy as np
import pytest
from torch.utils.data import TensorDataset
from toys import Toy, toy_data

import flt
from flt.data import held_out
from flt.data import partition as partitioners
from flt.data.task_rounds import with_task_rounds
from flt.server.callback import FedCallback
from flt.server.federator import Federator

MANY = 2_000


@pytest.fixture
def splits(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The shares that were split, by their first position."""
    split, seen = held_out.split, list[int]()

    def watched(positions: Any, *args: Any) -> Any:
        seen.append(int(positions[0]))
        return split(positions, *args)

    monkeypatch.setattr(held_out, "split", watched)
    return seen


def test_only_the_cohorts_clients_are_split(splits: list[int], tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    data = toy_data(4 * MANY)
    clients = flt.partition(data, by=None, clients=MANY)
    assert len(clients) == MANY
    assert not splits
    cohorts: set[int] = set()

    class Cohorts(FedCallback):
        def on_round_start(self, federator: Federator) -> None:
            cohorts.update(job.client for job in federator.cohort)

    overrides = ["cohort.size=3", "eval.client_examples=0", "local.steps=1"]
    validation = TensorDataset(*(column[:20] for column in data.tensors))
    flt.fit(
        Toy(), clients, "fedit", 2, validation=validation, callbacks=[Cohorts()], progress=False, overrides=overrides
    )
    assert len(cohorts) > 3
    pictured = 50  # the picture of the partition shows the first clients
    recorded = 200  # the record of the run describes some of all clients
    assert len(set(splits)) <= len(cohorts) + pictured + recorded


def test_other_rounds_or_another_data_set_split_nobody(splits: list[int]) -> None:
    data = toy_data(40)
    clients = with_task_rounds(flt.partition(data, by=None, clients=4), {"": [2, None]})
    moved = clients[0].data[0].but(dataset=toy_data(40, seed=1))
    assert not splits
    assert moved.rounds == (2, None)
    assert moved.dataset is not data
    assert moved.train.tolist() == flt.partition(data, by=None, clients=4)[0].data[0].train.tolist()


def test_positions_and_counts_are_those_of_splitting_at_once() -> None:
    data = toy_data(60)
    labels = data.tensors[1].numpy()
    for share, client in zip(partitioners.iid(60, 4, 0), flt.partition(data, by=None, clients=4), strict=True):
        train, held = held_out.split(share, np.zeros(60, dtype=int), 0.2, 0)
        job = client.data[0]
        assert job.examples == len(train)
        assert job.train.tolist() == train.tolist()
        assert job.held_out.tolist() == held.tolist()
        assert job.train is job.train  # computed once
    job = flt.partition(data, alpha=1.0, clients=3)[1].data[0]
    assert job.label_counts == tuple(np.bincount(labels[job.train], minlength=3).tolist())


def test_a_job_with_other_fields_keeps_its_positions(splits: list[int]) -> None:
    job = flt.partition(toy_data(40), alpha=1.0, clients=2)[0].data[0]
    positions = np.arange(3)
    fewer = job.but(train=positions)
    assert (fewer.examples, fewer.train is positions) == (3, True)
    with pytest.raises(TypeError, match="trian"):
        job.but(trian=positions)
    assert not splits
    replaced = dataclasses.replace(job, rounds=(2, None))
    assert (replaced.rounds, replaced.examples, replaced.label_counts) == ((2, None), job.examples, job.label_counts)
    assert replaced.train.tolist() == job.train.tolist()
    assert fewer.held_out.tolist() == replaced.held_out.tolist() == job.held_out.tolist()
    assert pickle.loads(pickle.dumps(replaced)).train.tolist() == job.train.tolist()
