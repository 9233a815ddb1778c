"""The loop of ``flt generate --interactive``: one line in, one answer out."""

from __future__ import annotations

import contextlib
import dataclasses
import sys
from typing import TYPE_CHECKING

from flt.cli.generate import Work, say
from flt.core.errors import InputError
from flt.core.typed import typed

if TYPE_CHECKING:
    from flt.inference.prompts import PromptFormat
    from flt.inference.text_generator import TextGenerator

SAMPLING = ("temperature", "top_p", "top_k", "max_new_tokens", "seed")
HELP = """\
Any other line is a prompt. Ctrl-C stops an answer, Ctrl-D ends.
  /temperature 0.7      also /top_p, /top_k, /max_new_tokens and /seed
  /group 1              another of the run's models
  /context some text    a text of the template for the prompts that follow;
                        /context alone removes it
  /settings             what is set now
  /help                 these lines
  /exit                 ends"""


class PromptLoop:
    """Answers line after line, until the input ends or a line is ``/exit``.

    Args:
        work: Run, settings and sampling to begin with.
    """

    def __init__(self, work: Work) -> None:
        if work.settings.group == "all":
            raise InputError.of("group", "all", "one of the run's models, as --interactive loads one at a time")
        self.work = work
        self.texts: dict[str, str] = {}
        self.model: tuple[str, TextGenerator, PromptFormat] = next(work.generators())
        self.typed = sys.stdin.isatty()

    def run(self) -> None:
        """Reads and answers. A mistake is one line, after which the loop goes on."""
        if self.typed:
            with contextlib.suppress(ImportError):  # Windows has no readline
                import readline  # noqa: F401  # gives input() its history and its keys
            print("a line is a prompt; /help lists commands, Ctrl-D ends", file=sys.stderr)
        while (line := self._read()) is not None:
            try:
                if line.startswith("/"):
                    if line.split()[0] in ("/exit", "/quit"):
                        return
                    self._command(line)
                elif line.strip():
                    self._answer(line)
            except InputError as error:
                print(f"error: {error}", file=sys.stderr, flush=True)
            except KeyboardInterrupt as error:
                if type(error) is not KeyboardInterrupt or not self.typed:  # SIGTERM and SIGHUP end the loop
                    raise
                print("(stopped)", file=sys.stderr)

    def _answer(self, line: str) -> None:
        """Prints the answer to a prompt. The next answer has the next seed, so that asking again can help."""
        prompt, sampling = self.model[2].fill({"prompt": line, **self.texts}), self.work.sampling
        self.work = dataclasses.replace(self.work, sampling=dataclasses.replace(sampling, seed=sampling.seed + 1))
        say(self.model[1], prompt, sampling)

    def _read(self) -> str | None:
        """Returns the next line, or None at the end. Ctrl-C on a line that is being typed discards the line."""
        while True:
            try:
                return input("> ") if self.typed else next(sys.stdin).rstrip("\n")
            except (EOFError, StopIteration):
                if self.typed:
                    print()
                return None
            except KeyboardInterrupt as error:
                if type(error) is not KeyboardInterrupt or not self.typed:
                    raise
                print()

    def _command(self, line: str) -> None:
        name, _, value = line.removeprefix("/").partition(" ")
        value = value.strip()
        if name in SAMPLING and value:
            changed = {**dataclasses.asdict(self.work.sampling), name: value}
            self.work = dataclasses.replace(self.work, sampling=typed(type(self.work.sampling), changed, ""))
        elif name == "group" and value:
            self._load(value)
        elif name in self.model[2].names and name != "prompt":
            self.texts = {**self.texts, name: value} if value else {k: v for k, v in self.texts.items() if k != name}
        elif name == "settings":
            now = {**dataclasses.asdict(self.work.sampling), "group": self.model[0] or "the only one", **self.texts}
            print("\n".join(f"{key}={value}" for key, value in now.items()), file=sys.stderr)
        elif name == "help":
            print(HELP, file=sys.stderr)
        else:
            commands = [*SAMPLING, "group", *(name for name in self.model[2].names if name != "prompt")]
            allowed = [*(f"/{each} <value>" for each in commands), "/settings", "/help", "/exit"]
            raise InputError.of("command", line, allowed)

    def _load(self, group: str) -> None:
        """Loads another of the run's models. The present one stays if there is no such model."""
        from flt.inference.generate import ALL, chosen_models

        settings = dataclasses.replace(self.work.settings, group=group)
        if group == ALL:
            raise InputError.of("group", group, "one of the run's models")
        chosen_models(self.work.run, group, settings.root)
        self.work = dataclasses.replace(self.work, settings=settings)
        self.model = next(self.work.generators())
