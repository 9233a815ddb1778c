"""The plan of a run: all that is known of its costs before it starts."""

from __future__ import annotations

import dataclasses
from typing import Any

from flt.core import formatting
from flt.run.planning.sizes import Size
from flt.run.planning.traffic import RoundTraffic


@dataclasses.dataclass(frozen=True)
class RoleParameters:
    """Parameters of one role.

    Attributes:
        count: Number of parameters.
        trained: Number of those that are trained in some round.
        sent: Number of those that clients send in some round.
    """

    count: int
    trained: int
    sent: int


@dataclasses.dataclass(frozen=True)
class ClientPlan:
    """Costs of one client.

    Attributes:
        client: Number of the client.
        rank: Components per layer that the client can train. None without LoRA.
        jobs: Number of its jobs.
        examples: Number of its training examples.
        steps: Optimiser steps of all of its jobs in one round, in the first stage of the plan.
        fits: Number of fits in the whole run.
        bytes_down: Bytes that it receives in the whole run.
        bytes_up: Bytes that it sends in the whole run.
    """

    client: int
    rank: int | None
    jobs: int
    examples: int
    steps: int
    fits: int
    bytes_down: int
    bytes_up: int


@dataclasses.dataclass(frozen=True)
class RunPlan:
    """Costs of a run, before it starts.

    Attributes:
        title: Recipe, data and model, as one line.
        refused: Reasons for which the run would be refused, as it would say them. If there are any, nothing else is
            filled in.
        warnings: What may be unwanted, such as a number of fits that takes days.
        notes: How exact the numbers are.
        parameters: Role (``adapter``, ``head``, ``base``) -> its parameters.
        rounds: Messages of each round.
        clients: Costs of each client.
        memory: What takes memory in the process that trains -> bytes, and ``peak``, their sum.
        disk: What is written -> bytes.
        seconds: Times from a trial: ``step``, ``fit`` (besides its steps), ``evaluation``, ``server``, ``round`` and
            ``run``. Empty without a trial.
    """

    title: str
    refused: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    parameters: dict[str, RoleParameters] = dataclasses.field(default_factory=dict)
    rounds: tuple[RoundTraffic, ...] = ()
    clients: tuple[ClientPlan, ...] = ()
    memory: dict[str, int] = dataclasses.field(default_factory=dict)
    disk: dict[str, int] = dataclasses.field(default_factory=dict)
    seconds: dict[str, float] = dataclasses.field(default_factory=dict)

    @property
    def bytes_down(self) -> Size:
        """Bytes from the server to the clients in all rounds."""
        return sum((one.down for one in self.rounds), Size())

    @property
    def bytes_up(self) -> Size:
        """Bytes from the clients to the server in all rounds."""
        return sum((one.up for one in self.rounds), Size())

    @property
    def model_size(self) -> int:
        """Parameters of the base and the head. The adapter isn't counted, as in ``comm/reduction``."""
        return sum(self.parameters[role].count for role in ("base", "head") if role in self.parameters)

    @property
    def trained(self) -> int:
        """Parameters that are trained in some round."""
        return sum(role.trained for role in self.parameters.values())

    def as_dict(self) -> dict[str, Any]:
        """Returns the plan as values that JSON has, with the totals over all rounds."""
        if self.refused:
            return {"title": self.title, "refused": list(self.refused)}
        found = dataclasses.asdict(self)
        found["rounds"] = [{**dataclasses.asdict(one), "plan": _plan(one)} for one in self.rounds]
        totals = {"bytes_down": dataclasses.asdict(self.bytes_down), "bytes_up": dataclasses.asdict(self.bytes_up)}
        return {**found, **totals, "fits": sum(one.jobs for one in self.rounds), "trained": self.trained}

    def __repr__(self) -> str:
        """Returns one line with the main costs, or with the reasons for which the run would be refused."""
        if self.refused:
            return f"RunPlan({self.title}: refused, {'; '.join(self.refused)})"
        down, up = (formatting.size(way.bytes) for way in (self.bytes_down, self.bytes_up))
        time = f", {formatting.duration(self.seconds['run'])}" if self.seconds else ""
        return (
            f"RunPlan({self.title}: {len(self.rounds)} rounds, {len(self.clients)} clients, "
            f"{self.trained:,} trained parameters, {down} down, {up} up, "
            f"{formatting.size(self.memory['peak'])} of memory{time})"
        )


def _plan(one: RoundTraffic) -> dict[str, Any]:
    return {"stage": one.plan.stage, "train": list(one.plan.train), "private": list(one.plan.private)}
