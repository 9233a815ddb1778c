"""Bad input of every kind ends in one line and exit code 2. Nothing is left half-written, and nothing is executed."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
from bad_inputs import BAD, MARK
from commands import in_empty_folder, train
from toys import Toy, toy_data

import flt
from flt.core.errors import InputError


@pytest.mark.parametrize("what", BAD)
@pytest.mark.slow
def test_bad_input_is_one_line_and_exit_code_2_and_leaves_nothing(
    what: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    in_empty_folder(tmp_path, monkeypatch)
    prepare, start = BAD[what]
    arguments = prepare(tmp_path)
    before = contents(tmp_path)
    capsys.readouterr()
    code = train(*arguments)
    printed = capsys.readouterr()
    (line,) = [line for line in printed.err.splitlines() if line]
    assert line.startswith(f"error: {start}"), line
    assert code == 2
    assert "Traceback" not in printed.err
    assert not (tmp_path / MARK).exists()
    assert contents(tmp_path) == before


def contents(folder: Path) -> dict[Path, bytes | None]:
    """Returns the content of all files, and None for each folder."""
    return {path: path.read_bytes() if path.is_file() else None for path in folder.rglob("*")}


def test_two_clients_with_one_id_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    first, second = flt.partition(toy_data(40), by=None, clients=2)
    with pytest.raises(InputError, match=r"^clients=0: allowed is an id of its own for each client$"):
        flt.fit(Toy(), [first, dataclasses.replace(second, id=first.id)], "fedit", 1, progress=False)
    assert list(tmp_path.iterdir()) == []
