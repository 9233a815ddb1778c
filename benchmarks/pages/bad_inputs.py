"""Runs the bad inputs of the tests, and writes flt's error messages into the tables of docs/reliability.md.

python -m benchmarks.pages.bad_inputs
"""

from __future__ import annotations

import contextlib
import io
import re
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from flt.core.errors import InputError
from flt.protocol.messages import decode

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "tests" / "support"))
from bad_inputs import BAD  # noqa: E402  # from the folder named a line above
from bad_messages import MESSAGES  # noqa: E402  # from the folder named a line above
from commands import in_empty_folder, train  # noqa: E402  # from the folder named a line above

PAGE = ROOT / "docs" / "reliability.md"
BEGIN, END = "<!-- made by python -m benchmarks.pages.bad_inputs -->", "<!-- end of bad inputs -->"
LONGEST = 150


def said() -> Iterator[tuple[str, str]]:
    """Yields each bad input of a run, and the line that flt prints.

    Raises:
        RuntimeError: A bad input doesn't end with exit code 2 and one line.
    """
    for what, (prepare, _) in BAD.items():
        # Each case runs in a new folder, so no case affects the next.
        with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
            in_empty_folder(Path(folder), patch)
            with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
                arguments = prepare(Path(folder))
            errors = io.StringIO()
            with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(errors):
                code = train(*arguments)
            lines = [line for line in errors.getvalue().splitlines() if line]
            if code != 2 or len(lines) != 1:
                raise RuntimeError(f"{what}: exit code {code}, {len(lines)} lines\n{errors.getvalue()}")
            yield what, shown(lines[0].removeprefix("error: "), folder)


def of_messages() -> Iterator[tuple[str, str]]:
    """Yields each bad message, and the line with which it is refused.

    Raises:
        RuntimeError: A bad message is accepted.
    """
    for what, data in MESSAGES.items():
        try:
            decode(data)
        except InputError as error:
            yield what, shown(str(error), "")
        else:
            raise RuntimeError(f"a message that is {what} was accepted")


def shown(line: str, folder: str) -> str:
    """Returns a line without the name of the temporary folder, cut if it is long."""
    line = line.replace(f"{folder}/", "") if folder else line
    line = re.sub(r"[^\x20-\x7e]+", "?", line)
    line = re.sub(r"(\w)\1{99,}", r"\1\1\1...", line)  # shortens names that are too long on purpose
    return line if len(line) <= LONGEST else f"{line[:LONGEST]} ..."


def text() -> str:
    """Returns the tables."""
    parts = []
    for head, found in (("of a run", said()), ("of a message", of_messages())):
        lines = [f"| {what} | `` {line.replace('|', chr(92) + '|')} `` |" for what, line in found]
        parts.append("\n".join([f"| bad input {head} | the line |", "|---|---|", *lines]))
    return "\n\n".join(parts)


def main() -> None:
    """Writes the tables into the page."""
    before = PAGE.read_text()
    marked = re.compile(f"({re.escape(BEGIN)}\n).*?({re.escape(END)})", re.DOTALL)
    made = text()
    PAGE.write_text(marked.sub(lambda mark: f"{mark[1]}\n{made}\n\n{mark[2]}", before))


if __name__ == "__main__":
    main()
