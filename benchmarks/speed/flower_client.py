"""Flower's client, importable by its actors: the backbone is cached in the actor, only adapter and head travel."""

from __future__ import annotations

import functools
import os
from pathlib import Path

import flwr
import numpy as np
import torch
from benchmarks.speed import plain, workload
from flwr.common import Context

WORKLOAD = "FLT_BENCH_WORKLOAD"
"""Environment variable with the workload's folder: the actors are processes of their own."""
Arrays = list[np.ndarray]


@functools.cache
def cached() -> tuple[workload.Workload, torch.nn.Module, dict[str, torch.nn.Parameter]]:
    """The actor's workload and model: loaded once, and kept from client to client and from round to round."""
    torch.set_num_threads(1)
    given = workload.load(Path(os.environ[WORKLOAD]))
    return (given, *given.model())


class Client(flwr.client.NumPyClient):
    """Trains one client's adapter and head on the actor's backbone.

    Args:
        number: The client.
    """

    def __init__(self, number: int) -> None:
        self.number = number

    def fit(self, parameters: Arrays, config: dict[str, int]) -> tuple[Arrays, int, dict[str, float]]:
        """Puts the adapter in, trains it, takes it out."""
        given, model, trained = cached()
        plain.put(trained, dict(zip(trained, map(torch.from_numpy, parameters), strict=True)))
        plain.train(model, trained, given.data, given.order[config["round"], self.number], given.hyper)
        return [p.detach().numpy().copy() for p in trained.values()], given.size.examples, {}


def client(context: Context) -> flwr.client.Client:
    """The client of a simulated node."""
    return Client(int(context.node_config["partition-id"])).to_client()
