"""Process group: the rank of this process in the run, and its communication with the other processes.

The processes communicate by gathers: each process sends bytes, and receives the bytes of all processes. A process that
fails sends its error in the next gather, so that no other process waits in vain. Large tensors are summed over
the processes only after a gather in which no process has failed.
"""

from __future__ import annotations

import contextlib
import dataclasses
import time
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, ClassVar, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.distributed_c10d import _set_pg_timeout

from flt.core.errors import InputError, PeerDiedError
from flt.core.signals import ENDING, number_of
from flt.engines.rendezvous import LIMIT, LOOPBACK, PEER_TIMEOUT
from flt.engines.work_queue import WorkQueues
from flt.protocol.messages import decode, encode, message

if TYPE_CHECKING:
    from lightning.fabric import Fabric

FIRST_LOOK, LAST_LOOK = 0.0002, 0.02
"""Seconds between the first two looks for the messages of other processes, and the most that they become."""
_E = TypeVar("_E", bound=BaseException)
_T = TypeVar("_T")


@message
@dataclasses.dataclass(frozen=True)
class StatusMessage:
    """Message of one process to all others.

    Attributes:
        text: Text of the message, such as the result of a function.
        error: Text of the error with which the process failed; empty if the process didn't fail.
        mistaken: True if the error is an InputError, caused by a mistake in the input.
        signal: Number of the signal that ends the run; 0 if there is no signal.
    """

    codec_name: ClassVar[str] = "Word"

    text: str = ""
    error: str = ""
    mistaken: bool = False
    signal: int = 0


class PeerFailedError(RuntimeError):
    """Error that is raised in this process if another process of the run has failed."""


def mark_reported(error: _E) -> _E:
    """Marks an error as one that all processes raise, so that only the first process prints it."""
    error.reported = True  # type: ignore[attr-defined]  # exceptions take attributes
    return error


class ProcessGroup:
    """Process group of a run with a single process. For several processes, see :class:`LaunchedProcessGroup`.

    Attributes:
        rank: Rank of this process.
        size: Number of processes.
        device: Device on which this process trains.
    """

    def __init__(self) -> None:
        self.rank, self.size = 0, 1
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.in_lockstep = False
        """True if all processes train every job together. The processes then wait for each other within each fit."""
        self._failed = False  # True once all processes have received a failure; none of them communicates afterwards

    @property
    def is_first(self) -> bool:
        """True in the process with rank 0, which evaluates, prints and writes files."""
        return self.rank == 0

    def all_gather(self, data: bytes) -> list[bytes]:
        """Sends bytes to all processes, and returns the bytes of all processes in the order of ranks."""
        return [data]

    def all_reduce_sum(self, numbers: Tensor) -> Tensor:
        """Returns the sum of an int64 tensor over all processes. Integer sums are exact in any order."""
        return numbers

    def work_queue(self, items: Sequence[_T]) -> Iterator[_T]:
        """Divides items over the processes: yields the next item that no process has taken yet, until none is left.

        All processes must call this method with the same items and equally often. Between two calls there must be a
        gather, as at the end of a round.
        """
        return iter(items)

    def broadcast_from_first(self, make: Callable[[], str]) -> str:
        """Calls a function in the first process only, and returns its result in all processes.

        Raises:
            InputError: The function raised an InputError in the first process.
            PeerFailedError: The function raised another error in the first process.
        """
        if self.size == 1:
            return make()
        status = StatusMessage()
        if self.is_first:
            try:
                status = StatusMessage(make())
            except Exception as error:
                self.report_failure(error)
                raise
        return self.all_gather_checked(encode(status))[0].text

    def agree_to_stop(self, stop: bool) -> bool:
        """Returns the first process's value of ``stop`` in all processes, so that all stop after the same round."""
        return bool(self.broadcast_from_first(lambda: "stop" if stop else ""))

    def all_gather_checked(self, data: bytes) -> list:
        """Sends an encoded object to all processes. Returns the decoded objects of all processes in order of rank.

        Raises:
            InputError: A process has failed with an InputError.
            PeerFailedError: A process has failed with another error.
            KeyboardInterrupt: A process has received a signal that ends the run.
        """
        received = [decode(sent) for sent in self.all_gather(data)]
        for rank, status in enumerate(received):
            if isinstance(status, StatusMessage) and status.error:
                self._failed = True
                if status.signal:
                    raise mark_reported(ENDING.get(status.signal, KeyboardInterrupt)())
                text = f"process {rank}: {status.error}"
                raise mark_reported(InputError(status.error) if status.mistaken else PeerFailedError(text))
        return received

    def report_failure(self, error: BaseException) -> None:
        """Sends the error of this process to all other processes, which wait for this process in a gather."""
        if self.size == 1 or self._failed:
            return
        if self.in_lockstep and not isinstance(error, InputError):
            # If the error happened within a fit, the other processes wait for gradients. Closing the connection ends
            # these processes. This isn't needed for an InputError, because all processes raise the InputError. A signal
            # ends all processes (agree_on_signal), and only the first process prints the signal.
            if isinstance(error, KeyboardInterrupt):
                mark_reported(error)
            self.close()
            return
        self._failed = True
        mistaken = isinstance(error, InputError)
        text = str(error) if mistaken else f"{type(error).__name__}: {error}"
        number = number_of(error) if isinstance(error, KeyboardInterrupt) else 0
        with contextlib.suppress(RuntimeError):  # raised if another process has died
            self.all_gather(encode(StatusMessage(error=text, mistaken=mistaken, signal=number)))
            mark_reported(error)

    def agree_on_signal(self, number: int) -> int:
        """Returns the number of the signal that ends the run before the next job, or 0 if there is no signal.

        If all processes train every job together, a signal that one process has received ends all of them.

        Args:
            number: Number of the signal that this process has received; 0 if it has received none.
        """
        if not self.in_lockstep:
            return number
        return max(status.signal for status in self.all_gather_checked(encode(StatusMessage(signal=number))))

    def assert_same_round(self, rounds: int) -> None:
        """Checks that all processes have finished the same number of rounds.

        Raises:
            InputError: The numbers differ.
        """
        found = {int(status.text) for status in self.all_gather_checked(encode(StatusMessage(str(rounds))))}
        if len(found) > 1:
            allowed, why = "the same in all processes: one folder", "machines go on from different checkpoints"
            raise InputError.of("rounds that have been run", sorted(found), allowed, why)

    def close(self) -> None:
        """Closes the connection to the other processes."""
        if self.size > 1 and not self._failed:
            self._failed = True
            dist.destroy_process_group()


