"""Work queues, which divide items over the processes of a run. The first process keeps a store with their counters."""

from __future__ import annotations

import contextlib
import secrets
from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

import torch.distributed as dist

from flt.core.errors import InputError, PeerDiedError
from flt.engines.rendezvous import STORE_TIMEOUT, listen

NO_ITEM_LEFT = 1 << 40
"""Number that is added to the counter of a queue to end the queue; larger than the length of any queue."""
INTRUDER = 'another program has changed the run\'s store (docs/engines.md, "Who can join")'
_T = TypeVar("_T")


class WorkQueues:
    """The work queues of a run, one after another.

    Args:
        rank: Rank of this process.
        size: Number of processes.
        host: Address of the first process.
        all_gather: Sends bytes to all processes, and returns the bytes of all.

    Raises:
        PeerDiedError: The first process's store can't be reached.
    """

    def __init__(self, rank: int, size: int, host: str, all_gather: Callable[[bytes], list[bytes]]) -> None:
        self.rank, self.size = rank, size
        self._count = 0  # number of queues so far
        if rank == 0:
            server, secret = listen(host), secrets.token_hex()
            port = server.getsockname()[1]
            store = dist.TCPStore(host, port, is_master=True, wait_for_workers=False, master_listen_fd=server.detach())
            all_gather(f"{port} {secret}".encode())
        else:
            number, secret = all_gather(b"asks")[0].decode().split()
            port = int(number)
            try:
                store = dist.TCPStore(host, port, is_master=False, timeout=STORE_TIMEOUT)
            except RuntimeError as error:  # no connection until the timeout: the first process has died
                raise PeerDiedError(f"the run's first process keeps no store at {host}:{port}") from error
        self._address, self._store, self._secret = f"{host}:{port}", store, secret

    def divide(self, items: Sequence[_T]) -> Iterator[_T]:
        """Yields the next item that no process has taken yet, until none is left.

        Raises:
            PeerDiedError: The store has gone, as it does with the first process.
            InputError: Another program has changed the counter.
        """
        self._count += 1
        if self.rank == 0:  # A gather came after the previous queue, so no process uses that queue any more.
            with contextlib.suppress(RuntimeError):
                self._store.delete_key(self._key(self._count - 1))
        return self._divide(self._key(self._count), items)

    def end(self) -> None:
        """Ends the queue that is in use, and the next one, which another process may use already."""
        with contextlib.suppress(RuntimeError):  # raised if the store has died with the first process
            for number in (self._count, self._count + 1):
                self._store.add(self._key(number), NO_ITEM_LEFT)

    def _key(self, number: int) -> str:
        return f"claims {self._secret} {number}"

    def _divide(self, key: str, items: Sequence[_T]) -> Iterator[_T]:
        while True:
            try:
                number = self._store.add(key, 1) - 1
            except RuntimeError as error:
                why = "it dies with the first process, or it was broken by another program"
                raise PeerDiedError(f"the run's store at {self._address} doesn't answer: {why}") from error
            if not (0 <= number < len(items) + self.size or number >= NO_ITEM_LEFT):
                key = f"counter of the work queue at {self._address}"
                raise InputError.of(key, number, f"0 to {len(items)}", INTRUDER)
            if number >= len(items):
                return
            yield items[number]
