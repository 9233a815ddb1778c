"""The sharded engine: one client at a time, each fit on the devices of all processes by a strategy of its Trainer."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Mapping
from typing import ClassVar

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
    """How the fit of each client is split.

    Attributes:
        name: Always ``sharded``.
        strategy: ``ddp``, or ``fsdp``.
    """

    name: str = "sharded"

    strategies: ClassVar[tuple[str, ...]] = ("ddp", "fsdp")


class ShardedEngine(SerialEngine):
    """Trains jobs one after another, every one of them in all processes together, which have the same after it.

    Args:
        local_trainer: The resident module; its fits go where the engine says.
        clients: Client id -> its data.
        processes: Those of the run.
        nodes: Machines that they are on.
        strategy: ``ddp``: each process has the whole model; ``fsdp``: a part of the frozen weights of each block.

    Raises:
        InputError: The recipe changes frozen weights, which ``fsdp`` has split.
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
        kind = AllDevices if strategy == "ddp" else ShardedWeights
        local_trainer.place = place = kind(processes.rank, processes.size, nodes)
        if isinstance(place, ShardedWeights):
            if local_trainer.recipe.changes_base:
                why = "the recipe changes the frozen weights, of which each process has a part"
                raise InputError.of("engine.strategy", strategy, "ddp", why)
            place.shard(
                local_trainer.module,
                [local_trainer.parameters[name] for name in local_trainer.layout.names(TRAVELLING)],
            )
            local_trainer.parameters = dict(local_trainer.module.named_parameters())

    def exchange(self, accumulator: UpdateAccumulator, counts: Counter[str], states: ClientStateStore) -> None:
        """Waits until the first process has written the private states, which all have alike."""
        self.processes.first(str)
