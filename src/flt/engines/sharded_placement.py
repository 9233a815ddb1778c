"""Placements that split one fit over the devices of all processes."""

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
    """DDP that leaves the module on its device after a fit, and doesn't broadcast the weights before it."""

    def __init__(self) -> None:
        super().__init__(find_unused_parameters=True, init_sync=False)  # each process has installed the same payload

    def teardown(self) -> None:
        """Unwraps the module from torch's DDP and leaves it on its device; called when a fit ends."""
        self.model, self.optimizers = self.lightning_module, []
        self.precision_plugin.teardown()
        self.checkpoint_io.teardown()


class AllDevices(OneDevice):
    """Placement on the devices of all processes: each gets a part of every batch, and DDP averages the gradients.

    Args:
        rank: Rank of this process.
        size: Number of processes.
        nodes: Number of machines that the processes run on.
    """

    def __init__(self, rank: int, size: int, nodes: int) -> None:
        self.rank, self.size, self.nodes = rank, size, nodes

    def arguments(self, module: pl.LightningModule) -> dict[str, Any]:
        """Returns the Trainer's arguments for this placement."""
        devices = self.size // self.nodes
        return {
            "strategy": ResidentDDP(), "devices": devices, "num_nodes": self.nodes, "use_distributed_sampler": False,
        }  # fmt: skip

    def context(self) -> contextlib.AbstractContextManager[None]:
        """Returns an empty context, in which the fit communicates with the other processes."""
        return contextlib.nullcontext()

    def shard(self, loader: DataLoader) -> DataLoader:
        """Returns a loader of this process's part of each batch."""
        parts = Parts(loader.batch_sampler, self.rank, self.size)  # type: ignore[arg-type]  # an iterable of lists
        return DataLoader(loader.dataset, batch_sampler=parts, collate_fn=loader.collate_fn)


class ShardedWeights(AllDevices):
    """Placement on the devices of all processes, each of which keeps a part of the frozen weights of every block.

    FSDP2 of torch gathers the weights of a block when it computes, and frees them afterwards. Adapters and head are
    small: every process has all of them, and averages their gradients before a step. Evaluations need all processes.
    """

    needs_all_processes = True

    def arguments(self, module: pl.LightningModule) -> dict[str, Any]:
        """Returns the arguments for one device: the sharded weights handle the other devices themselves."""
        return OneDevice().arguments(module)

    def context(self) -> contextlib.AbstractContextManager[None]:
        """Returns the context in which the fit runs."""
        return single_process()

    def callbacks(self) -> list[pl.Callback]:
        """Returns the callback that averages the gradients."""
        return [MeanGradients(self.size)]

    def shard_weights(self, module: nn.Module, kept: Collection[nn.Parameter]) -> None:
        """Splits the weights of each block over the processes, in place.

        Args:
            module: Module with adapters attached, the same in all processes.
            kept: Parameters that every process keeps in full.

        Raises:
            InputError: The model has no list of equal blocks.
        """
        mesh = init_device_mesh(next(module.parameters()).device.type, (self.size,))
        for name in blocks(module):
            block = module.get_submodule(name)
            fully_shard(block, mesh=mesh, ignored_params={p for p in block.parameters() if p in set(kept)})


class MeanGradients(pl.Callback):
    """Averages gradients over the processes, in one message, before other callbacks read them.

    Args:
        size: Number of processes.
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
    """Samples every size-th example of each batch, beginning with the one at position ``rank``.

    If a batch can't be dealt evenly, some processes get one example less, and their examples weigh more in the mean of
    the gradients. If a batch has fewer examples than processes, the last processes get its first example again.

    Args:
        batches: Lists of positions in the data set.
        rank: Rank of the process.
        size: Number of processes.

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
