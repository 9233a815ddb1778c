"""All that a run makes, for comparing runs bit by bit."""

from __future__ import annotations

import dataclasses
from typing import Any

from methods import clients_of

from flt.protocol.messages import encode
from flt.server.federator import Federator


def mixed(**given: Any) -> dict[str, Any]:
    """Four clients of different ranks with one job or two."""
    clients = clients_of(4, jobs=2, ranks=[1, 2, 3, 4])
    clients[1] = dataclasses.replace(clients[1], data=clients[1].data[:1])
    return {"clients": clients, "rounds": 2, "cohort": 3, "steps": 2, **given}


def everything(federator: Federator) -> list[bytes]:
    private = federator.client_states
    return [encode(federator.state), *(encode(private[job]) for job in sorted(private))]
