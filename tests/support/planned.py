"""A plan and the run that it is of."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from flt.protocol.messages import JobId, Payload, Update, encoded_size
from flt.run.assembly import assemble
from flt.run.federation import Federation
from flt.run.planning.dry_trainer import TYPICAL
from flt.run.planning.plan import _Planned
from flt.run.planning.traffic import Traffic
from flt.run.resume import configure
from flt.run.run import Run
from flt.run.schema import TrainConfig
from flt.run.workload import federation
from flt.server.callback import FedCallback
from flt.server.federator import Federator

TINY = ["rounds=3", "clients=3", "local.steps=1", "eval.examples=20", "eval.client_examples=4"]


class Sent(FedCallback):
    """The bytes of each message of a run, round by round, by job. Metrics have typical digits, as in a plan."""

    def __init__(self) -> None:
        self.down: list[dict[JobId, int]] = []
        self.up: list[dict[JobId, int]] = []

    def on_round_start(self, federator: Federator) -> None:
        self.down.append({})
        self.up.append({})

    def on_job_start(self, federator: Federator, payload: Payload) -> None:
        self.down[-1][payload.job] = encoded_size(payload)

    def on_update(self, federator: Federator, update: Update) -> None:
        typical = dataclasses.replace(update, metrics=dict.fromkeys(update.metrics, TYPICAL))
        self.up[-1][update.job] = encoded_size(typical)

    def of_client(self, client: int) -> tuple[int, int]:
        """The bytes that a client receives and sends in the whole run."""
        down, up = (sum(size for sizes in way for job, size in sizes.items() if job[0] == client)
                    for way in (self.down, self.up))  # fmt: skip
        return down, up


def settings(*overrides: str) -> TrainConfig:
    given = {override.partition("=")[0] for override in overrides}
    return configure([*(text for text in TINY if text.partition("=")[0] not in given), *overrides])


def run_of(cfg: TrainConfig) -> tuple[Sent, Sequence[dict[str, float]]]:
    """A real run: what was sent, and metrics.csv's rows."""
    sent = Sent()
    return sent, Run(cfg, federation(cfg), own=[sent], show=False)().history


def simulation(cfg: TrainConfig, workload: Federation | None = None) -> Traffic:
    """The dry run of a plan, before its first round."""
    workload = workload or federation(cfg)
    return _Planned(cfg, workload, assemble(cfg, workload), None)._traffic()
