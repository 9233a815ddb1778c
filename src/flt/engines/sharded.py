"""The sharded engine: it trains one job at a time, on the devices of all processes together."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Mapping
from typing import ClassVar

from flt.algorithm.recipe import Recipe
from flt.client.trainer import LocalTrainer
from flt.core.errors import InputError
from flt.data.clients import ClientSpec
from flt.engines.launcher import LaunchSettings
from flt.engines.process_group import ProcessGroup
from flt.engines.serial import SerialEngine
from flt.engines.sharded_placement import AllDevices, ShardedWeights
from flt.protocol.layout import TRAVELLING
from flt.server.accumulator import UpdateAccumulator
from flt.server.client_state_store import ClientStateStore


@dataclasses.dataclass
class ShardedSettings(LaunchSettings):
    """Settings of the sharded engine.

    Attributes:
        name: Always ``sharded``.
        strategy: ``ddp`` or ``fsdp``, see :class:`ShardedEngine`.
    """

    name: str = "sharded"

    strategies: ClassVar[tuple[str, ...]] = ("ddp", "fsdp")
    replicated: ClassVar[bool] = True


def check_strategy(strategy: str, recipe: Recipe) -> None:
    """Checks that a recipe can be used with a strategy.

    Raises:
        InputError: The strategy is ``fsdp``, and the recipe changes the frozen weights.
    """
    if strategy != "ddp" and recipe.changes_base:
        why = "the recipe changes the frozen weights, of which each process has a part"
        raise InputError.of("engine.strategy", strategy, "ddp", why)


class ShardedEngine(SerialEngine):
    """Trains one job after another. All processes train each job together, and afterwards all have the job's update.

    Args:
        local_trainer: Trains a job on the resident module. The engine sets the trainer's placement. With
            ``fsdp``, the engine also splits the module's weights over the processes.
        clients: Client id -> the client's description, with its data.
        processes: Group of the run's processes.
        nodes: Number of machines that the processes run on.
        strategy: ``ddp``: each process has the whole model. ``fsdp``: each process has a part of the frozen weights of
            every block.

    Raises:
        InputError: The strategy is ``fsdp``, and the recipe changes the frozen weights.
    """

    replicated: ClassVar[bool] = True

    def __init__(
        self,
        local_trainer: LocalTrainer,
        clients: Mapping[int, ClientSpec],
        processes: ProcessGroup,
        nodes: int,
        strategy: str = "ddp",
    ) -> None:
        super().__init__(local_trainer, clients)
        self.processes = processes
        processes.in_lockstep = True
        check_strategy(strategy, local_trainer.recipe)
        kind = AllDevices if strategy == "ddp" else ShardedWeights
        local_trainer.placement = placement = kind(processes.rank, processes.size, nodes)
        if isinstance(placement, ShardedWeights):
            placement.shard_weights(
                local_trainer.module,
                [local_trainer.parameters[name] for name in local_trainer.layout.names(TRAVELLING)],
            )
            local_trainer.parameters = dict(local_trainer.module.named_parameters())

    def exchange(self, accumulator: UpdateAccumulator, counts: Counter[str], states: ClientStateStore) -> None:
        """Waits until the first process has written the client states. All processes already have the same results."""
        self.processes.broadcast_from_first(str)
