"""Federations whose received models are evaluated."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor
from torch.utils.data import Dataset
from toys import toy_clients, toy_data, toy_federator

from flt.algorithm.recipe import Recipe
from flt.callbacks.communication import Communication
from flt.callbacks.evaluate import Evaluate
from flt.callbacks.received_models import ReceivedModels
from flt.protocol.messages import Payload, Plan
from flt.protocol.state import ClientState
from flt.server.callback import FedCallback
from flt.server.federator import Federator

CENTRAL = toy_data(80, seed=7)


OTHER = toy_data(60, seed=8, task=1)


def private_b(round: int) -> Plan:
    return Plan(train=("A", "B", "head"), private=("B",))


class Sent(FedCallback):
    """Writes down, by round, what each job was sent and had, and the base, before any fit."""

    def __init__(self) -> None:
        self.rounds: list[list[tuple[Payload, ClientState]]] = []
        self.bases: list[dict[str, Tensor]] = []

    def on_round_start(self, federator: Federator) -> None:
        state, cohort = federator.state, federator.cohort
        initial = federator.server.base
        self.bases.append({name: state.base.value(name, initial) for name in initial})
        private = federator.client_states
        self.rounds.append(
            [(federator.server.broadcast(state, job, cohort), private.get(job.id, ClientState())) for job in cohort]
        )


def federated(
    recipe: Recipe,
    *,
    every: int = 1,
    test: dict[str, Dataset] | None = None,
    jobs: int = 1,
    measures: Sequence[str] = ("evaluate", "distributed"),
    **given: Any,
) -> Federator:
    given = {"rounds": 3, "cohort": 3, "lr": 0.05, "clients": toy_clients(4, jobs, [1, 2, 2, 4]), **given}
    federator = toy_federator(recipe, **given)
    tasks = {(c.id, index): data.task for c in federator.clients.values() for index, data in enumerate(c.data)}
    datasets: dict[str, Dataset] = {"task0": CENTRAL, "task1": OTHER} if jobs == 2 else {"task0": CENTRAL}
    evaluate = Evaluate(datasets, tasks, every, test)
    chosen: dict[str, FedCallback] = {"evaluate": evaluate, "distributed": ReceivedModels(evaluate)}
    federator.callbacks = [*(chosen[name] for name in measures), Communication(), Sent()]
    return federator


def counted(federator: Federator) -> Counter[int]:
    """Data set -> evaluations on it, by its identity."""
    counts: Counter[int] = Counter()
    evaluate = federator.engine.local_trainer.evaluate

    def count(dataset: Dataset, watch: Callable[[int, int], None] | None = None) -> dict[str, float]:
        counts[id(dataset)] += 1
        return evaluate(dataset, watch)

    federator.engine.local_trainer.evaluate = count  # type: ignore[method-assign]  # a stand-in
    return counts


def losses(federator: Federator, key: str = "distributed/val_loss") -> list[float | None]:
    return [metrics.get(key) for metrics in federator.history]
