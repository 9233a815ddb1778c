"""The processes of a run: which of them this one is, and what they tell each other.

Each gives some bytes and gets those of all, in the order of their ranks: there a process that fails can say so, and
none of them waits for it in vain. Sums, which are large, follow only after all have said that they have theirs.
"""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import os
import signal
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, ClassVar, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from flt.core.errors import InputError, PeerDiedError, Terminated
from flt.protocol.codec import decode, encode, message

if TYPE_CHECKING:
    from lightning.fabric import Fabric

PATIENCE = datetime.timedelta(days=30)
"""How long processes wait for each other."""
CONNECTING = datetime.timedelta(seconds=60)
"""How long one tries to reach a store that is there already."""
NOBODYS = 1 << 40
"""More than there are items to claim."""
_E = TypeVar("_E", bound=BaseException)
_T = TypeVar("_T")


@message
@dataclasses.dataclass(frozen=True)
class StatusMessage:
    """What one process tells the others.

    Attributes:
        text: What it says.
        error: Why it can't go on; empty where it can.
        mistaken: Whether the error is a mistake in the input.
        signal: Which signal ends the run; 0: none.
    """

    codec_name: ClassVar[str] = "Word"

    text: str = ""
    error: str = ""
    mistaken: bool = False
    signal: int = 0


class PeerFailedError(RuntimeError):
    """Another process of the run can't go on."""


def mark_reported(error: _E) -> _E:
    """Marks an error as one that all processes know of, so that the first one alone says it."""
    error.reported = True  # type: ignore[attr-defined]  # exceptions take attributes
    return error


class ProcessGroup:
    """One process alone; :class:`LaunchedProcessGroup` has others beside it.

    Attributes:
        rank: The number of this one among all.
        size: How many there are.
        device: On which this one trains.
    """

    def __init__(self) -> None:
        self.rank, self.size = 0, 1
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.in_lockstep = False
        """True if all processes train every job together: none of them waits for another outside of a fit."""
        self._failed = False  # whether a failure is known to all, so that nobody listens any more

    @property
    def is_first(self) -> bool:
        """Whether this one evaluates, shows and writes."""
        return self.rank == 0

    def gather(self, data: bytes) -> list[bytes]:
        """What each process gave, by rank."""
        return [data]

    def total(self, numbers: Tensor) -> Tensor:
        """The sum over the processes of an int64 tensor, exact in any order."""
        return numbers

    def work_queue(self, items: Sequence[_T]) -> Iterator[_T]:
        """Those that this process gets of items that all have alike: whenever it asks, the next that nobody has.

        Called equally often by each of them; between two calls they have to meet, as they do at the end of a round.
        """
        return iter(items)

    def first(self, make: Callable[[], str]) -> str:
        """What the first process makes, on all of them.

        Raises:
            InputError: It can't, for a mistake in the input.
            PeerFailedError: It can't, for another reason.
        """
        if self.size == 1:
            return make()
        word = StatusMessage()
        if self.is_first:
            try:
                word = StatusMessage(make())
            except Exception as error:
                self.fail(error)
                raise
        return self.all_gather_checked(encode(word))[0].text

    def agree(self, stop: bool) -> bool:
        """Whether the first process says so."""
        return bool(self.first(lambda: "stop" if stop else ""))

    def all_gather_checked(self, data: bytes) -> list:
        """What each process gave, decoded.

        Raises:
            InputError: A process failed for a mistake in the input.
            PeerFailedError: A process failed.
        """
        heard = [decode(its) for its in self.gather(data)]
        for rank, word in enumerate(heard):
            if isinstance(word, StatusMessage) and word.error:
                self._failed = True
                if word.signal:
                    raise mark_reported(Terminated() if word.signal == signal.SIGTERM else KeyboardInterrupt())
                error = InputError(word.error) if word.mistaken else PeerFailedError(f"process {rank}: {word.error}")
                raise mark_reported(error)
        return heard

    def fail(self, error: BaseException) -> None:
        """Tells the others that this one can't go on, wherever they wait for it."""
        if self.size == 1 or self._failed:
            return
        if self.in_lockstep and not isinstance(error, InputError):
            # An error may have happened in the middle of a fit, where the others wait for gradients: they end with the
            # connection. A mistake in the input is found by all processes, and a signal has reached all of them.
            if isinstance(error, KeyboardInterrupt):
                mark_reported(error)
            self.leave()
            return
        self._failed = True
        mistaken = isinstance(error, InputError)
        text = str(error) if mistaken else f"{type(error).__name__}: {error}"
        number = 0
        if isinstance(error, KeyboardInterrupt):
            number = int(signal.SIGTERM if isinstance(error, Terminated) else signal.SIGINT)
        with contextlib.suppress(RuntimeError):  # one that has died doesn't listen either
            self.gather(encode(StatusMessage(error=text, mistaken=mistaken, signal=number)))
            mark_reported(error)

    def signalled(self, number: int) -> int:
        """The signal that ends the run before the next job; 0: none.

        Args:
            number: The signal that this process has received; 0: none.
        """
        if not self.in_lockstep:
            return number
        return max(word.signal for word in self.all_gather_checked(encode(StatusMessage(signal=number))))

    def assert_same_round(self, rounds: int) -> None:
        """Makes sure that all have finished equally many rounds.

        Raises:
            InputError: They haven't.
        """
        found = {int(word.text) for word in self.all_gather_checked(encode(StatusMessage(str(rounds))))}
        if len(found) > 1:
            allowed, why = "the same in all processes: one folder", "machines go on from different checkpoints"
            raise InputError.of("rounds that have been run", sorted(found), allowed, why)

    def leave(self) -> None:
        """Closes the connection to the others."""
        if self.size > 1 and not self._failed:
            self._failed = True
            dist.destroy_process_group()


