"""Placements for the sharded engine: they spread one fit over the devices of all processes."""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Iterator
from typing import Any

import lightning.pytorch as pl
import torch
import torch.distributed as dist
from lightning.pytorch.strategies import DDPStrategy
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.utils.data import DataLoader, Sampler

from flt.client.placement import OneDevice
from flt.core.quiet import single_process
from flt.models.blocks import blocks


class ResidentDDP(DDPStrategy):
    """DDP strategy that broadcasts no weights before a fit, and leaves the module on its device after the fit."""

    def __init__(self) -> None:
        super().__init__(find_unused_parameters=True, init_sync=False)  # each process has installed the same payload

    def teardown(self) -> None:
        """Unwraps the module from torch's DDP and leaves it on its device; called when a fit ends."""
        self.model, self.optimizers = self.lightning_module, []
        self.precision_plugin.teardown()
        self.checkpoint_io.teardown()


class AllDevices(OneDevice):
    """Placement in which each process trains on its part of every batch, and DDP averages the gradients.

    Args:
        rank: Rank of this process.
        size: Number of processes.
        nodes: Number of machines that the processes run on.
    """

    def __init__(self, rank: int, size: int, nodes: int) -> None:
        self.rank, self.size, self.nodes, self.parts = rank, size, nodes, size

    def arguments(self, module: pl.LightningModule) -> dict[str, Any]:
        """Returns the Trainer's arguments for this placement."""
        devices = self.size // self.nodes
        return {
            "strategy": ResidentDDP(), "devices": devices, "num_nodes": self.nodes, "use_distributed_sampler": False,
        }  # fmt: skip

    def context(self) -> contextlib.AbstractContextManager[None]:
        """Returns a context without effect, because the fit has to communicate with the other processes."""
        return contextlib.nullcontext()

    def agreed(self, buffers: dict[str, Tensor]) -> dict[str, Tensor]:
        """Returns the first process's buffers, as torch's DDP uses them. Each process has seen its part of the data."""
        described: list[Any] = [[(name, tuple(value.shape), value.dtype) for name, value in sorted(buffers.items())]]
        dist.broadcast_object_list(described, src=0)  # the others may have changed other buffers
        device, agreed = "cuda" if dist.get_backend() == "nccl" else "cpu", {}
        for name, shape, dtype in described[0]:
            value = buffers[name].to(device) if self.rank == 0 else torch.empty(shape, dtype=dtype, device=device)
            dist.broadcast(value, src=0)
            agreed[name] = value.cpu()
        return agreed

    def shard(self, loader: DataLoader) -> DataLoader:
        """Returns a loader that yields only this process's part of each batch."""
        parts = Parts(loader.batch_sampler, self.rank, self.size)  # type: ignore[arg-type]  # an iterable of lists
        return DataLoader(loader.dataset, batch_sampler=parts, collate_fn=loader.collate_fn)


class ShardedWeights(AllDevices):
    """Placement in which each process trains on its part of every batch, and stores a part of the frozen weights.

    PyTorch's FSDP2 gathers the whole weights of a block before the block computes, and frees them afterwards. Every
    process has all adapters and the head, since these are small. The gradients of adapters and head are averaged over
    the processes before each optimiser step. An evaluation needs all processes too, because no process has all weights.
    """

    needs_all_processes = True

    def arguments(self, module: pl.LightningModule) -> dict[str, Any]:
        """Returns the Trainer's arguments for one device. FSDP2 communicates with the other devices by itself."""
        return OneDevice().arguments(module)

    def context(self) -> contextlib.AbstractContextManager[None]:
        """Returns a context in which Lightning behaves as if this process were the only one."""
        return single_process()

    def callbacks(self) -> list[pl.Callback]:
        """Returns the callback that averages the gradients."""
        return [MeanGradients(self.size)]

    def shard_weights(self, module: nn.Module, kept: Collection[nn.Parameter]) -> None:
        """Splits the weights of each block over the processes, in place.

        Args:
            module: Module with adapters attached, the same in all processes.
            kept: Parameters that aren't split. Every process keeps them whole.

        Raises:
            InputError: The model has no list of blocks that all have the same class.
        """
        mesh = init_device_mesh(next(module.parameters()).device.type, (self.size,))
        for name in blocks(module):
            block = module.get_submodule(name)
            fully_shard(block, mesh=mesh, ignored_params={p for p in block.parameters() if p in set(kept)})


class MeanGradients(pl.Callback):
    """Averages the gradients over the processes, before other callbacks read them.

    All gradients are sent as one tensor.

    Args:
        size: Number of processes.
    """

    def __init__(self, size: int) -> None:
        self.size = size

    def on_before_optimizer_step(self, trainer: pl.Trainer, pl_module: pl.LightningModule, optimizer: Any) -> None:
        """Replaces each gradient by its mean over the processes; called before each optimiser step."""
        # FSDP2 has averaged the gradients of split weights, which only a module that thaws its backbone has.
        gradients = [p.grad for p in pl_module.parameters() if p.grad is not None and not isinstance(p.grad, DTensor)]
        flat = torch.cat([gradient.reshape(-1) for gradient in gradients])
        dist.all_reduce(flat)
        flat /= self.size
        for gradient, mean in zip(gradients, flat.split([g.numel() for g in gradients]), strict=True):
            gradient.copy_(mean.view_as(gradient))


class Parts(Sampler[list[int]]):
    """Sampler that yields one process's part of each batch.

    The part contains the examples at the positions rank, rank + size, rank + 2 · size, ... of the batch. If the size of
    a batch isn't a multiple of the number of processes, some processes get one example less. The examples of these
    processes then have a larger weight in the mean of the gradients. If a batch has fewer examples than there are
    processes, each process without an example gets the first example of the batch.

    Args:
        batches: Sampler of batches. Each batch is a list of positions in the data set.
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
