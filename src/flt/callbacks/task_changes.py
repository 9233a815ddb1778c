"""Jobs whose data change to another task, and the delay with which clusters follow the tasks."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np

from flt.data.clients import ClientSpec
from flt.protocol.field_types import Whole
from flt.protocol.messages import JobId
from flt.protocol.state import ServerState
from flt.server.callback import FedCallback
from flt.server.federator import Federator


class TaskChanges(FedCallback):
    """Gives jobs the data of the round (``task_changes``). Neither the server nor the method is told.

    The grouping ``oracle`` and the other callbacks read the true tasks, which this callback keeps up to date. It comes
    first in the list of callbacks.

    Args:
        clients: Clients of the federation, with the data of round 1.
        tasks: Job -> its task. This dict is changed when jobs change their task.
    """

    def __init__(self, clients: Mapping[int, ClientSpec], tasks: dict[JobId, str]) -> None:
        changing = (client for client in clients.values() if any(job.change for job in client.data))
        self.changing = {client.id: client for client in changing}
        self.tasks = tasks

    def on_fit_start(self, federator: Federator) -> None:
        """Brings the data to the last finished round, after a resume."""
        self._turn(federator, federator.state.rounds)

    def on_round_start(self, federator: Federator) -> None:
        """Brings the data to the round that begins."""
        self._turn(federator, federator.state.rounds + 1)

    def _turn(self, federator: Federator, round: int) -> None:
        if not self.changing:
            return
        assert isinstance(federator.clients, dict), "the engine reads the same dict"
        for number, client in self.changing.items():
            data = tuple(job.at(round) for job in client.data)
            federator.clients[number] = dataclasses.replace(client, data=data)
            self.tasks.update({(number, index): job.task for index, job in enumerate(data)})
        recipe = federator.server.recipe
        federator.server.recipe = dataclasses.replace(recipe, grouping=recipe.grouping.with_tasks(self.tasks))


class TaskDetection(FedCallback):
    """Measures how soon clusters follow tasks that come and jobs that change. It uses the true tasks, as evaluation.

    A task has a cluster of its own in a round if one cluster contains at least half of the task's jobs of the round and
    more than half of this cluster's jobs of the round are of the task.

    - ``cluster/opened``: number of clusters that were opened in the round. If a cluster loses all its jobs, the cluster
      that took over most of them isn't counted.
    - ``cluster/false_alarms``: number of clusters opened so far that weren't the first cluster of their own of a task.
    - ``cluster/missed``: number of tasks of the round without a cluster of their own.
    - ``cluster/delay``: rounds from the first round of a task to the first round in which the task has a cluster of its
      own, mean over the tasks that came after round 1. A task that has none yet counts the rounds so far, with this
      one.
    - ``cluster/change_delay``: rounds from the round in which a job changed its task to the first round after which the
      job is in the cluster of its new task, mean over these jobs. A job that has not got there counts likewise.

    Args:
        tasks: Job -> its task in the present round.
    """

    state_types: ClassVar = {
        "first": dict[str, Whole], "found": dict[str, Whole], "false_alarms": Whole,
        "changed": dict[JobId, Whole], "moved": dict[JobId, Whole], "last": dict[JobId, str],
    }  # fmt: skip

    def __init__(self, tasks: Mapping[JobId, str]) -> None:
        self.tasks = tasks
        self.first: dict[str, int] = {}
        """Task -> first round in which it had jobs."""
        self.found: dict[str, int] = {}
        """Task -> first round in which it had a cluster of its own."""
        self.changed: dict[JobId, int] = {}
        """Job -> round in which it changed its task."""
        self.moved: dict[JobId, int] = {}
        """Job -> first round after which it was in the cluster of its new task."""
        self.last: dict[JobId, str] = {}
        """Job -> its task when it last took part."""
        self.false_alarms = 0
        self._before: ServerState | None = None

    def on_round_start(self, federator: Federator) -> None:
        """Remembers the server's state before the round."""
        self._before = federator.state

    def on_round_end(self, federator: Federator) -> None:
        """Logs the metrics."""
        assert self._before is not None
        if not federator.server.recipe.grouping.several or not federator.updates:
            return
        round, after = federator.round, federator.state
        groups = {update.job: after.group_of(update.job) for update in federator.updates}
        present = {job: self.tasks[job] for job in groups}
        own = own_clusters(groups, present)
        for job, task in present.items():
            self.first.setdefault(task, round)
            if self.last.get(job, task) != task:
                self.changed[job] = round
        self.last.update(present)
        fresh = {own[task] for task in own if task not in self.found}
        for task in own:
            self.found.setdefault(task, round)
        for job in self.changed:
            if groups.get(job, -1) == own.get(self.tasks[job]):
                self.moved.setdefault(job, round)
        opened = opened_clusters(self._before, after)
        self.false_alarms += len(opened - fresh)
        came = {task: first for task, first in self.first.items() if first > 1}
        metrics: dict[str, float] = {
            "opened": len(opened),
            "false_alarms": self.false_alarms,
            "missed": len(set(present.values()) - set(own)),
        }
        metrics |= _delay("delay", came, self.found, round) | _delay("change_delay", self.changed, self.moved, round)
        federator.log({f"cluster/{key}": value for key, value in metrics.items()})

    def state_dict(self) -> dict[str, Any]:
        """Returns what the later delays depend on."""
        return {key: getattr(self, key) for key in self.state_types}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores it."""
        for key in self.state_types:
            setattr(self, key, state[key])


def own_clusters(groups: Mapping[JobId, int], tasks: Mapping[JobId, str]) -> dict[str, int]:
    """Returns task -> its own cluster, for the tasks that have one.

    Args:
        groups: Job of the round -> its group after the round.
        tasks: Job of the round -> its task.

    Example:
        >>> own_clusters({(0, 0): 1, (1, 0): 1, (2, 0): 2}, {(0, 0): "a", (1, 0): "a", (2, 0): "b"})
        {'a': 1, 'b': 2}
    """
    both, sizes = Counter((tasks[job], gid) for job, gid in groups.items()), Counter(groups.values())
    jobs = Counter(tasks.values())
    return {task: gid for (task, gid), n in sorted(both.items()) if 2 * n >= jobs[task] and 2 * n > sizes[gid]}


def opened_clusters(before: ServerState, after: ServerState) -> set[int]:
    """Returns the clusters that a round opened, without those that took over most jobs of a cluster that has ended."""
    old, new = ({gid: {job for job, at in state.assignment.items() if at == gid} for gid in state.assignment.values()}
                for state in (before, after))  # fmt: skip
    opened = set(new) - set(old) - {after.home}
    for gid in sorted(set(old) - set(new)):
        opened.discard(max(sorted(new), key=lambda other: len(new[other] & old[gid])))
    return opened


def _delay(key: str, since: Mapping[Any, int], until: Mapping[Any, int], round: int) -> dict[str, float]:
    delays = [until.get(each, round + 1) - first for each, first in since.items()]
    return {key: float(np.mean(delays))} if delays else {}
