"""The file of ``fleet=trace``: a csv with a row for each client."""

from __future__ import annotations

import csv
import math
from collections.abc import Mapping
from pathlib import Path

from flt.core.errors import InputError
from flt.core.files import expand_user, last_name, reported
from flt.server.fleet.device import Device, check

NEEDED = ("client", "compute", "down", "up")
FURTHER = ("memory", "power", "availability", "rounds")
LARGEST = 1 << 26
"""Largest number of bytes of the file."""


def read_trace(path: str | Path) -> dict[int, Device]:
    """Reads the devices of clients from a csv file.

    The columns ``client`` (the client's number, from 0), ``compute`` (FLOP/s), ``down`` and ``up`` (bit/s) are needed.
    The columns ``memory`` (bytes), ``power`` (watts), ``availability`` (share of the rounds) and ``rounds`` may be
    missing, or empty in a row. ``rounds`` has a 1 for each round in which the client can be drawn and a 0 for each
    other one, such as ``1101``, and repeats itself.

    Args:
        path: The file, in UTF-8.

    Raises:
        InputError: The file can't be read, a column is missing, or a value is wrong. The message names the row.
    """
    shown = str(last_name(str(path)))
    with reported("fleet.path", shown, "a csv file that can be read"):
        file = Path(expand_user(str(path)))
        if file.stat().st_size > LARGEST:
            raise InputError.of("fleet.path", shown, f"a file of at most {LARGEST} bytes")
        data = file.read_bytes()
    try:
        rows = list(csv.reader(data.decode("utf-8-sig").splitlines()))
    except (UnicodeDecodeError, csv.Error) as error:
        raise InputError.of("fleet.path", shown, "a csv file in UTF-8", str(error)) from error
    header, *lines = [[cell.strip() for cell in row] for row in rows if any(cell.strip() for cell in row)] or [[]]
    for column in NEEDED:
        if column not in header:
            why = f"it has {', '.join(header)}" if header else "it is empty"
            raise InputError.of("fleet.path", shown, f"a csv with a column {column}", why)
    for column in header:
        if column not in (*NEEDED, *FURTHER) or header.count(column) > 1:
            raise InputError.of("fleet.path", shown, f"the columns {', '.join((*NEEDED, *FURTHER))}", f"not {column}")
    found: dict[int, Device] = {}
    for number, line in enumerate(lines, 1):
        where = f"fleet.path={shown}, row {number}"
        if len(line) != len(header):
            raise InputError.of(where, f"{len(line)} cells", f"{len(header)}, as in the header")
        cells = dict(zip(header, line, strict=True))
        client = _whole(cells["client"], where)
        if client in found:
            raise InputError.of(f"{where}.client", client, "one row for each client")
        found[client] = _device(cells, where)
    return found


def _device(cells: Mapping[str, str], where: str) -> Device:
    def number(key: str) -> float:
        return _number(cells[key], f"{where}.{key}")

    rounds = cells.get("rounds", "")
    if set(rounds) - {"0", "1"} or (rounds and "1" not in rounds):
        raise InputError.of(f"{where}.rounds", rounds, "a text of 1 and 0 with at least one 1, such as 1101")
    device = Device(
        number("compute"),
        number("down"),
        number("up"),
        number("memory") if cells.get("memory") else None,
        number("power") if cells.get("power") else 0.0,
        number("availability") if cells.get("availability") else 1.0,
        tuple(letter == "1" for letter in rounds),
    )
    check(device, where)
    return device


def _whole(text: str, where: str) -> int:
    if not (text.isascii() and text.isdigit() and len(text) < 19):
        raise InputError.of(f"{where}.client", text, "an integer >= 0")
    return int(text)


def _number(text: str, where: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise InputError.of(where, text, "a number")
    return number