class LaunchedProcessGroup(ProcessGroup):
    """A process that Lightning's Fabric has launched, or found itself launched with: torchrun, SLURM.

    Args:
        fabric: After its ``launch``.
    """

    def __init__(self, fabric: Fabric) -> None:
        super().__init__()
        self.rank, self.size, self.device = fabric.global_rank, fabric.world_size, fabric.device
        # messages lie in the CPU's memory, and gloo says at once that a process has died, where NCCL waits
        self._group = None if dist.get_backend() == "gloo" else dist.new_group(backend="gloo", timeout=PATIENCE)
        self._store = self._met()
        self._claimed = 0  # lists of items

    def gather(self, data: bytes) -> list[bytes]:
        """What each process gave, by rank: their lengths first, then the bytes as uint8 tensors of one length.

        Raises:
            PeerDiedError: One of them isn't there any more.
        """
        length = torch.tensor([len(data)], dtype=torch.int64)
        lengths = [torch.zeros_like(length) for _ in range(self.size)]
        with _noticing():
            dist.all_gather(lengths, length, group=self._group)
        sizes = [int(its) for its in lengths]
        mine = torch.zeros(max(sizes), dtype=torch.uint8)
        mine[: len(data)] = torch.frombuffer(bytearray(data), dtype=torch.uint8)
        found = [torch.empty_like(mine) for _ in range(self.size)]
        with _noticing():
            dist.all_gather(found, mine, group=self._group)
        return [its[:size].numpy().tobytes() for its, size in zip(found, sizes, strict=True)]

    def work_queue(self, items: Sequence[_T]) -> Iterator[_T]:
        """Those that this process gets of items that all have alike: whenever it asks, the next that nobody has.

        Raises:
            PeerDiedError: The first process, which counts, isn't there any more.
        """
        self._claimed += 1
        if self.is_first:  # of the list before nobody asks for more: all have met since
            self._store.delete_key(f"claims {self._claimed - 1}")
        return self._work_queue(f"claims {self._claimed}", items)

    def _work_queue(self, key: str, items: Sequence[_T]) -> Iterator[_T]:
        while True:
            with _noticing():
                number = self._store.add(key, 1) - 1
            if number >= len(items):
                return
            yield items[number]

    def fail(self, error: BaseException) -> None:
        """Tells the others that this one can't go on; nobody claims anything any more, so that they hear it soon."""
        if not self._failed and not self.in_lockstep:
            with contextlib.suppress(RuntimeError):  # the store has died with the first process
                for number in (self._claimed, self._claimed + 1):  # the others may have begun the next list
                    self._store.add(f"claims {number}", NOBODYS)
        super().fail(error)

    def _met(self) -> dist.TCPStore:
        """A store that the first process keeps, for what they count together."""
        host = os.environ.get("MASTER_ADDR", "127.0.0.1")  # the launcher's
        if self.is_first:
            store = dist.TCPStore(host, 0, is_master=True, wait_for_workers=False)
            self.gather(str(store.port).encode())
            return store
        port = int(self.gather(b"no port")[0])
        try:
            return dist.TCPStore(host, port, is_master=False, timeout=CONNECTING)
        except RuntimeError as error:  # refused until the time is over, where nobody is there any more
            raise PeerDiedError(f"the run's first process keeps no store at {host}:{port}") from error

    def total(self, numbers: Tensor) -> Tensor:
        """The sum over the processes of an int64 tensor, exact in any order."""
        summed = numbers.cpu()
        with _noticing():
            dist.all_reduce(summed, dist.ReduceOp.SUM, group=self._group)
        return summed.to(numbers.device)


@contextlib.contextmanager
def _noticing() -> Iterator[None]:
    """Notices that another process has died: the connection to it is closed."""
    try:
        yield
    except RuntimeError as error:
        if "timed out" in str(error).lower():  # it may be there, and late
            raise
        raise PeerDiedError("another process of the run has died") from error
