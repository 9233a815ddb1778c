"""Flower's simulation as a contestant: two actors of one thread each, as its own engine for one machine runs them.

    .bench/flower/bin/python -m benchmarks.speed.flower WORKLOAD FOLDER

``start_simulation`` waits for its actors; the newer ``flwr run`` asks for replies at intervals, which costs time.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

os.environ |= {"FLWR_TELEMETRY_ENABLED": "0", "RAY_USAGE_STATS_ENABLED": "0", "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0"}

from benchmarks.speed.protocol import Line  # before what takes seconds to import

import torch  # isort: skip
from flwr.common import FitRes, Parameters, ndarrays_to_parameters, parameters_to_ndarrays  # isort: skip
from flwr.server import ServerConfig  # isort: skip
from flwr.server.strategy import FedAvg  # isort: skip
from flwr.simulation import start_simulation  # isort: skip

from benchmarks.speed import flower_client, workload  # isort: skip

ACTORS = 2
ENDLESS = 10**6
"""Rounds: the coordinator ends the run."""


class Gated(FedAvg):
    """FedAvg, whose rounds begin when the coordinator says so.

    Args:
        line: To the coordinator.
        names: Of the arrays.
        options: FedAvg's.
    """

    def __init__(self, line: Line, names: list[str], **options: Any) -> None:
        super().__init__(**options)
        self.line, self.names = line, names

    def configure_fit(self, server_round: int, parameters: Parameters, client_manager: Any) -> Any:
        """Waits for the coordinator."""
        if not self.line.begin():
            os._exit(0)
        return super().configure_fit(server_round, parameters, client_manager)

    def aggregate_fit(self, server_round: int, results: list[tuple[Any, FitRes]], failures: list[Any]) -> Any:
        """Says what the round took once it is aggregated."""
        if failures:
            raise RuntimeError(f"{len(failures)} clients failed: {failures[0]}")
        parameters, metrics = super().aggregate_fit(server_round, results, failures)
        arrays = parameters_to_ndarrays(parameters)
        tensors = [torch.from_numpy(array).float() for array in arrays]
        self.line.end(dict(zip(self.names, tensors, strict=True)))
        return parameters, metrics


def main(source: Path, folder: Path) -> None:
    """Runs rounds for as long as the coordinator asks for them."""
    line = Line(folder)
    os.environ[flower_client.WORKLOAD] = str(source)
    given = workload.load(source)
    names = sorted(given.start)
    strategy = Gated(
        line, names, fraction_fit=1.0, fraction_evaluate=0.0, min_fit_clients=given.size.cohort,
        min_available_clients=given.size.cohort,
        initial_parameters=ndarrays_to_parameters([given.start[name].numpy() for name in names]),
        on_fit_config_fn=lambda round: {"round": round - 1},
    )  # fmt: skip
    start_simulation(
        client_fn=flower_client.client, num_clients=given.size.cohort, strategy=strategy,
        config=ServerConfig(num_rounds=ENDLESS), client_resources={"num_cpus": 1, "num_gpus": 0.0},
        ray_init_args={"num_cpus": ACTORS, "include_dashboard": False, "_temp_dir": str(folder.resolve() / "ray")},
    )  # fmt: skip


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
