"""Code in the pages of docs/: the blocks of a page, and running them one after another in the working folder."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import logging
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

from flt.cli.main import main

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
BLOCK = re.compile(r"^```(\w+)([^\n]*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
CONTINUED = re.compile(r" *\\\n *")
PROCESSES = ("engine=distributed", "engine=sharded")
"""Engines that start processes, which repeat the command line: such commands run in a process of their own."""

FORKED = ("engine.strategy=ddp_fork",)
"""How the processes of engine=distributed start here: they import nothing again."""


@dataclasses.dataclass(frozen=True)
class Block:
    """Block of code: ``bash`` and ``python`` are run, ``console`` is a command after ``$`` with what it prints.

    ``text title="Output"`` is what the command above it prints.
    """

    language: str
    title: str
    text: str

    @property
    def commands(self) -> list[list[str]]:
        """The words of each command of the shell."""
        lines = CONTINUED.sub(" ", self.text).splitlines()
        if self.language == "console":
            lines = [line.removeprefix("$ ") for line in lines if line.startswith("$ ")]
        elif self.language != "bash":
            return []
        return [of_make(words) for line in lines if (words := shlex.split(line, comments=True))]

    @property
    def printed(self) -> list[str]:
        """The lines that a block of a terminal shows after its command, or that are titled as its output."""
        shown = self.language == "console" or "Output" in self.title
        return [line for line in self.text.splitlines() if shown and line and not line.startswith("$ ")]


def blocks(page: Path) -> list[Block]:
    return [Block(*found) for found in BLOCK.findall(page.read_text())]


def commands(page: Path) -> list[list[str]]:
    """The words of each command on a page."""
    return [words for block in blocks(page) for words in block.commands]


def files(page: Path) -> dict[str, str]:
    """File -> what the page puts into it: blocks whose first line is a comment with the file's path."""
    named = (re.match(r"# ([\w/]+[\w/.]*\.\w+)(?:, [^\n]*)?\n", block.text) for block in blocks(page))
    return {found[1]: found.string[found.end() :] for found in named if found}


def run_page(page: Path, tiny: Mapping[str, object], models: Mapping[str, str]) -> dict[str, object]:
    """Runs the blocks of a page in their order, and returns the names that its Python code has set.

    Args:
        page: The page.
        tiny: Key -> value that every training takes instead of its own.
        models: Value of ``model=`` on the page -> value that is there without a network.
    """
    names: dict[str, object] = {"__name__": "__main__"}
    printed = ""
    for block in blocks(page):
        if block.language == "python":
            exec(compile(block.text, str(page), "exec"), names)
        for words in block.commands:
            code, printed = run(shortened(words, tiny, models))
            assert (code != 0) == any(line.startswith("error: ") for line in block.printed), f"{words}\n{printed}"
        for line in block.printed:
            assert re.search(pattern(line), printed), f"{line}\n{printed}"
    return names


def pattern(line: str) -> str:
    """The regular expression of a printed line: ``...`` stands for anything, and a space for any white space."""
    return ".*".join(r"\s+".join(map(re.escape, part.split())) for part in line.split("..."))


def of_make(words: list[str]) -> list[str]:
    """Returns the command of flt that ``make train`` or ``make sweep`` runs, and other commands as they are."""
    if words[:2] not in (["make", "train"], ["make", "sweep"]):
        return words
    done = subprocess.run(["make", "-n", "-C", str(ROOT), *words[1:]], capture_output=True, text=True, check=True)
    (line,) = (line for line in done.stdout.splitlines() if line.startswith("exec .venv/bin/flt "))
    return ["flt", *shlex.split(line)[2:]]


def shortened(words: list[str], tiny: Mapping[str, object], models: Mapping[str, str]) -> list[str]:
    """Returns a command with small settings, if it trains, and with models that are there."""
    model = dict(word.split("=", 1) for word in words if word.startswith("model=")).get("model", "")
    words = [*words, *FORKED] if "engine=distributed" in words else words
    words = [f"model={models[model]}" if word == f"model={model}" and model in models else word for word in words]
    if words[1] not in ("train", "sweep", "plan"):
        return words
    return [*(word for word in words if word.partition("=")[0] not in tiny), *_settings(tiny)]


def run(words: list[str]) -> tuple[int, str]:
    """Runs a command line, and returns its exit code and all that it prints."""
    assert words[0] == "flt", f"only flt runs in a block of bash: {words}"
    if any(word in PROCESSES for word in words):
        done = subprocess.run(
            [sys.executable, "-m", *words], capture_output=True, text=True, timeout=200, env={**os.environ, **_path()}
        )
        return done.returncode, done.stdout + done.stderr
    with contextlib.redirect_stdout(io.StringIO()) as out, contextlib.redirect_stderr(io.StringIO()) as err:
        logged = logging.StreamHandler(err)  # the process of a test has handlers of its own, so flt adds none
        logging.getLogger("flt").addHandler(logged)
        try:
            code = main(words[1:])
        finally:
            logging.getLogger("flt").removeHandler(logged)
    return code, out.getvalue() + err.getvalue()


def build_site(folder: Path, site: Path) -> tuple[int, str]:
    """Builds a folder's docs as ``make docs`` does, without a network. Returns the exit code and what it prints."""
    environment = {**os.environ, **_path(), "NO_MKDOCS_2_WARNING": "true"}
    environment |= {"https_proxy": "http://127.0.0.1:9", "http_proxy": "http://127.0.0.1:9"}
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(site)]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=300)
    return done.returncode, done.stdout + done.stderr


def _settings(tiny: Mapping[str, object]) -> Iterator[str]:
    return (f"{key}={value}" for key, value in tiny.items())


def _path() -> dict[str, str]:
    return {"PYTHONPATH": os.pathsep.join([str(ROOT / "src"), os.environ.get("PYTHONPATH", "")])}
