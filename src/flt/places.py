"""Where a fit runs: on one device, or split over the devices of all processes by a strategy of the Trainer."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import lightning.pytorch as pl
from lightning.fabric.plugins.environments import LightningEnvironment
from lightning.pytorch.strategies import DDPStrategy
from torch.utils.data import DataLoader, Sampler

from flt.quiet import ResidentStrategy, alone


class OneDevice:
    """A fit on the device on which the module is, whatever other processes of the run do."""

    def arguments(self, module: pl.LightningModule) -> dict[str, Any]:
        """The Trainer's."""
        return {"strategy": ResidentStrategy(module.device), "plugins": [LightningEnvironment()]}

    def around(self) -> contextlib.AbstractContextManager[None]:
        """What holds while it runs."""
        return alone()

    def share(self, loader: DataLoader) -> DataLoader:
        """This process's part of each batch: all of it."""
        return loader


class ResidentDDP(DDPStrategy):
    """Leaves the module on its device when a fit ends, and doesn't send frozen weights round when one begins."""

    def __init__(self) -> None:
        super().__init__(find_unused_parameters=True, init_sync=False)  # each process has put in the same payload

    def teardown(self) -> None:
        """Called when a fit ends: takes the module out of torch's wrapper, and moves nothing."""
        self.model, self.optimizers = self.lightning_module, []
        self.precision_plugin.teardown()
        self.checkpoint_io.teardown()


class AllDevices(OneDevice):
    """One fit on the devices of all processes, each with a part of every batch: torch's DDP averages the gradients.

    Args:
        rank: Of this process.
        size: Processes in all.
        nodes: Machines that they are on.
    """

    def __init__(self, rank: int, size: int, nodes: int) -> None:
        self.rank, self.size, self.nodes = rank, size, nodes

    def arguments(self, module: pl.LightningModule) -> dict[str, Any]:
        """The Trainer's."""
        devices = self.size // self.nodes
        return {
            "strategy": ResidentDDP(), "devices": devices, "num_nodes": self.nodes, "use_distributed_sampler": False,
        }  # fmt: skip

    @contextlib.contextmanager
    def around(self) -> Iterator[None]:
        """What holds while it runs: nothing; its processes are there to talk to each other."""
        yield

    def share(self, loader: DataLoader) -> DataLoader:
        """This process's part of each batch."""
        parts = Parts(loader.batch_sampler, self.rank, self.size)  # type: ignore[arg-type]  # an iterable of lists
        return DataLoader(loader.dataset, batch_sampler=parts, collate_fn=loader.collate_fn)


class Parts(Sampler[list[int]]):
    """Every size-th example of each batch, beginning with the rank-th.

    A batch that can't be dealt evenly leaves one example less to some processes, whose examples then weigh more in the
    mean of the gradients; of one with fewer examples than processes, the last ones get the first example again.

    Args:
        batches: Lists of positions.
        rank: Of the process.
        size: Processes in all.

    Example:
        >>> [list(Parts([[4, 5, 6, 7], [8]], rank, 2)) for rank in (0, 1)]
        [[[4, 6], [8]], [[5, 7], [8]]]
    """

    def __init__(self, batches: Sampler[list[int]], rank: int, size: int) -> None:
        self.batches, self.rank, self.size = batches, rank, size

    def __iter__(self) -> Iterator[list[int]]:
        for batch in self.batches:
            yield batch[self.rank :: self.size] or batch[:1]

    def __len__(self) -> int:
        return len(self.batches)  # type: ignore[arg-type]  # the loaders' samplers have a length
