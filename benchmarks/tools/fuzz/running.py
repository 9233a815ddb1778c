"""The loop of the fuzzers: makes examples, tries each of them, and records everything that isn't an InputError."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import os
import random
import shutil
import signal
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from flt.core.errors import InputError

LIMIT = 60
"""Seconds after which an example counts as hanging."""
LONGEST = 5000
"""Largest number of characters of an error's line."""
Make = Callable[[random.Random, Path], tuple[str, Callable[[], Any]]]
"""Function that makes an example in an empty folder. It returns a description, and the function to try."""


@dataclasses.dataclass(frozen=True)
class Finding:
    """An example that is neither accepted nor refused in one line.

    Attributes:
        kind: Name of the fuzzer.
        seed: Seed of the fuzzer.
        number: Number of the example.
        example: Description of the example.
        what: The error, and the place in the code.
    """

    kind: str
    seed: int
    number: int
    example: str
    what: str

    def __str__(self) -> str:
        again = f"--only {self.kind} --seed {self.seed} --first {self.number} --examples 1"
        return f"{self.what}\n    {self.example[:300]}\n    again: python -m benchmarks.tools.fuzz {again}"


@dataclasses.dataclass
class Tally:
    """Number of examples that were accepted and refused, and the findings, one for each place in the code."""

    accepted: int = 0
    refused: int = 0
    findings: dict[str, Finding] = dataclasses.field(default_factory=dict)

    @property
    def tried(self) -> int:
        """Number of examples."""
        return self.accepted + self.refused


def fuzz(kind: str, make: Make, seed: int, seconds: float, examples: int | None = None, first: int = 0) -> Tally:
    """Tries examples until the time is over or all are tried.

    Args:
        kind: Name of the fuzzer.
        make: Function that makes an example.
        seed: Seed of the examples.
        seconds: Time. The last example may take longer.
        examples: Number of examples. None: as many as there is time for.
        first: Number of the first example.
    """
    tally, until = Tally(), time.monotonic() + seconds
    numbers = itertools.count(first) if examples is None else range(first, first + examples)
    for number in numbers:
        if time.monotonic() > until:
            break
        text, error = _tried(make, random.Random(f"{kind} {seed} {number}"))
        tally.accepted, tally.refused = tally.accepted + (error is None), tally.refused + (error is not None)
        what = _wrong(error)
        if what:
            tally.findings.setdefault(what, Finding(kind, seed, number, text, what))
    return tally


def _tried(make: Make, draw: random.Random) -> tuple[str, BaseException | None]:
    """Makes an example in an empty working folder and tries it. Returns its description, and the error."""
    before, folder = os.getcwd(), Path(tempfile.mkdtemp(prefix="flt-fuzz-"))
    text = "?"
    try:
        os.chdir(folder)
        with _limited(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            text, attempt = make(draw, folder)
            attempt()
    except Exception as error:
        return text, error
    finally:
        os.chdir(before)
        shutil.rmtree(folder, ignore_errors=True)
    return text, None


@contextlib.contextmanager
def _limited() -> Iterator[None]:
    """Raises a TimeoutError in the body after ``LIMIT`` seconds."""

    def ring(number: int, frame: Any) -> None:
        raise TimeoutError(f"it takes more than {LIMIT} s")

    before = signal.signal(signal.SIGALRM, ring)
    signal.alarm(LIMIT)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def _wrong(error: BaseException | None) -> str:
    """Returns what is wrong with an error; empty if there is none, or an InputError with a short line."""
    if error is None:
        return ""
    if isinstance(error, InputError):
        line = str(error)
        return "" if "\n" not in line and 0 < len(line) <= LONGEST else f"a line of {len(line)} characters: {line[:80]}"
    frames = traceback.extract_tb(error.__traceback__)
    ours = [frame for frame in frames if "/flt/" in frame.filename]
    at = ", ".join(f"{Path(frame.filename).name}:{frame.lineno}" for frame in (*ours[-1:], *frames[-1:]))
    return f"{type(error).__name__} at {at}: {str(error)[:100]}"
