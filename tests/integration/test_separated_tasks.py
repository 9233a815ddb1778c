"""FL-TAC with separated tasks, whatever the clustering: a federation per task."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
import pytest
import torch
from methods import GROUPINGS, METHODS, UNIFORM
from torch.utils.data import Dataset, TensorDataset
from toys import FEATURES, assert_same, toy_federator, weights_of

from flt.algorithm.recipe import Recipe
from flt.data.clients import ClientSpec, JobData
from flt.server.client_sampling import FixedSize
from flt.server.federator import Federator


class OneTask(ClientSpec):
    """A client of which one job alone takes part, under its own index."""

    index = 0

    def jobs(self, rank: int) -> tuple[Any, ...]:
        return (super().jobs(rank)[self.index],)


class OtherTask(OneTask):
    index = 1


def separated_clients(kind: type[ClientSpec] = ClientSpec) -> dict[int, ClientSpec]:
    """Two tasks that pull a model apart: all labels are 0 in one and 2 in the other."""
    x = torch.randn(120, FEATURES, generator=torch.Generator().manual_seed(0))
    sets = [TensorDataset(x, torch.full((120,), label)) for label in (0, 2)]
    return {
        number: kind(number, tuple(job_data(s, number, f"task{task}") for task, s in enumerate(sets)))
        for number in range(3)
    }


def job_data(dataset: Dataset, number: int, task: str) -> JobData:
    return JobData(dataset, np.arange(number * 30, number * 30 + 12 + 4 * number), np.arange(0), task)


@functools.cache
def federated(name: str, kind: type[ClientSpec], later: int) -> Federator:
    """All take part in round 1: a slot that is met later begins with v0, and not with the model of its task.

    No task is learnt to the end: what then changes tells tasks apart no more.
    """
    recipe: Recipe = METHODS[name][0] if name else UNIFORM
    federator = toy_federator(recipe, separated_clients(kind), rounds=3, lr=0.01)
    federator.sampler = lambda ids, seed, round: FixedSize(later if round else 3)(ids, seed, round)
    federator.fit()
    return federator


@pytest.mark.slow
@pytest.mark.parametrize("later", [3, 2], ids=["all", "partial cohorts"])
@pytest.mark.parametrize("name", GROUPINGS)
def test_fl_tac_with_separated_clusters_is_fedit_per_task_bit_for_bit(name: str, later: int) -> None:
    together = federated(f"fl_tac{name}", ClientSpec, later)
    for index, kind in enumerate((OneTask, OtherTask)):
        (gid,) = {gid for job, gid in together.state.assignment.items() if job[1] == index}
        assert_same(weights_of(together, gid), weights_of(federated("", kind, later)))
