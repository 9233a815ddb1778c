"""The simulated clock of a run: who arrives in time, how long rounds take, and the energy that they need."""

from __future__ import annotations

import dataclasses
import json
import logging
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar

from flt.client.fit_cost import FitCost
from flt.core import formatting
from flt.engines.process_group import StatusMessage
from flt.protocol.failure import Late
from flt.protocol.field_types import Finite
from flt.protocol.messages import Payload, Update, encode, encoded_size
from flt.server.callback import FedCallback
from flt.server.federator import Federator, Sent
from flt.server.fleet.clock import Clock
from flt.server.fleet.device import Device

_log = logging.getLogger(__name__)
HOUR = 3600.0
"""Seconds of an hour."""
_KINDS = ("down", "flops", "up")


@dataclasses.dataclass(frozen=True)
class Spent:
    """Time and energy of a round by the simulated clock.

    Attributes:
        seconds: Length of the round.
        slowest: Seconds that the slowest client of the cohort needs. A deadline may end the round before.
        quickest: Seconds after which the first update arrives. 0: there is none.
        late: Number of clients whose updates came after the end of the round.
        energy: Energy of all clients until the end of the round, in joules.
    """

    seconds: float
    slowest: float
    quickest: float
    late: int
    energy: float


class Fleet(FedCallback):
    """Simulates the devices of the clients. It is the federator's ``arrivals``, and logs what the simulated clock says.

    A client's time is that of its messages and of its fits, see :meth:`Device.seconds`. The bytes are those of the
    encoded messages, and the operations those of :class:`FitCost`. A client whose last update comes after the end of
    the round is late, and none of its updates is taken. ``comm/bytes_up`` leaves them out. A late client stops at the
    end of the round, and needs no further energy. The logged metrics:

        time/simulated_hours    length of all rounds until now, with failed attempts
        fleet/round_seconds     length of the round, with failed attempts
        fleet/slowest           seconds that the slowest client of the round needs
        fleet/late              number of clients that were too late
        fleet/energy            energy of all clients in all rounds until now, in joules

    Real time plays no part, so that all engines and any number of processes log the same.

    Args:
        devices: Client -> its device.
        cost: Cost of a fit.
        clock: Decides whose updates a round takes.
    """

    state_types: ClassVar = {"hours": Finite, "energy": Finite}

    def __init__(self, devices: Mapping[int, Device], cost: FitCost, clock: Clock) -> None:
        self.devices, self.cost, self.clock = devices, cost, clock
        self.hours = self.energy = 0.0
        self._federator: Federator | None = None
        self._attempt: Counter[str] = Counter()
        self._cohort: list[int] = []
        self._failed: list[Spent] = []

    def on_fit_start(self, federator: Federator) -> None:
        """Remembers the federator, whose counts and processes are needed when updates arrive."""
        self._federator = federator

    def on_round_start(self, federator: Federator) -> None:
        """Called for each attempt at a round; keeps the time of the attempt before, if that failed."""
        if federator.attempt:
            self._failed.append(self.spent(self._attempt, self._cohort, federator.state.rounds))
        else:
            self._failed = []
        self._attempt, self._cohort = federator.counts, sorted({job.client for job in federator.cohort})

    def on_job_start(self, federator: Federator, payload: Payload) -> None:
        """Counts the bytes that a client receives, and the operations of the fit that follows."""
        client, index = payload.job
        data = federator.clients[client].data[index]  # those of the round, which task_changes may have changed
        flops = self.cost.flops(payload.plan, data, payload.held, payload.kept)
        federator.counts[count_key("down", client)] += encoded_size(payload)
        federator.counts[count_key("flops", client)] += flops

    def __call__(self, sent: Iterator[Sent]) -> Iterator[Sent]:
        """Yields what arrives in time, and a :class:`Late` for each update that doesn't.

        If the server waits for a number of clients, all updates of this process are held until all are known. If it
        only has a deadline, each client's updates are passed on at once.
        """
        if self.clock.wanted is None:
            for messages in sent:
                self._count(messages)
                yield self._passed(messages, self.clock.is_in_time(self._seconds_of(messages)))
            return
        held = [messages for messages in sent if messages]
        for messages in held:
            self._count(messages)
        federator = self._attached
        taken = set(self.clock.in_time(self._times_everywhere(held), federator.state.rounds))
        yield from (self._passed(messages, _client(messages) in taken) for messages in held)

    def on_round_end(self, federator: Federator) -> None:
        """Logs what the round took by the simulated clock."""
        last = self.spent(federator.counts, self._cohort, federator.state.rounds - 1)
        seconds = sum(part.seconds for part in (*self._failed, last))
        self.hours += seconds / HOUR
        self.energy += sum(part.energy for part in (*self._failed, last))
        if last.late and not federator.updates and federator.engine.processes.is_first:
            quickest = formatting.short_duration(last.quickest)
            _log.warning("round %d has no update: all came after fleet.deadline=%s seconds, the first one after %s",
                         federator.round, self.clock.deadline, quickest)  # fmt: skip
        federator.log({"time/simulated_hours": self.hours, "fleet/round_seconds": seconds})
        federator.log({"fleet/slowest": last.slowest, "fleet/late": last.late, "fleet/energy": self.energy})

    def state_dict(self) -> dict[str, Any]:
        """Returns the simulated hours and the energy until now."""
        return {"hours": self.hours, "energy": self.energy}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores the simulated hours and the energy."""
        self.hours, self.energy = state["hours"], state["energy"]

    @property
    def _attached(self) -> Federator:
        assert self._federator is not None, "on_fit_start comes first"
        return self._federator

    def _count(self, messages: Sent) -> None:
        """Counts the bytes that a client sends. An update that arrives too late has been sent as well."""
        for update in messages:
            if isinstance(update, Update):
                self._attached.counts[count_key("up", update.job[0])] += encoded_size(update)

    def _passed(self, messages: Sent, in_time: bool) -> Sent:
        why = "its update came after the end of the round by the simulated clock"
        return [m if in_time or not isinstance(m, Update) else Late(m.job, why) for m in messages]

    def _seconds_of(self, messages: Sent) -> float:
        client = _client(messages)
        return 0.0 if client is None else self._times(self._attached.counts, [client])[client]

    def _times_everywhere(self, held: list[Sent]) -> dict[int, float]:
        """Returns client -> its time, for the clients of all processes that have sent an update."""
        mine = {client: self._seconds_of(messages) for messages in held if (client := _client(messages)) is not None}
        processes = self._attached.engine.processes
        found = processes.all_gather_checked(encode(StatusMessage(json.dumps(mine))))
        return {int(client): time for part in found for client, time in json.loads(part.text).items()}

    def _times(self, counts: Mapping[str, int], clients: Sequence[int]) -> dict[int, float]:
        def of(client: int) -> float:
            return self.devices[client].seconds(*(counts.get(count_key(kind, client), 0) for kind in _KINDS))

        return {client: of(client) for client in clients}

    def spent(self, counts: Mapping[str, int], cohort: Sequence[int], round: int) -> Spent:
        """Returns what an attempt at a round takes by the simulated clock.

        Args:
            counts: :func:`count_key` of each client -> bytes or operations. Those that are missing are 0.
            cohort: Clients of the round, ascending.
            round: Number of rounds finished before this one.
        """
        times = self._times(counts, cohort)
        sent = {client: time for client, time in times.items() if counts.get(count_key("up", client))}
        taken = self.clock.in_time(sent, round)
        seconds = self.clock.length(times, {client: times[client] for client in taken})
        energy = sum(self.devices[client].power * min(time, seconds) for client, time in times.items())
        slowest, quickest = max(times.values(), default=0.0), min(sent.values(), default=0.0)
        return Spent(seconds, slowest, quickest, len(sent) - len(taken), energy)


def _client(messages: Sent) -> int | None:
    """Returns the client that sent an update. None if there is no update."""
    return next((m.job[0] for m in messages if isinstance(m, Update)), None)


def count_key(kind: str, client: int) -> str:
    """Returns the name of a count: ``down`` and ``up`` are bytes of a client, and ``flops`` its operations."""
    return f"fleet/{kind}/{client}"
