"""What another program does to the run's store ends the run with a line that says so."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch.distributed as dist
from forked import forked
from toys import toy_clients, toy_federator

from flt.core.errors import InputError
from flt.engines.distributed import DistributedEngine
from flt.engines.process_group import LaunchedProcessGroup, ProcessGroup
from flt.engines.work_queue import WorkQueues


@pytest.fixture
def alone() -> WorkQueues:
    return WorkQueues(0, 1, "127.0.0.1", lambda data: [data])


def stranger(queues: WorkQueues) -> dist.TCPStore:
    """Another program that has found the port."""
    host, port = queues._address.split(":")
    return dist.TCPStore(host, int(port), is_master=False)


def test_each_item_is_given_out_once(alone: WorkQueues) -> None:
    assert [list(alone.divide("abc")), list(alone.divide("")), list(alone.divide("de"))] == [[*"abc"], [], [*"de"]]


def test_the_store_listens_on_loopback_only(alone: WorkQueues) -> None:
    port = int(alone._address.split(":")[1])
    listening = [its for its in psutil.Process().net_connections() if its.status == psutil.CONN_LISTEN]
    assert {its.laddr.ip for its in listening if its.laddr.port == port} == {"127.0.0.1"}


def test_the_key_of_a_counter_cannot_be_guessed(alone: WorkQueues) -> None:
    stranger(alone).add("claims 1", 1 << 20)
    assert list(alone.divide("abc")) == [*"abc"]


@pytest.mark.parametrize("amount", [-1, -3, 100, (1 << 40) - 10, -(1 << 62)])
def test_a_counter_that_was_changed_is_a_line(amount: int, alone: WorkQueues) -> None:
    items = alone.divide("abc")
    assert next(items) == "a"
    stranger(alone).add(alone._key(1), amount - 1)
    with pytest.raises(InputError, match=r"^items taken at 127.0.0.1:\d+=-?\d+: another program has changed the run's"):
        list(items)


class Meddling(LaunchedProcessGroup):
    """A group with a stranger, who changes the counter once."""

    amount = 0

    def work_queue(self, items: Any) -> Iterator[Any]:
        divided = super().work_queue(items)
        if self.is_first:
            stranger(self._queues).add(self._queues._key(1), self.amount)
        self.all_gather(b"changed")
        return divided


def meddled(amount: int, processes: ProcessGroup) -> str:
    federator = toy_federator(clients=toy_clients(4), rounds=2)
    processes.__class__, processes.amount = Meddling, amount  # type: ignore[assignment, attr-defined]
    federator.engine = DistributedEngine(federator.engine, processes)
    try:
        federator.fit()
    except InputError as error:
        return str(error)
    return "went on"


@pytest.mark.parametrize(
    ("amount", "line"),
    [
        (1, "processes that trained job 0 of client "),
        (1 << 40, "processes that trained job 0 of client "),
        (50, "items taken at "),
    ],
)
def test_a_client_that_nobody_was_given_ends_all_processes_with_a_line(amount: int, line: str, tmp_path: Path) -> None:
    for found in forked(functools.partial(meddled, amount), 2, tmp_path):
        assert found.startswith(line)
        assert "another program has changed the run's store" in found
