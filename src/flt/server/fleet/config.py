"""Settings of a fleet: the files of conf/fleet, and the devices that they give to the clients."""

from __future__ import annotations

import abc
import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from flt.core.errors import InputError
from flt.core.typed import typed
from flt.server.fleet.device import Device, check
from flt.server.fleet.trace import read_trace

NONE = "none"
"""Name of the choice without devices: nothing is simulated."""
_TIERS = 12  # makes these random numbers differ from all others that are drawn with the same seed


@dataclasses.dataclass
class FleetSettings(abc.ABC):
    """Settings that all fleets have.

    Attributes:
        name: Name of the choice.
        deadline: Seconds after which the server goes on without the clients whose updates haven't arrived. None: it
            waits for all.
        over_selection: Further clients that are drawn in each round, as a share of ``cohort.size``. The server then
            takes the first ``cohort.size`` clients whose updates arrive.

    Raises:
        InputError: A number is out of range.
    """

    name: str = NONE
    deadline: float | None = None
    over_selection: float = 0.0

    def __post_init__(self) -> None:
        if self.deadline is not None and not 0 < self.deadline < math.inf:
            raise InputError.of("fleet.deadline", self.deadline, "a finite number of seconds > 0, or null")
        if not 0 <= self.over_selection < math.inf:
            raise InputError.of("fleet.over_selection", self.over_selection, "a finite number >= 0")

    @abc.abstractmethod
    def devices(self, clients: Sequence[int], seed: int) -> dict[int, Device]:
        """Returns client -> its device.

        Args:
            clients: Ids of all clients.
            seed: Seed of the run.

        Raises:
            InputError: A client has no device.
        """


@dataclasses.dataclass
class Numbers:
    """Numbers of the devices of one kind. :class:`Device` explains them."""

    compute: float = 1e12
    down: float = 5e7
    up: float = 1e7
    memory: float | None = None
    power: float = 5.0
    availability: float = 1.0

    def device(self, kind: str = "") -> Device:
        """Returns a device with these numbers."""
        return Device(
            self.compute, self.down, self.up, self.memory, self.power, self.availability, kind=kind
        )  # fmt: skip


@dataclasses.dataclass
class Uniform(Numbers, FleetSettings):
    """All clients have the same device."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check(self.device(), "fleet")

    def devices(self, clients: Sequence[int], seed: int) -> dict[int, Device]:
        """Returns client -> its device, the same for all."""
        return dict.fromkeys(sorted(clients), self.device())


@dataclasses.dataclass
class Tier(Numbers):
    """A class of devices, and the share of the clients that have one.

    Attributes:
        share: Share of the clients, relative to the sum of all shares.
    """

    share: float = 1.0


@dataclasses.dataclass
class Tiers(FleetSettings):
    """Each client has a device of one of several classes.

    The numbers of clients are those of the shares, rounded by the largest remainder. Which client has which device is
    drawn from the seed.

    Attributes:
        tiers: Name of a class -> its numbers.
    """

    tiers: dict[str, Tier] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, tier in self.tiers.items():
            if not 0 <= tier.share < math.inf:
                raise InputError.of(f"fleet.tiers.{name}.share", tier.share, "a finite number >= 0")
            check(tier.device(), f"fleet.tiers.{name}")
        if not sum(tier.share for tier in self.tiers.values()):
            raise InputError.of("fleet.tiers", list(self.tiers), "classes of which one has a share above 0")

    def devices(self, clients: Sequence[int], seed: int) -> dict[int, Device]:
        """Returns client -> its device."""
        counts = _counts([tier.share for tier in self.tiers.values()], len(clients))
        kinds = [name for name, count in zip(self.tiers, counts, strict=True) for _ in range(count)]
        dealt = np.random.default_rng([seed, _TIERS]).permutation(len(clients))
        made = {name: tier.device(name) for name, tier in self.tiers.items()}
        return {client: made[kinds[place]] for client, place in zip(sorted(clients), dealt, strict=True)}


@dataclasses.dataclass
class Trace(FleetSettings):
    """The device of each client is a row of a csv file.

    Attributes:
        path: The file. :func:`read_trace` explains its columns.
    """

    path: str | None = None

    def devices(self, clients: Sequence[int], seed: int) -> dict[int, Device]:
        """Returns client -> its device."""
        if self.path is None:
            raise InputError.of("fleet.path", self.path, "a csv file with a row for each client")
        found = read_trace(self.path)
        if missing := sorted(set(clients) - set(found)):
            why = f"it has no row for client {missing[0]}"
            raise InputError.of("fleet.path", self.path, "a csv file with a row for each client", why)
        return {client: found[client] for client in sorted(clients)}


FLEETS: dict[str, type[FleetSettings]] = {"uniform": Uniform, "tiers": Tiers, "trace": Trace}
"""Name of a choice in conf/fleet, apart from ``none`` -> its settings."""


def fleet_settings(settings: dict[str, Any]) -> FleetSettings | None:
    """Returns the settings of the configured fleet. None without one.

    Raises:
        InputError: There is no fleet with the configured name, or its settings are wrong.
    """
    name = settings.get("name")
    if name == NONE:
        if further := sorted(set(settings) - {"name"}):
            raise InputError.of(f"fleet.{further[0]}", settings[further[0]], "a choice of fleet other than none")
        return None
    if name not in FLEETS:
        raise InputError.of("fleet", name, [NONE, *FLEETS])
    found: FleetSettings = typed(FLEETS[name], settings, "fleet")
    return found


def _counts(shares: Sequence[float], number: int) -> list[int]:
    """Divides a number by shares. What rounding down leaves goes to the largest remainders.

    Example:
        >>> _counts([0.5, 0.3, 0.2], 8)
        [4, 2, 2]
    """
    exact = [share / sum(shares) * number for share in shares]
    counts = [math.floor(part) for part in exact]
    by_remainder = sorted(range(len(shares)), key=lambda i: (counts[i] - exact[i], i))
    for i in by_remainder[: number - sum(counts)]:
        counts[i] += 1
    return counts
