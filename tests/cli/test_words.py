"""Arguments of the commands that work on runs: one line for every wrong word."""

from __future__ import annotations

import dataclasses

import pytest

from flt.cli.words import read_words
from flt.core.errors import InputError


@dataclasses.dataclass
class Options:
    out: str = "p.csv"
    batch_size: int = 64


def test_settings_flags_and_runs_are_told_apart() -> None:
    words = read_words("predict", ["a=b/run", "data.text=note", "--json"], ["a", "data."], ["json"], (0, None))
    assert words.settings == {"a": "b/run", "data.text": "note"}
    assert words.flags == {"json"}
    assert words.runs == ()
    assert words.overrides("data") == ["data.text=note"]


def test_options_get_their_types() -> None:
    words = read_words("predict", ["last", "batch_size=8"], ["out", "batch_size"])
    assert words.options(Options) == Options(batch_size=8)


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["last", "ouut=x"], "predict=ouut=x: the nearest is out; allowed is out=, batch_size="),
        (["last", "out=x", "out=y"], "predict=out=y: allowed is out only once"),
        (["last", "--jsn"], "predict=--jsn: the nearest is --json; allowed is --json"),
        ([], "predict=: no run is named; allowed is 1 of: a run's folder, or last"),
        (["a", "b"], "predict=a b: allowed is 1 of: a run's folder, or last"),
    ],
)
def test_a_wrong_word_is_one_line(arguments: list[str], line: str) -> None:
    with pytest.raises(InputError) as error:
        read_words("predict", arguments, ["out", "batch_size"], ["json"])
    assert str(error.value) == line


def test_a_value_of_the_wrong_type_is_one_line() -> None:
    words = read_words("predict", ["last", "batch_size=many"], ["batch_size"])
    with pytest.raises(InputError, match="batch_size=many: .*allowed is an integer"):
        words.options(Options)