class LaunchedProcessGroup(ProcessGroup):
    """Process group of a run whose processes were started by Lightning's Fabric, torchrun or SLURM.

    Args:
        fabric: Lightning's Fabric, after its ``launch``.
        host: Address at which the other processes reach the first one.
    """

    def __init__(self, fabric: Fabric, host: str = LOOPBACK) -> None:
        super().__init__()
        self.rank, self.size, self.device = fabric.global_rank, fabric.world_size, fabric.device
        # Gloo, because messages are in CPU memory, and because NCCL doesn't notice at once that a process has died.
        self._group = None if dist.get_backend() == "gloo" else dist.new_group(backend="gloo", timeout=LIMIT)
        if self._group is not None:
            _set_pg_timeout(PEER_TIMEOUT, self._group)
        self._queues = WorkQueues(self.rank, self.size, host, self.all_gather)

    def all_gather(self, data: bytes) -> list[bytes]:
        """Sends bytes to all processes, and returns the bytes of all processes in the order of ranks.

        The lengths are sent first. The bytes follow as uint8 tensors, padded to the largest length.

        Raises:
            PeerDiedError: Another process has died.
        """
        length = torch.tensor([len(data)], dtype=torch.int64)
        lengths = [torch.zeros_like(length) for _ in range(self.size)]
        self._finish(dist.all_gather(lengths, length, group=self._group, async_op=True))
        sizes = [int(size) for size in lengths]
        mine = torch.zeros(max(sizes), dtype=torch.uint8)
        mine[: len(data)] = torch.frombuffer(bytearray(data), dtype=torch.uint8)
        found = [torch.empty_like(mine) for _ in range(self.size)]
        self._finish(dist.all_gather(found, mine, group=self._group, async_op=True))
        return [gathered[:size].numpy().tobytes() for gathered, size in zip(found, sizes, strict=True)]

    def work_queue(self, items: Sequence[_T]) -> Iterator[_T]:
        """Yields the next item that no process has taken yet.

        Raises:
            PeerDiedError: The first process has died.
            InputError: Another program has changed the counter of the taken items.
        """
        return self._queues.divide(items)

    def report_failure(self, error: BaseException) -> None:
        """Ends the work queue, so that the other processes soon reach a gather, and sends the error in this gather."""
        if not self._failed and not self.in_lockstep:
            self._queues.end()
        super().report_failure(error)

    def all_reduce_sum(self, numbers: Tensor) -> Tensor:
        """Returns the sum of an int64 tensor over all processes. Integer sums are exact in any order."""
        summed = numbers.cpu()
        self._finish(dist.all_reduce(summed, dist.ReduceOp.SUM, group=self._group, async_op=True))
        return summed.to(numbers.device)

    def _finish(self, work: dist.Work) -> None:
        """Waits for the other processes in Python's own code, so that signals are handled even if one of them hangs.

        Raises:
            PeerDiedError: Another process has died: its connection is closed.
        """
        pause = FIRST_LOOK
        try:
            while not work.is_completed():
                time.sleep(pause)
                pause = min(1.1 * pause, LAST_LOOK)
            work.wait()
        except RuntimeError as error:
            if "timed out" in str(error).lower():  # the other process may only be late
                raise
            raise PeerDiedError("another process of the run has died") from error
        except KeyboardInterrupt:
            self._failed = True  # a message is still on its way, and no other one can overtake it
            raise
