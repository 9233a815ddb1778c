"""The command ``flt predict``, which predicts the classes of new data."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Sequence

from flt.cli.words import read_words
from flt.core.errors import InputError

HELP = """\
usage: flt predict RUN data=new.csv [out=predictions.csv] [key=value ...]

Predicts the class of each row of new data with an exported model of a run, for
texts, pairs of texts and images. No labels are needed.

  flt predict last data=new.csv out=predictions.csv
  flt predict last data=./photos out=classes.jsonl probabilities=true
  flt predict lightning_logs/fl_tac/version_0 data=new.parquet group=2 out=-

RUN is a run's folder, its adapter/ or model/, or last. Each row keeps its
columns of texts, numbers and dates, and gets the columns prediction (name of
the class) and probability. Rows keep their order. Images of a folder are
named in the column file_name. Rows without such columns are numbered from 1.

  data=            a file (csv, tsv, txt, jsonl, json, parquet, arrow, feather,
                   npz), a folder of such files, a folder of images (in any
                   layout), a hub id, or a name such as digits
  data.<key>=      settings of the data, such as data.text=review; without
                   them, the columns are those that training has read
  out=             a .csv, .jsonl or .parquet file; - or nothing: csv on
                   standard output. The file appears when all rows are done
  probabilities=   true: a further column probability_<class> for each class
  group=           one of several exported models: 1, group_1, client_3, ...
  task=            the task whose classes are predicted, if tasks share a model
  split=           split of hub data or of data with a name (test)
  batch_size=      examples per batch (64)
  device=          auto (a GPU if there is one), cpu or cuda
  root=            folder in which last is looked for (lightning_logs)
  base=            folder or hub id of the base, for an adapter away from its
                   run that was trained on a folder

If a run has several models and neither group= nor task= says which, the one
that is the most certain predicts: the one with the smallest mean entropy of
its predictions on the first 256 rows, divided by that of a uniform prediction.
A line says which it was. This choice is our reconstruction: FL-TAC doesn't say
which cluster's adapter reads new data.

Rows are read, predicted and written in windows of 16 batches, so that the
memory doesn't grow with their number. Compressed text files, json files with
one list, and npz files are read whole. A C2A model computes with the mean
activations of a batch, as in its paper: its predictions depend a little on
batch_size. The responses of a causal model are written by flt generate."""

KEYS = ("data", "data.", "out", "probabilities", "group", "task", "split", "batch_size", "device", "root", "base")


@dataclasses.dataclass
class Options:
    """Settings of the command."""

    data: str | None = None
    out: str = "-"
    probabilities: bool = False
    group: str | None = None
    task: str | None = None
    split: str | None = None
    batch_size: int = 64
    device: str = "auto"
    root: str = "lightning_logs"
    base: str | None = None

    def __post_init__(self) -> None:
        if self.batch_size < 1:
            raise InputError.of("batch_size", self.batch_size, "an integer >= 1")
        if self.data is None:
            raise InputError.of("data", None, "a file, a folder, a hub id or a name, such as data=new.csv")


def run(arguments: Sequence[str]) -> int:
    """Predicts the classes of new data, and writes them to a file or to standard output.

    Raises:
        InputError: The run, the data or an argument can't be used.
    """
    words = read_words("predict", arguments, KEYS)
    options = words.options(Options)
    from flt.run.stored import export_of

    export_of(words.runs[0], options.root)  # refused before torch is imported
    print(f"flt predict: {words.runs[0]}", file=sys.stderr, flush=True)
    from flt.cli.bars import bar
    from flt.core.imports import import_without_gc

    import_without_gc("flt.inference.predict", freeze=True)
    from flt.inference.predict import predict

    overrides = [text for text in words.overrides("data") if not text.startswith("data=")]
    with bar("rows") as move:
        rows = predict(
            words.runs[0], options.data, options.out, group=options.group, task=options.task, split=options.split,
            probabilities=options.probabilities, overrides=overrides, batch_size=options.batch_size,
            device=options.device, root=options.root, base=options.base, watch=lambda done, all: move(done, all, ""),
        )  # fmt: skip
    if options.out != "-":
        print(f"{rows:,} rows: {options.out}", file=sys.stderr)
    return 0
