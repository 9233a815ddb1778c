"""Who trains which client: whoever is free the longest that is left, or shares that are dealt beforehand."""

from __future__ import annotations

import dataclasses
import itertools
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from forked import forked
from toys import toy_clients, toy_federator, updates_of
from whole_runs import everything

from flt.client.settings import LocalSettings
from flt.engines import distributed
from flt.engines.batched.engine import BatchedEngine
from flt.engines.distributed import DistributedEngine, longest_first, shares
from flt.engines.process_group import ProcessGroup
from flt.engines.serial import SerialEngine
from flt.server.engine import Assignment, Outcome


@pytest.mark.parametrize("costs", [{0: 3, 1: 3, 2: 3, 3: 3}, {0: 1, 1: 9, 2: 4, 3: 4}, {5: 0}, {}])
def test_each_client_is_in_one_share_and_the_longest_is_not_more_than_a_third_above_the_best(
    costs: dict[int, int],
) -> None:
    for processes in (1, 2, 3):
        dealt = shares(costs, processes)
        assert sorted(client for its in dealt for client in its) == sorted(costs)
        loads = [sum(costs[client] for client in its) for its in dealt]
        best = min(
            max(sum(cost for cost, at in zip(costs.values(), chosen, strict=True) if at == p) for p in range(processes))
            for chosen in itertools.product(range(processes), repeat=len(costs))
        )
        assert max(loads) <= 4 / 3 * best  # Graham 1969


def test_a_longer_fit_is_begun_before_a_shorter_one_is_shared() -> None:
    assert shares({0: 1, 1: 2, 2: 9}, 2) == [[2], [1, 0]]
    assert longest_first({0: 2, 1: 1, 2: 9, 3: 2}) == [2, 0, 3, 1]


@pytest.mark.parametrize(
    ("settings", "cost"),
    [
        ({"steps": 3, "batch_size": 4}, 12),
        ({"steps": 3, "accumulate": 2, "batch_size": 4}, 24),
        ({"steps": None, "epochs": 2, "batch_size": 4}, 2 * 3 * 4),  # ten examples are three batches
        ({"steps": 3, "batch_size": 64}, 30),
    ],
    ids=["steps", "accumulated", "epochs", "a batch of all"],
)
def test_the_cost_of_a_job_is_the_number_of_examples_that_its_fit_reads(settings: dict[str, Any], cost: int) -> None:
    federator = toy_federator(clients=toy_clients(1))
    engine, client = DistributedEngine(federator.engine, ProcessGroup()), federator.clients[0]
    data = dataclasses.replace(client.data[0], train=np.arange(10))
    engine.clients = {0: dataclasses.replace(client, data=(data,))}
    engine.local_trainer.settings = LocalSettings(**settings)
    (job,) = client.jobs(4)
    assert engine._cost(job) == cost


def test_sums_are_exchanged_in_chunks_of_a_largest_size_and_a_larger_tensor_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Two integers for each number."""
    monkeypatch.setattr(distributed, "MAX_NUMBERS", 10)
    shapes = {("mean", name): (size,) for name, size in {"a": 2, "b": 3, "c": 1, "d": 9, "e": 1}.items()}
    chunks = [[name for _, name in chunk] for chunk in distributed._chunks(list(shapes), shapes)]
    assert chunks == [["a", "b"], ["c"], ["d"], ["e"]]


class Slow(SerialEngine):
    """An engine on a processor that is slower than the others'."""

    def run(self, assignments: Iterable[Assignment]) -> Iterator[Outcome]:
        for outcome in super().run(assignments):
            time.sleep(1.0)
            yield outcome


def uneven(processes: ProcessGroup) -> tuple[list[bytes], list[int]]:
    federator = toy_federator(clients=toy_clients(5), rounds=2)
    inside = federator.engine if processes.is_first else Slow(federator.engine.local_trainer, federator.clients)
    federator.engine = DistributedEngine(inside, processes)
    federator.fit()
    return everything(federator), [update.job[0] for update in updates_of(federator)]


@pytest.mark.slow
def test_who_is_faster_trains_more_clients_and_no_bit_changes(tmp_path: Path) -> None:
    alone = uneven(ProcessGroup())[0]
    (one, fast), (other, slow) = forked(uneven, 2, tmp_path)
    assert one == other == alone
    assert sorted(fast + slow) == [0, 1, 2, 3, 4]
    assert len(slow) < len(fast)


def claiming(processes: ProcessGroup) -> list[list[str]]:
    found = []
    for items in ("abcdefgh", "", "ij"):
        found.append(list(processes.work_queue(items)))
        processes.all_gather(b"done")  # as a round ends
    return found


def test_each_item_is_claimed_once_list_by_list(tmp_path: Path) -> None:
    assert claiming(ProcessGroup()) == [list("abcdefgh"), [], list("ij")]
    for of_first, of_second, expected in zip(*forked(claiming, 2, tmp_path), ["abcdefgh", "", "ij"], strict=True):
        assert sorted(of_first + of_second) == list(expected)


def test_fits_whose_bits_depend_on_their_neighbours_are_dealt_beforehand() -> None:
    federator = toy_federator(clients=toy_clients(5))
    cohort = federator.draw_cohort()
    inside = BatchedEngine(federator.engine.local_trainer, federator.clients)
    dealt = []
    for rank in range(2):
        processes = ProcessGroup()
        processes.rank, processes.size = rank, 2
        processes.work_queue = lambda items: pytest.fail("claimed")  # type: ignore[method-assign]  # nobody is to call it
        engine = DistributedEngine(inside, processes)
        dealt.append([job.client for job in engine.deal(cohort)])
        assert dealt[-1] == [job.client for job in engine.deal(cohort)]
    assert sorted(sum(dealt, [])) == [0, 1, 2, 3, 4]
    assert max(map(len, dealt)) == 3
