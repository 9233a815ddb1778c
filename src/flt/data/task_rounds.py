"""Tasks that come, go and change during a run. These settings are ours."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

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
        InputError: A task doesn't exist, its rounds are invalid, or jobs have several tasks.
    """
    if not task_rounds:
        return list(clients)
    known = _known("task_rounds", task_rounds, clients)
    for task, rounds in task_rounds.items():
        if task not in known:
            raise InputError.of("task_rounds", task, known, "there is no such task")
        _check(f"task_rounds.{task}", rounds)
    ranges = {task: (rounds[0] or 1, rounds[1]) for task, rounds in task_rounds.items()}
    return [
        dataclasses.replace(client, data=tuple(job.but(rounds=ranges.get(job.task, job.rounds)) for job in client.data))
        for client in clients
    ]


def with_task_changes(clients: Sequence[ClientSpec], task_changes: Mapping[str, Sequence[Any]]) -> list[ClientSpec]:
    """Returns copies of the clients in which jobs change their task during the run. The server isn't told.

    A client that has jobs of both tasks keeps the job of the first task. From the given round on, this job has the data
    of the second task. Until then these data aren't used. Other clients aren't changed.

    Args:
        clients: Clients of the federation.
        task_changes: Task -> [the task that follows it, the first round of the following task, counted from 1].

    Raises:
        InputError: A task doesn't exist, the round is invalid, jobs have several tasks, no client has both tasks, or
            the tasks have different heads. The server sees the shapes of heads, so that a change of heads would not be
            hidden.
    """
    if not task_changes:
        return list(clients)
    known = _known("task_changes", task_changes, clients)
    for task, change in task_changes.items():
        _check_change(task, change, known)
        clients = [_changed(client, task, *change) for client in clients]
        if not any(job.change and job.task == task for client in clients for job in client.data):
            raise InputError.of("task_changes", f"{task}: {list(change)}", "two tasks that a client has together")
    return list(clients)


def _known(key: str, given: Mapping[str, Any], clients: Sequence[ClientSpec]) -> list[str]:
    """Returns the tasks of the clients. Each job must have one, so that it can come, go or change with it."""
    if any(job.parts for client in clients for job in client.data):
        why = "a job with several tasks takes part with all of them"
        raise InputError.of(key, dict(given), "null, or jobs=per_task", why)
    return sorted({job.task for client in clients for job in client.data})


def _changed(client: ClientSpec, task: str, following: str, round: int) -> ClientSpec:
    jobs = {job.task: job for job in client.data if job.change is None}
    if task not in jobs or following not in jobs:
        return client
    old, new = jobs[task], jobs[following]
    if old.head != new.head:
        why = "the tasks have different heads, which the server can see"
        raise InputError.of(
            "task_changes", f"{task}: [{following}, {round}]", "tasks with one head (heads=shared)", why
        )
    kept = (old.but(change=(round, new)) if job is old else job for job in client.data if job is not new)
    return dataclasses.replace(client, data=tuple(kept))


def _check_change(task: str, change: Sequence[Any], known: Sequence[str]) -> None:
    following, round = change if len(change) == 2 else (None, None)
    for name in (task, following):
        if name not in known:
            raise InputError.of(
                f"task_changes.{task}", list(change), f"[task, round] with a task of {', '.join(known)}"
            )
    if following == task or not isinstance(round, int) or isinstance(round, bool) or round < 2:
        raise InputError.of(f"task_changes.{task}", list(change), "[another task, round] with an integer round >= 2")


def _check(key: str, rounds: Sequence[int | None]) -> None:
    first, last = rounds if len(rounds) == 2 else (None, None)
    if first is None or first < 1 or (last is not None and last < first):
        raise InputError.of(key, list(rounds), "[first, last] with 1 <= first <= last, or null for the last")
