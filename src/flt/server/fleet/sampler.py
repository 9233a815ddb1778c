"""Sampling of a round's clients from those whose devices are available."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence

from flt.core.errors import InputError
from flt.server.client_sampling import FixedSize, Poisson
from flt.server.fleet.device import Device

_ROUNDING = 1e-9  # 1.1 x 10 is 11.000000000000002 in floating point, and means 11


@dataclasses.dataclass(frozen=True)
class AvailableClients:
    """Draws clients from those that are available in a round.

    Attributes:
        draw: Sampler that draws from the available clients.
        devices: Client -> its device.
        seed: Seed of the run, which decides who is available. A retry of a round finds the same clients available.
    """

    draw: FixedSize | Poisson
    devices: Mapping[int, Device]
    seed: int

    def __call__(self, clients: Sequence[int], seed: int, round: int) -> list[int]:
        """Returns the ids of the clients of a round, ascending.

        Args:
            clients: Ids of the clients to choose from.
            seed: Seed of the draw.
            round: Number of rounds finished before this one.
        """
        available = [client for client in clients if self.devices[client].is_available(client, self.seed, round)]
        return self.draw(available, seed, round)


def over_selected(sampler: FixedSize | Poisson, share: float, clients: int) -> FixedSize | Poisson:
    """Returns a sampler that draws more clients.

    Args:
        sampler: Sampler of the wanted clients.
        share: Further clients, as a share of the wanted ones. Their number is rounded up.
        clients: Number of clients in the federation, of which no more are drawn.

    Raises:
        InputError: There is no number of wanted clients.

    Example:
        >>> over_selected(FixedSize(10), 0.25, 100)
        FixedSize(size=13)
    """
    if not share:
        return sampler
    if not isinstance(sampler, FixedSize) or sampler.size is None:
        why = "without cohort.size, there is no number of clients to wait for"
        raise InputError.of("fleet.over_selection", share, "0, or a number with cohort.size", why)
    further = math.ceil(share * sampler.size - _ROUNDING)
    return FixedSize(min(sampler.size + further, clients))
