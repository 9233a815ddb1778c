"""Federations whose jobs have heads of different shapes."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor
from toys import toy_clients, toy_data

from flt.data.clients import ClientSpec


def toy_heads(widths: Mapping[str, int]) -> dict[str, dict[str, Tensor]]:
    """Head -> random values for the toy's head of so many classes."""
    generator = torch.Generator().manual_seed(5)
    return {
        head: {"head.weight": torch.randn(width, 10, generator=generator), "head.bias": torch.zeros(width)}
        for head, width in widths.items()
    }


def several(clients: int, widths: Sequence[int], names: Sequence[str]) -> dict[int, ClientSpec]:
    """Toy clients with one job per task; the last client lacks the first task."""
    made = {}
    sets = [toy_data(clients * 30, task=task, classes=width) for task, width in enumerate(widths)]
    for number, client in toy_clients(clients, jobs=len(widths)).items():
        data = tuple(
            dataclasses.replace(job, dataset=sets[task], head=names[task]) for task, job in enumerate(client.data)
        )
        made[number] = dataclasses.replace(client, data=data[1:] if number == clients - 1 and data[1:] else data)
    return made
