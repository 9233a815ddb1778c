"""The command ``flt generate``, which lets the causal model of a run answer prompts."""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from flt.cli.commands import COMMANDS
from flt.cli.words import Words, read_words
from flt.core.errors import InputError
from flt.core.files import expand_user, reported, write_atomically
from flt.core.formatting import printable
from flt.core.imports import import_without_gc

if TYPE_CHECKING:
    from flt.inference.prompts import PromptFormat
    from flt.inference.text_generator import Answer, Sampling, TextGenerator

HELP = """\
usage: flt generate RUN prompt="..." [key=value ...]
       flt generate RUN prompts=file out=answers.jsonl [key=value ...]
       flt generate RUN --interactive [key=value ...]

Lets the causal model of a finished run answer prompts. RUN is the folder of a
run or of an exported model, or last. A prompt is put into the template with
which the run trained (data.prompts), and an answer ends at the token that ended
responses in training. On a terminal, the answer appears while it is written.

  prompt=           the instruction; -: standard input is the instruction
  context=          second text of the template, if it has one
  field.<column>=   text of any column of the template
  raw=true          the prompt is taken as it is, without the template
  prompts=          .txt with a prompt in each line, or a table (.jsonl, .csv,
                    .parquet) with the template's columns
  out=              .jsonl to write: a line for each prompt, with its answer and
                    whether the model ended it (stop) or it was cut (length)
  set=              data set whose template is used, if the run had several

  group=            model that answers, if the run has several: 1 or group_1
                    (FL-TAC), client_3 (FedSA-LoRA), or all, for each in turn
  temperature=0     0: the most probable token is taken each time (greedy);
                    higher: more varied answers
  top_p=1           only the most probable tokens are drawn, whose probabilities
                    add up to this share
  top_k=0           only this number of most probable tokens is drawn; 0: all
  max_new_tokens=   tokens of an answer at most; 256, or as many as there is
                    room for
  seed=0            the same seed gives the same answers
  batch_size=1      prompts that are answered at once
  device=           auto (a GPU if there is one), cpu, cuda or cuda:1
  root=             folder of all runs, in which last is looked for
  base=             folder or hub id of the base, for an adapter away from its
                    run that was trained on a folder

With --interactive, each line is a prompt, from a terminal or from a pipe, and
each answer has the next seed. Ctrl-C stops an answer, Ctrl-D or /exit ends.
/help lists what else a line can be.

  flt generate last prompt="Name three colours." temperature=0.7 seed=1
  flt generate last --interactive group=1
  flt generate last prompts=questions.txt out=answers.jsonl batch_size=16"""
_WAYS = 'prompt="...", prompts=<file>, or --interactive'


@dataclasses.dataclass
class Settings:
    """Settings of the command that aren't texts of the prompt or settings of the sampling."""

    raw: bool = False
    prompts: str | None = None
    out: str | None = None
    set: str | None = None
    group: str | None = None
    batch_size: int = 1
    device: str = "auto"
    root: str = "lightning_logs"
    base: str | None = None


@dataclasses.dataclass(frozen=True)
class Work:
    """Prompts to answer, and settings of the answers.

    Attributes:
        run: Name of the run.
        settings: Settings of the command.
        sampling: Settings of the sampling.
        fields: Name of a text of the prompt -> text. Empty if the prompts come from a file or are typed.
    """

    run: str
    settings: Settings
    sampling: Sampling
    fields: dict[str, str]

    def generators(self) -> Iterator[tuple[str, TextGenerator, PromptFormat]]:
        """Yields the name of each chosen model, the loaded model, and the form of its prompts."""
        from flt.inference import generate
        from flt.inference.text_generator import TextGenerator

        settings = self.settings
        for name, folder in generate.chosen_models(self.run, settings.group, settings.root).items():
            generator = TextGenerator(folder, settings.device, settings.base)
            form = generate.prompt_format(self.run, generator.tokenizer, settings.raw, settings.set, settings.root)
            yield name, generator, form
            del generator  # before the next model is loaded


