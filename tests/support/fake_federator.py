"""A federator whose rounds are made up, of the real states and messages: what monitoring callbacks read."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch

from flt.data.clients import ClientSpec, JobData
from flt.engines.process_group import ProcessGroup
from flt.protocol.entries import Layer
from flt.protocol.layout import Layout
from flt.protocol.messages import JobId, Payload, Plan, Update
from flt.protocol.state import GroupState, ServerState
from flt.server.callback import FedCallback

RANK = 4


def layout_of(ranks: Sequence[int]) -> Layout:
    names = [f"model.layer.{i}.query" for i in range(len(ranks))]
    return Layout({}, {name: Layer(rank, 1.0, "", "", "") for name, rank in zip(names, ranks, strict=True)})


def state_of(layout: Layout, rounds: int = 0, groups: int = 1, assignment: Mapping[JobId, int] = {}) -> ServerState:
    scores = {name: torch.arange(1, layer.rank + 1, dtype=torch.float64) for name, layer in layout.layers.items()}
    return ServerState(
        rounds, {gid: GroupState({}, scores) for gid in range(groups)}, layout.all_components(), dict(assignment)
    )


def clients_of(count: int, labels: int = 3, tasks: Sequence[str] = ("",)) -> dict[int, ClientSpec]:
    def share(task: str) -> JobData:
        counts = tuple(range(1, labels + 1))
        return JobData([], np.arange(max(1, sum(counts))), np.arange(2), task, counts)  # type: ignore[arg-type]  # never read

    return {client: ClientSpec(client, tuple(share(task) for task in tasks)) for client in range(count)}


def update_of(job: JobId, round: int, layout: Layout, metrics: Mapping[str, float]) -> Update:
    return Update(job, round, {}, layout.all_components(), 0, 10, 5, metrics=dict(metrics))


def metrics_of(job: JobId, round: int) -> dict[str, float]:
    accuracy = 0.5 + 0.01 * round + 0.001 * job[0]
    return {"distributed/val_acc": accuracy, "distributed/val_loss": 1 - accuracy, "fit/train_loss": 2.0 / round}


class FakeFederator(SimpleNamespace):
    """Calls the hooks in the order of the real one; the rounds' figures come from ``metrics_of`` and ``figures``."""

    attempt = 0
    engine: Any = SimpleNamespace(processes=ProcessGroup())

    @property
    def round(self) -> int:
        return int(self.metrics["round"]) if self.metrics else self.state.rounds

    def log(self, metrics: Mapping[str, float]) -> None:
        self.metrics.update(metrics)

    def call(self, hook: str, *args: Any) -> None:
        for callback in self.callbacks:
            getattr(callback, hook)(self, *args)

    def fit(self, until: int | None = None) -> None:
        self.call("on_fit_start")
        for _ in range(self.state.rounds, self.rounds if until is None else until):
            self.run_round()
        if until is None:
            self.call("on_fit_end")

    def run_round(self) -> None:
        number = self.state.rounds + 1
        self.metrics, self.updates = {"round": number}, []
        self.call("on_round_start")
        for job in self.cohort:
            self.call("on_job_start", Payload(job.id, number - 1, Plan(), {}, {}, {}))
            update = update_of(job.id, number - 1, self.server.layout, self.measure(job.id, number))
            self.call("on_job_end", update)
            self.updates.append(update)
        self.state = dataclasses.replace(self.state, rounds=number)
        self.log(self.figures(number))
        self.call("on_round_end")
        self.history.append(self.metrics)
        self.call("on_log", self.metrics)


def figures(round: int) -> dict[str, float]:
    return {
        "round/val_acc": 0.5 + 0.01 * round,
        "round/val_loss": 1.0 / round,
        "clients/val_acc": 0.6,
        "clients/val_acc_worst10": 0.4,
        "clients/fit_train_loss": 2.0 / round,
        "comm/bytes_up": 120_300,
        "comm/bytes_down": 240_600,
        "comm/total_up": 120_300 * round,
        "comm/total_down": 240_600 * round,
        "time/round_seconds": 4.1,
    }


def federator_of(callbacks: Sequence[FedCallback], rounds: int = 3, clients: int = 12, **changes: Any) -> FakeFederator:
    layout = changes.pop("layout", layout_of([RANK, RANK]))
    specs = changes.pop("clients_", clients_of(clients))
    parts = {
        "callbacks": callbacks,
        "rounds": rounds,
        "clients": specs,
        "server": SimpleNamespace(layout=layout),
        "state": state_of(layout),
        "cohort": [job for spec in specs.values() for job in spec.jobs(RANK)],
        "history": [],
        "updates": [],
        "share": changes.get("cohort", [job for spec in specs.values() for job in spec.jobs(RANK)]),
        "metrics": {},
        "figures": figures,
        "measure": metrics_of,
    }
    return FakeFederator(**(parts | changes))
