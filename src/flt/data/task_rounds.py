"""Restriction of a task's jobs to some rounds. This setting is our reconstruction."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

from flt.core.errors import InputError
from flt.data.clients import ClientSpec


def with_task_rounds(
    clients: Sequence[ClientSpec], task_rounds: Mapping[str, Sequence[int | None]]
) -> list[ClientSpec]:
    """Returns copies of the clients. Each job in the copies takes part only in the rounds of its task.

    Args:
        clients: Clients of the federation.
        task_rounds: Task -> first and last round of the task, counted from 1. If the last round is None, the task takes
            part until the end. Jobs of tasks that aren't listed keep their rounds.

    Raises:
        InputError: A task doesn't exist, or its rounds are invalid.
    """
    if not task_rounds:
        return list(clients)
    if any(job.parts for client in clients for job in client.data):
        why = "a job with several tasks takes part with all of them"
        raise InputError.of("task_rounds", dict(task_rounds), "null, or jobs=per_task", why)
    known = sorted({job.task for client in clients for job in client.data})
    for task, rounds in task_rounds.items():
        if task not in known:
            raise InputError.of("task_rounds", task, known, "there is no such task")
        _check(f"task_rounds.{task}", rounds)
    ranges = {task: (rounds[0] or 1, rounds[1]) for task, rounds in task_rounds.items()}
    return [
        dataclasses.replace(client, data=tuple(job.but(rounds=ranges.get(job.task, job.rounds)) for job in client.data))
        for client in clients
    ]


def _check(key: str, rounds: Sequence[int | None]) -> None:
    first, last = rounds if len(rounds) == 2 else (None, None)
    if first is None or first < 1 or (last is not None and last < first):
        raise InputError.of(key, list(rounds), "[first, last] with 1 <= first <= last, or null for the last")