def run(arguments: Sequence[str]) -> int:
    """Answers one prompt, those of a file, or those that are typed.

    Raises:
        InputError: A setting is wrong, the run has no causal model, or its export is incomplete.
    """
    words = read_words("generate", arguments, COMMANDS["generate"].keys, ["interactive"])
    settings, fields = words.options(Settings), _fields(words)
    interactive = "interactive" in words.flags
    if (settings.prompts is not None) + interactive + bool(fields) != 1:
        raise InputError.of("generate", " ".join(arguments), f"one of {_WAYS}")
    if settings.out is not None and settings.prompts is None:
        raise InputError.of("out", settings.out, "a file of answers to prompts=<file>")
    if settings.out is not None:
        _check_out(settings.out)
    if sys.stderr.isatty():
        print(f"reading {words.runs[0]}", file=sys.stderr, flush=True)  # the import of torch takes seconds
    import_without_gc("flt.inference.generate", freeze=True)
    from flt.inference.text_generator import Sampling

    work = Work(words.runs[0], settings, words.options(Sampling), fields)
    if interactive:
        from flt.cli.prompt_loop import PromptLoop

        PromptLoop(work).run()
    elif settings.prompts is not None:
        _answer_file(work, settings.prompts)
    else:
        _answer_one(work)
    return 0


def _fields(words: Words) -> dict[str, str]:
    """Returns the texts of the prompt that the command line gives: ``prompt``, ``context`` or a column -> text."""
    found = {key: words.settings[key] for key in ("prompt", "context") if key in words.settings}
    if found.get("prompt") == "-":
        found["prompt"] = sys.stdin.read().strip("\n")
    named = {key: text for key, text in words.settings.items() if key.startswith("field.")}
    return found | {key.removeprefix("field."): text for key, text in named.items()}


def _answer_one(work: Work) -> None:
    """Prints the answers to the prompt of the command line, each under its model's name if there are several."""
    for name, generator, form in work.generators():
        prompt = form.fill(work.fields)
        if work.settings.group == "all" and name:
            print(f"{name}:")
        say(generator, prompt, work.sampling)


def say(generator: TextGenerator, prompt: str, sampling: Sampling) -> None:
    """Prints the answer to a prompt, on a terminal while it is written, and says if it was cut off."""
    if not sys.stdout.isatty():
        print(generator.answer([prompt], sampling)[0].text, flush=True)
        return

    def show(text: str) -> None:
        print(printable(text, "\n\t"), end="", flush=True)

    try:
        (answer,) = generator.answer([prompt], sampling, show)
    finally:
        print(flush=True)
    if answer.finish_reason == "length":
        print("(cut off: max_new_tokens is reached)", file=sys.stderr)


def _answer_file(work: Work, path: str) -> None:
    """Writes the answers to a file's prompts to ``out``, or prints them, as a line of JSON each."""
    lines = []
    for name, generator, form in work.generators():
        rows = _rows(path, form)
        about = {"group": name} if name else {}
        for row, answer in zip(rows, _answers(work, generator, [form.fill(row) for row in rows]), strict=True):
            record = {**row, **about, "answer": answer.text, "finish_reason": answer.finish_reason}
            lines.append(json.dumps(record, ensure_ascii=False))
            if work.settings.out is None:
                print(lines[-1], flush=True)
    if work.settings.out is not None:
        data = "".join(f"{line}\n" for line in lines).encode("utf-8", "backslashreplace")
        with reported("out", work.settings.out, "a file that can be written"):
            write_atomically(expand_user(work.settings.out), data)
        print(f"{len(lines)} answers in {work.settings.out}", file=sys.stderr)


def _rows(path: str, form: PromptFormat) -> list[dict[str, str]]:
    from flt.inference.prompts import read_prompts

    return read_prompts(path, form.names)


def _answers(work: Work, generator: TextGenerator, prompts: list[str]) -> Iterator[Answer]:
    """Yields the answers to some prompts. On a terminal, shows how many are done."""
    from rich.console import Console
    from rich.progress import track

    from flt.inference.generate import batches

    console = Console(stderr=True)
    parts = batches(generator, prompts, work.sampling, work.settings.batch_size)
    answers = (answer for part in parts for answer in part)
    hidden = work.settings.out is None or not console.is_terminal  # without out=, the answers show how far it is
    console.quiet = hidden  # rich 14 ends a disabled bar with an empty line
    yield from track(answers, "answering", len(prompts), console=console, transient=True, disable=hidden)


def _check_out(out: str) -> None:
    path, allowed = expand_user(out), "a path that ends in .jsonl, in a folder that exists"
    if path.suffix != ".jsonl" or not Path(path.parent).is_dir() or path.is_dir():
        raise InputError.of("out", out, allowed)
