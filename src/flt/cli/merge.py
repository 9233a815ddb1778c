"""The command ``flt merge``, which writes a run's models as whole models of transformers."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from flt.cli.words import read_words
from flt.core.errors import InputError

HELP = """\
usage: flt merge RUN out=folder [group=N] [dtype=float32|bfloat16|float16]

Merges the adapters of a run into their base, and writes whole models that
transformers loads without flt, with the names of the classes, the tokenizer or
image processor, and a model card. flt predict, evaluate and generate take such
a folder as RUN. Here, RUN is a run's folder, its adapter/ or model/, or last.

  flt merge last out=merged
  flt merge last out=half dtype=bfloat16         numbers of half the size
  flt merge last out=merged group=1              one of several groups
  flt merge adapter/ out=merged base=./my-bert   an adapter without its run

If the run has several groups or clients, each model gets a subfolder of out.
The folder must be empty, or not exist. A run that already wrote model/ is
copied. A run with model.quantise is merged into the base's unrounded weights.

C2A and bottleneck adapters, the label_names head and a user's own module have
no plain model; a line says how to load them instead."""


@dataclasses.dataclass(frozen=True)
class Options:
    """Settings of the command."""

    out: str | None = None
    group: int | None = None
    dtype: str | None = None
    base: str | None = None


def run(arguments: Sequence[str]) -> int:
    """Writes the merged models, and prints their folders.

    Raises:
        InputError: An argument is wrong, or a model can't be merged.
    """
    words = read_words("merge", arguments, [field.name for field in dataclasses.fields(Options)])
    options = words.options(Options)
    if not options.out:
        raise InputError.of("out", options.out, "a new folder, such as out=merged")
    from flt.run.merge import merge

    written = merge(words.runs[0], options.out, group=options.group, dtype=options.dtype, base=options.base)
    for path in written.values():
        print(f"wrote {path}")
    return 0
