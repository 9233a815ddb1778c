"""What another program does to the run's store ends the run with a line that says so."""

from __future__ import annotations

import functools
import re
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


def stranger(processes: LaunchedProcessGroup) -> dist.TCPStore:
    """Another program that has found the port."""
    host, port = processes._queues._address.split(":")
    return dist.TCPStore(host, int(port), is_master=False)


def dividing(processes: ProcessGroup) -> list[list[str]]:
    return [list(processes.work_queue(items)) for items in ("abc", "", "de")]


def test_each_item_is_given_out_once(tmp_path: Path) -> None:
    assert forked(dividing, 1, tmp_path) == [[[*"abc"], [], [*"de"]]]  # forked, since a store has threads


def listening(processes: ProcessGroup) -> set[str]:
    return {its.laddr.ip for its in psutil.Process().net_connections() if its.status == psutil.CONN_LISTEN}


def test_the_queues_store_listens_on_loopback_only(tmp_path: Path) -> None:
    assert forked(listening, 1, tmp_path) == [{"127.0.0.1"}]


def guessed(processes: LaunchedProcessGroup) -> list[str]:
    stranger(processes).add("claims 1", 1 << 20)
    return list(processes.work_queue("abc"))


def test_the_key_of_a_counter_cannot_be_guessed(tmp_path: Path) -> None:
    assert forked(guessed, 1, tmp_path) == [[*"abc"]]  # type: ignore[arg-type]


def changed(amount: int, processes: LaunchedProcessGroup) -> str:
    items = processes.work_queue("abc")
    next(items)
    stranger(processes).add(processes._queues._key(1), amount)
    return f"went on with {list(items)}"


@pytest.mark.parametrize("amount", [-2, -4, 99, (1 << 40) - 10, -(1 << 62)])
def test_a_counter_that_was_changed_is_a_line(amount: int, tmp_path: Path) -> None:
    (found,) = forked(functools.partial(changed, amount), 1, tmp_path)  # type: ignore[arg-type]
    line = r"InputError: counter of the work queue at 127\.0\.0\.1:\d+=-?\d+: another program has changed the run's"
    assert re.match(line, found)


def broken(processes: LaunchedProcessGroup) -> str:
    stranger(processes).set(processes._queues._key(1), "no number")
    return f"went on with {list(processes.work_queue('abc'))}"


def test_a_store_that_was_broken_is_a_line(tmp_path: Path) -> None:
    (found,) = forked(broken, 1, tmp_path)  # type: ignore[arg-type]
    assert re.match(r"PeerDiedError: the run's store at 127\.0\.0\.1:\d+ doesn't answer: .* broken by another", found)


class Meddling(LaunchedProcessGroup):
    """A group with a stranger, who changes the counter once."""

    amount = 0

    def work_queue(self, items: Any) -> Iterator[Any]:
        divided = super().work_queue(items)
        if self.is_first:
            stranger(self).add(self._queues._key(1), self.amount)
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
        (50, "counter of the work queue at "),
    ],
)
def test_a_client_that_nobody_was_given_ends_all_processes_with_a_line(amount: int, line: str, tmp_path: Path) -> None:
    for found in forked(functools.partial(meddled, amount), 2, tmp_path):
        assert found.startswith(line)
        assert "another program has changed the run's store" in found
