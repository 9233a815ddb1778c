"""Who gets which device, and what of a fleet's settings is refused."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from flt.core.errors import InputError
from flt.run.compose import load_choice
from flt.run.conf_groups import choices
from flt.server.client_sampling import FixedSize
from flt.server.fleet.config import FLEETS, NONE, fleet_settings
from flt.server.fleet.device import Device
from flt.server.fleet.sampler import AvailableClients

CSV = """client,compute,down,up,memory,power,availability,rounds
0,1e9,1e6,2e6,4e9,3,0.5,110
2,2e9,1e6,2e6,,,,
1,3e9,1e6,2e6,,,,
"""


def settings(name: str, **changes: Any) -> Any:
    return fleet_settings({**load_choice("fleet", name), **changes})


def test_every_file_of_the_group_has_a_class() -> None:
    assert choices("fleet") == sorted([NONE, *FLEETS])
    assert settings("none") is None


def test_clients_of_a_uniform_fleet_have_the_same_device() -> None:
    devices = settings("uniform", compute=2e9, memory=1e9).devices([3, 1], seed=0)
    assert devices == dict.fromkeys([1, 3], Device(2e9, 5e7, 1e7, 1e9, 5.0))


def test_tiers_have_their_shares_and_are_drawn_from_the_seed() -> None:
    tiers = {name: {"share": share, "compute": 1e9} for name, share in (("a", 1), ("b", 2), ("c", 1))}
    fleet = settings("tiers", tiers=tiers)
    kinds = [[device.kind for device in fleet.devices(range(8), seed).values()] for seed in (0, 0, 1)]
    assert kinds[0] == kinds[1] != kinds[2]
    assert Counter(kinds[0]) == {"a": 2, "b": 4, "c": 2}
    assert Counter(device.kind for device in fleet.devices(range(3), 0).values()) == {"b": 1, "a": 1, "c": 1}


def test_a_trace_gives_each_client_the_numbers_of_its_row(tmp_path: Path) -> None:
    file = tmp_path / "devices.csv"
    file.write_text(CSV)
    devices = settings("trace", path=str(file)).devices([0, 1, 2], seed=0)
    assert devices[1] == Device(3e9, 1e6, 2e6)
    assert devices[0] == Device(1e9, 1e6, 2e6, 4e9, 3.0, 0.5, (True, True, False))


def test_a_client_is_there_in_its_rounds_and_in_the_given_share_of_them() -> None:
    listed = Device(1, 1, 1, rounds=(True, False, True))
    assert [listed.is_available(0, 0, round) for round in range(6)] == [True, False, True] * 2
    often = Device(1, 1, 1, availability=0.25)
    there = [often.is_available(client, 7, round) for client in range(40) for round in range(50)]
    assert sum(there) / len(there) == pytest.approx(0.25, abs=0.03)
    assert there == [often.is_available(client, 7, round) for client in range(40) for round in range(50)]


def test_absent_clients_are_not_drawn() -> None:
    devices = {client: Device(1, 1, 1, rounds=(client % 2 == 0, True)) for client in range(6)}
    sampler = AvailableClients(FixedSize(3), devices, seed=0)
    assert sampler(range(6), 0, 0) == [0, 2, 4]
    assert sampler(range(6), 5, 1) == FixedSize(3)(range(6), 5, 1)
    nobody = AvailableClients(FixedSize(3), {0: Device(1, 1, 1, rounds=(False, True))}, seed=0)
    assert nobody([0], 0, 0) == []


BAD_SETTINGS = {
    "no such fleet": ({"name": "cars"}, "fleet=cars"),
    "a key of another fleet": ({"name": "none", "deadline": 3}, "fleet.deadline=3"),
    "compute of nothing": ({"name": "uniform", "compute": 0.0}, "fleet.compute=0.0"),
    "infinite compute": ({"name": "uniform", "compute": float("inf")}, "fleet.compute=inf"),
    "a negative rate": ({"name": "uniform", "up": -1.0}, "fleet.up=-1.0"),
    "no memory": ({"name": "uniform", "memory": 0.0}, "fleet.memory=0.0"),
    "power below zero": ({"name": "uniform", "power": -1.0}, "fleet.power=-1.0"),
    "never there": ({"name": "uniform", "availability": 0.0}, "fleet.availability=0.0"),
    "there too often": ({"name": "uniform", "availability": 1.5}, "fleet.availability=1.5"),
    "a deadline at the start": ({"name": "uniform", "deadline": 0.0}, "fleet.deadline=0.0"),
    "over-selection without end": ({"name": "uniform", "over_selection": float("inf")}, "allowed is a finite number"),
    "fewer clients than wanted": ({"name": "uniform", "over_selection": -0.5}, "fleet.over_selection=-0.5"),
    "no tiers": ({"name": "tiers", "tiers": {}}, "fleet.tiers"),
    "a key that a tier lacks": (
        {"name": "tiers", "tiers": {"a": {"shar": 1}}},
        "allowed is compute, down, up, memory, power, availability, share",
    ),
    "tiers of nobody": ({"name": "tiers", "tiers": {"a": {"share": 0.0}}}, "fleet.tiers"),
    "a share below zero": ({"name": "tiers", "tiers": {"a": {"share": -1.0}}}, "fleet.tiers.a.share=-1.0"),
    "a tier without speed": ({"name": "tiers", "tiers": {"a": {"compute": 0.0}}}, "fleet.tiers.a.compute=0.0"),
    "a tier with another key": ({"name": "tiers", "tiers": {"a": {"speed": 1.0}}}, "speed"),
    "no settings of a class": (
        {"name": "tiers", "tiers": {"a": 3}},
        "fleet.tiers.a=3: allowed is the keys compute, down",
    ),
    "text in a class": (
        {"name": "tiers", "tiers": {"a": {"compute": "fast"}}},
        "fleet.tiers.a.compute=fast: allowed is a number",
    ),
    "text for a number": ({"name": "uniform", "compute": "fast"}, "fleet.compute=fast"),
}


@pytest.mark.parametrize(("given", "expected"), BAD_SETTINGS.values(), ids=BAD_SETTINGS)
def test_wrong_settings_are_refused_in_one_line(given: dict[str, Any], expected: str) -> None:
    with pytest.raises(InputError) as refused:
        fleet_settings(given)
    assert expected in str(refused.value)
    assert "\n" not in str(refused.value)


BAD_FILES = {
    "empty": ("", "it is empty; allowed is a csv with a column client"),
    "no column for the speed": ("client,down,up\n0,1,1\n", "a column compute"),
    "another column": ("client,compute,down,up,colour\n0,1,1,1,red\n", "not colour"),
    "a column twice": ("client,compute,down,up,up\n0,1,1,1,1\n", "not up"),
    "a client twice": ("client,compute,down,up\n0,1,1,1\n0,1,1,1\n", "row 2.client=0"),
    "a client that is no number": ("client,compute,down,up\nann,1,1,1\n", "row 1.client=ann"),
    "a client missing": ("client,compute,down,up\n1,1,1,1\n", "no row for client 0"),
    "a speed that is no number": ("client,compute,down,up\n0,fast,1,1\n", "row 1.compute=fast"),
    "an infinite speed": ("client,compute,down,up\n0,inf,1,1\n", "row 1.compute=inf"),
    "a rate of zero": ("client,compute,down,up\n0,1,0,1\n", "row 1.down=0.0"),
    "a cell missing": ("client,compute,down,up\n0,1,1\n", "row 1=3 cells"),
    "rounds of other letters": ("client,compute,down,up,rounds\n0,1,1,1,12\n", "row 1.rounds=12"),
    "no round at all": ("client,compute,down,up,rounds\n0,1,1,1,000\n", "row 1.rounds=000"),
    "availability of two": ("client,compute,down,up,availability\n0,1,1,1,2\n", "row 1.availability=2.0"),
    "bytes": (b"client,compute\xff", "a csv file in UTF-8"),
    "escapes": ("client,compute,down,up\n0,\x1b[31m,1,1\n", "row 1.compute="),
}


@pytest.mark.parametrize(("text", "expected"), BAD_FILES.values(), ids=BAD_FILES)
def test_a_wrong_file_is_refused_in_one_line_that_names_the_row(
    text: str | bytes, expected: str, tmp_path: Path
) -> None:
    file = tmp_path / "devices.csv"
    file.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(InputError) as refused:
        settings("trace", path=str(file)).devices([0], seed=0)
    assert expected in str(refused.value)
    assert "\n" not in str(refused.value)
    assert "\x1b" not in str(refused.value)


@pytest.mark.parametrize("path", [None, "nothing.csv", "."])
def test_a_file_that_is_not_there_is_refused(path: str | None) -> None:
    with pytest.raises(InputError, match=r"fleet\.path"):
        settings("trace", path=path).devices([0], seed=0)
