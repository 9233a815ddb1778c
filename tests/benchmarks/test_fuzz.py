"""The fuzzers find nothing but an InputError of one line. Their seed is stated, and the long run is by hand."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
from benchmarks.tools.fuzz.__main__ import FUZZERS, main
from benchmarks.tools.fuzz.running import fuzz
from random_examples import share

from flt.core.errors import InputError

SEED, LIMIT = 0, 600
"""The limit is in seconds, and is reached only on a very slow machine."""
EXAMPLES = {
    "overrides": 400, "runs": 100, "messages": 4000, "checkpoints": 100, "data": 800, "exports": 150, "hostile": 25,
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("kind", FUZZERS)
def test_a_fuzzer_finds_nothing(kind: str) -> None:
    """A share of the examples is at least 24: among the first 24 of each kind are some of both."""
    tally = fuzz(kind, FUZZERS[kind], SEED, LIMIT, max(24, int(EXAMPLES[kind] * share())))
    assert [str(finding) for finding in tally.findings.values()] == []
    assert tally.accepted
    assert tally.refused


@pytest.mark.parametrize("kind", ["messages", "data"])
def test_some_hundred_examples_find_nothing(kind: str) -> None:
    tally = fuzz(kind, FUZZERS[kind], SEED, 60, examples=300)
    assert [str(finding) for finding in tally.findings.values()] == []
    assert tally.tried == 300


def failing(error: Exception | None) -> Any:
    def make(draw: random.Random, folder: Path) -> tuple[str, Any]:
        def attempt() -> None:
            if error is not None:
                raise error

        return "an example", attempt

    return make


@pytest.mark.parametrize(
    ("error", "what"),
    [
        (None, None),
        (InputError("one line"), None),
        (InputError("two\nlines"), "a line of 9 characters"),
        (InputError(""), "a line of 0 characters"),
        (InputError("x" * 9000), "a line of 9000 characters"),
        (KeyError("x"), "KeyError at "),
        (TimeoutError("it takes more"), "TimeoutError at "),
    ],
    ids=str,
)
def test_everything_but_a_short_line_is_a_finding(error: Exception | None, what: str | None) -> None:
    tally = fuzz("toy", failing(error), 3, 60, examples=2, first=5)
    assert (tally.accepted, tally.refused) == ((2, 0) if error is None else (0, 2))
    found = [finding.what for finding in tally.findings.values()]
    assert [text.startswith(what or "?") for text in found] == ([] if what is None else [True])
    assert all("--only toy --seed 3 --first 5 --examples 1" in str(finding) for finding in tally.findings.values())


def test_an_example_depends_on_its_number_alone(tmp_path: Path) -> None:
    for kind in ("overrides", "messages"):
        one, other = (FUZZERS[kind](random.Random(f"{kind} 0 7"), tmp_path)[0] for _ in range(2))
        assert one == other


def test_an_unknown_fuzzer_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--only", "nothing"])
    assert "allowed are overrides" in capsys.readouterr().err
