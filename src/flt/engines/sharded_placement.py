"""One fit split over the devices of all processes, by a strategy of its Trainer."""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Iterator
from typing import Any

import lightning.pytorch as pl
import torch
import torch.distributed as dist
from lightning.pytorch.strategies import DDPStrategy
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.utils.data import DataLoader, Sampler

from flt.client.placement import OneDevice
from flt.core.quiet import single_process
from flt.models.blocks import blocks


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
        size: ProcessGroup in all.
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

    def around(self) -> contextlib.AbstractContextManager[None]:
        """What holds while it runs: nothing; its processes are there to talk to each other."""
        return contextlib.nullcontext()

    def share(self, loader: DataLoader) -> DataLoader:
        """This process's part of each batch."""
        parts = Parts(loader.batch_sampler, self.rank, self.size)  # type: ignore[arg-type]  # an iterable of lists
        return DataLoader(loader.dataset, batch_sampler=parts, collate_fn=loader.collate_fn)


class ShardedWeights(AllDevices):
    """One fit on the devices of all processes, each of which keeps a part of every block's frozen weights.

    A block's weights are put together when it computes, and let go of again (torch's FSDP2). Adapters and head are
    small: every process has them whole, and their gradients are averaged before a step. Evaluations need all processes.
    """

    together = True

    def arguments(self, module: pl.LightningModule) -> dict[str, Any]:
        """The Trainer's: its strategy sees one device, since the weights themselves know of the others."""
        return OneDevice().arguments(module)

    def around(self) -> contextlib.AbstractContextManager[None]:
        """What holds while it runs."""
        return single_process()

    def callbacks(self) -> list[pl.Callback]:
        """What averages the gradients."""
        return [MeanGradients(self.size)]

    def shard(self, module: nn.Module, kept: Collection[nn.Parameter]) -> None:
        """Splits the weights of each block over the processes, in place.

        Args:
            module: With adapters attached, the same in all processes.
            kept: Parameters that every process keeps whole.

        Raises:
            InputError: The model has no list of like blocks.
        """
        mesh = init_device_mesh(next(module.parameters()).device.type, (self.size,))
        for name in blocks(module):
            block = module.get_submodule(name)
            fully_shard(block, mesh=mesh, ignored_params={p for p in block.parameters() if p in set(kept)})


class MeanGradients(pl.Callback):
    """Averages gradients over the processes, in one message, before anything else reads them.

    Args:
        size: ProcessGroup in all.
    """

    def __init__(self, size: int) -> None:
        self.size = size

    def on_before_optimizer_step(self, trainer: pl.Trainer, pl_module: pl.LightningModule, optimizer: Any) -> None:
        """Called before each optimiser step."""
        gradients = [p.grad for p in pl_module.parameters() if p.grad is not None]
        flat = torch.cat([gradient.reshape(-1) for gradient in gradients])
        dist.all_reduce(flat)
        flat /= self.size
        for gradient, mean in zip(gradients, flat.split([g.numel() for g in gradients]), strict=True):
            gradient.copy_(mean.view_as(gradient))


class Parts(Sampler[list[int]]):
    """Every size-th example of each batch, beginning with the rank-th.

    A batch that can't be dealt evenly leaves one example less to some processes, whose examples then weigh more in the
    mean of the gradients; of one with fewer examples than processes, the last ones get the first example again.

    Args:
        batches: Lists of positions.
        rank: Of the process.
        size: ProcessGroup in all.

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
