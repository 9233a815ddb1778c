"""Clients that fail, and federations that go on without them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from toys import Toy

from flt.protocol.messages import Payload
from flt.server.callback import FedCallback
from flt.server.failure_policy import FailurePolicy
from flt.server.federator import Federator


class Breaks(FedCallback):
    """Lets the fits of some clients fail, the first so many times."""

    def __init__(self, clients: Sequence[int], how: Callable[[Toy], Any], times: int = 99) -> None:
        self.clients, self.how, self.times, self.left, self.client = clients, how, times, times, -1

    def on_fit_start(self, federator: Federator) -> None:
        module: Any = federator.engine.local_trainer.module
        step = module.training_step

        def training_step(batch: Any, batch_idx: int) -> Any:
            if self.client in self.clients and batch_idx == 1 and self.left:
                self.left -= 1
                self.how(module)
            return step(batch, batch_idx)

        module.training_step = training_step

    def on_job_start(self, federator: Federator, payload: Payload) -> None:
        self.client = payload.job[0]


def raises(module: Toy) -> None:
    raise RuntimeError("a text of a user's example")


def tolerant(federator: Federator, **settings: Any) -> Federator:
    federator.failure_policy = FailurePolicy(**settings)
    federator.engine.set_failure_policy(federator.failure_policy)
    return federator
