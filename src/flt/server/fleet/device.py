"""The device of a client."""

from __future__ import annotations

import dataclasses
import math

import numpy as np

from flt.core.errors import InputError

_AVAILABLE = 11  # makes these random numbers differ from all others that are drawn with the same seed


@dataclasses.dataclass(frozen=True)
class Device:
    """The device on which a client trains, as the simulated clock sees it.

    Attributes:
        compute: Floating-point operations per second that training reaches, in FLOP/s.
        down: Rate at which the device receives, in bit/s.
        up: Rate at which the device sends, in bit/s.
        memory: Memory for training, in bytes. None: there is no limit.
        power: Power that the device takes while it receives, computes or sends, in watts.
        availability: Share of the rounds, in (0, 1], in which the client can be drawn. Each round is drawn at random.
        rounds: Whether the client can be drawn in each round, repeated from the start after the last entry. Empty:
            ``availability`` alone decides.
        kind: Name of the tier that the device belongs to. Empty outside of ``fleet=tiers``.

    Raises:
        InputError: A number is out of range.
    """

    compute: float
    down: float
    up: float
    memory: float | None = None
    power: float = 0.0
    availability: float = 1.0
    rounds: tuple[bool, ...] = ()
    kind: str = ""

    def is_available(self, client: int, seed: int, round: int) -> bool:
        """Returns whether the client can be drawn in a round.

        Args:
            client: Id of the client.
            seed: Seed of the run.
            round: Number of rounds finished before this one.
        """
        if self.rounds and not self.rounds[round % len(self.rounds)]:
            return False
        if self.availability >= 1:
            return True
        return bool(np.random.default_rng([seed, _AVAILABLE, client, round]).random() < self.availability)

    @property
    def may_be_absent(self) -> bool:
        """True if there are rounds in which the client can't be drawn."""
        return self.availability < 1 or not all(self.rounds)

    def seconds(self, down: int, flops: int, up: int) -> float:
        """Returns the simulated time of a client's work in a round. Its jobs follow each other.

            8 down / (down rate) + flops / compute + 8 up / (up rate)

        Args:
            down: Bytes that the client receives.
            flops: Floating-point operations of its fits.
            up: Bytes that the client sends.

        Example:
            >>> Device(compute=1e9, down=8e6, up=4e6).seconds(2_000_000, 3_000_000_000, 1_000_000)
            7.0
        """
        return 8 * down / self.down + flops / self.compute + 8 * up / self.up


def check(device: Device, where: str) -> None:
    """Checks the numbers of a device.

    Args:
        device: The device.
        where: Key, or row of a file, that the numbers come from. An error begins with it.

    Raises:
        InputError: A number is out of range.
    """
    for key in ("compute", "down", "up"):
        if not 0 < getattr(device, key) < math.inf:
            raise InputError.of(f"{where}.{key}", getattr(device, key), "a finite number > 0")
    if device.memory is not None and not 0 < device.memory < math.inf:
        raise InputError.of(f"{where}.memory", device.memory, "a finite number of bytes > 0, or null")
    if not 0 <= device.power < math.inf:
        raise InputError.of(f"{where}.power", device.power, "a finite number of watts >= 0")
    if not 0 < device.availability <= 1:
        raise InputError.of(f"{where}.availability", device.availability, "a number in (0, 1]")
