"""The command ``flt evaluate``, which measures a run's models on labelled data."""

from __future__ import annotations

import dataclasses
import json
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flt.cli.words import Words, read_words
from flt.core.errors import InputError
from flt.core.formatting import printable

if TYPE_CHECKING:
    from flt.inference.evaluation import Evaluation, TaskEvaluation
    from flt.inference.metrics import Scores

HELP = """\
usage: flt evaluate RUN [data=test.csv] [key=value ...] [--json]

Measures the exported models of a run on labelled data: accuracy, macro F1,
mean negative log-likelihood (nll), precision, recall and F1 of each class, and
the confusion matrix as a picture. Of a causal model: loss, perplexity, and the
accuracy of the responses' tokens.

  flt evaluate last                         the run's own test split
  flt evaluate last data=test.csv           a file with the columns of training
  flt evaluate last data=digits split=validation
  flt evaluate runs/hafl/version_3 data=new.csv data.label=stars --json

RUN is a run's folder, its adapter/ or model/, or last. An export without its
run needs data=.

  data=         data as for flt train: a file, a folder, a hub id, or a name;
                without it: the run's own data
  data.<key>=   settings of the data, such as data.text=review; without them,
                the columns are those that training has read
  split=        train, validation or test; without it: test, or the only split
                of a file
  group=        one of several exported models: 1, group_1, client_3, ...
  task=         the task that the data belong to, if classes don't tell it
  clients=      true: also each client's own held-out examples, with the model
                that the client uses; without it: only if the run's own test
                split is evaluated
  out=          folder of the pictures; without it: the run's folder
  batch_size=   examples per batch; without it: that of the run
  device=       auto (a GPU if there is one), cpu or cuda
  root=         folder in which last is looked for (lightning_logs)
  base=         folder or hub id of the base, for an adapter away from its run
                that was trained on a folder
  --json        prints one JSON object instead of tables, and nothing else

A task's figures are those of the model with which the run evaluates the task.
All other models that know the task are shown beside it. If each client has a
model of its own, the figures are means over the clients. If the run evaluates
the values of data.column separately (eval.by_column), or with data.column=,
each value has a row, and the figures are means over the values. Clients have
the mean, the standard deviation, and the mean over the worst 10 %; their
examples are those on which the run evaluates the models that they receive, at
most eval.client_examples of each. Labels are matched
with the model's classes by name, whatever their order. Labels that are numbers
are the positions of the classes if no class is called like a number; a line
says so. Macro F1 is the mean over classes with examples or predictions.

JSON: schema (1), run, data, split, kind, metrics (means over the tasks), and
tasks: {name: {model, examples, metrics, classes: [{class, precision, recall,
f1, support}], confusion_matrix: [[...]] (rows are true classes), models: {name:
{examples, metrics}}, values: {value: {examples, metrics}}, held_out: {mean,
standard_deviation, worst_10_percent, clients: {name: {examples, metrics}}}}}.
values and held_out are left out where there are none. Without a global model,
model is null, and worst_10_percent has the means over the worst clients."""

KEYS = ("data", "data.", "split", "group", "task", "clients", "out", "batch_size", "device", "root", "base")
MOST_ROWS = 30
"""Largest number of classes, models or clients in a table."""
WORST = 10
"""Number of clients or classes that are shown if there are more than that."""


@dataclasses.dataclass
class Options:
    """Settings of the command."""

    data: str | None = None
    split: str | None = None
    group: str | None = None
    task: str | None = None
    clients: bool | None = None
    out: str | None = None
    batch_size: int | None = None
    device: str = "auto"
    root: str = "lightning_logs"
    base: str | None = None

    def __post_init__(self) -> None:
        if self.batch_size is not None and self.batch_size < 1:
            raise InputError.of("batch_size", self.batch_size, "an integer >= 1")
        if self.out is not None and not os.path.isdir(os.path.expanduser(self.out)):
            raise InputError.of("out", self.out, "a folder that exists")


def run(arguments: Sequence[str]) -> int:
    """Evaluates a run, prints tables or JSON, and writes the confusion matrices as pictures.

    Raises:
        InputError: The run, the data or an argument can't be used.
    """
    words = read_words("evaluate", arguments, KEYS, ("json",))
    options = words.options(Options)
    from flt.run.stored import export_of

    export_of(words.runs[0], options.root)  # refused before torch is imported
    print(f"flt evaluate: {words.runs[0]}", file=sys.stderr, flush=True)
    found = _evaluated(words, options)
    if "json" in words.flags:
        print(json.dumps(found.as_dict(), indent=1, ensure_ascii=True))
    else:
        _show(found)
    for path in _pictures(found, words.runs[0], options):
        print(f"confusion matrix: {path}", file=sys.stderr)
    return 0


def _evaluated(words: Words, options: Options) -> Evaluation:
    from flt.cli.bars import bar
    from flt.core.imports import import_without_gc

    import_without_gc("flt.inference.evaluate", freeze=True)
    from flt.inference.evaluate import evaluate
    from flt.inference.evaluation import Evaluation

    overrides = [text for text in words.overrides("data") if not text.startswith("data=")]
    with bar("batches") as move:
        found = evaluate(
            words.runs[0], options.data, options.split, group=options.group, task=options.task,
            clients=options.clients, overrides=overrides, batch_size=options.batch_size, device=options.device,
            root=options.root, base=options.base,
            watch=lambda name, done, all: move(done, all, name),
        )  # fmt: skip
    assert isinstance(found, Evaluation), "no module is given"
    return found


def _pictures(found: Evaluation, run: str, options: Options) -> list[Path]:
    """Writes the confusion matrix of each task to out=, or to the run's folder. An export may be in no such folder.

    If the run's folder can't be written, a line says so: the figures are what was asked for.
    """
    from flt.core.files import reported, system_message
    from flt.inference.evaluation import write_pictures
    from flt.run.stored import find_run, run_around

    inside = run_around(find_run(run, options.root))
    if options.out is not None:
        with reported("out", options.out, "a folder that can be written"):
            return write_pictures(found, Path(os.path.expanduser(options.out)))
    try:
        return [] if inside is None else write_pictures(found, inside)
    except OSError as error:
        why = f"{system_message(error)}; out= names another folder"
        print(f"the confusion matrix isn't written to the run's folder: {why}", file=sys.stderr)
        return []


def _show(found: Evaluation) -> None:
    from rich.console import Console

    console = Console(highlight=False)
    for task in found.tasks:
        console.print(_overview(found, task))
        if task.scores.classes and task.model:
            console.print(_classes(task))
        if task.clients:
            console.print(_clients(task))
    if len(found.tasks) > 1:
        figures = ", ".join(
            f"{name.replace('_', ' ')} {value:.4f}" for name, value in found.metrics.items() if name != "entropy"
        )
        console.print(f" mean of {len(found.tasks)} tasks: {figures}", soft_wrap=True)


def _table(title: str, *columns: str) -> Any:
    from rich import box
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE_HEAD, title=Text(printable(title)) if title else None, title_justify="left")
    table.add_column(columns[0], overflow="fold")
    for column in columns[1:]:
        table.add_column(column, justify="right")
    return table


def _overview(found: Evaluation, task: TaskEvaluation) -> Any:
    """Returns the table with a row for each model and value. The first row has the task's figures."""
    where = ", ".join(filter(None, [found.data, found.split, task.task if len(found.tasks) > 1 else ""]))
    rows = _rows(task.models)
    first = [row for row in rows if row[0] == task.model]
    if not task.model:
        first = [(f"mean of {len(task.models)} clients", task.scores.examples, _means(task.models))]
    if task.values:
        examples = sum(scores.examples for scores in task.values.values())
        first = [(f"mean of {len(task.values)} values", examples, task.metrics), *_rows(task.values), *first]
    table = _figures(where, "model", [*first, *(row for row in rows if row[0] != task.model)], "models;")
    table.caption = "; ".join(filter(None, [_head(task), table.caption])) or None
    return table


def _head(task: TaskEvaluation) -> str:
    """Returns the classes of the head of the task's model, whose name may be only their number. Empty: no such head."""
    head = task.model.rpartition("/")[2]
    names = [printable(one.name) for one in task.scores.classes]
    if not head.startswith("head_") or not names:
        return ""
    more = f" and {len(names) - WORST} more" if len(names) > WORST else ""
    return f"{head} is the head for the classes {', '.join(names[:WORST])}{more}"


def _clients(task: TaskEvaluation) -> Any:
    """Returns the table of the clients' held-out examples: all clients, or the worst ones if there are many."""
    from flt.inference.evaluation import deviations, worst
    from flt.run.summary import worst_of

    own = list(task.clients.values())
    total = sum(scores.examples for scores in own)
    head: list[Row] = [
        (f"mean of {len(own)} clients", f"{total:,} in all", _means(task.clients)),
        ("standard deviation", None, deviations(own)),
        (worst_of(len(own), several=False), None, worst(own)),
    ]
    rows = _rows(task.clients)
    few = len(rows) <= MOST_ROWS - len(head)
    rows = rows if few else sorted(rows, key=lambda row: row[2]["accuracy"])[:WORST]
    table = _figures("held-out examples of the clients", "client", [*head, *rows], "")
    if not few:
        table.caption = f"the {WORST} clients with the lowest accuracy; --json has all of them"
    return table


Row = tuple[str, int | str | None, dict[str, float]]
"""Name, number of examples or words for it, and metrics."""


def _rows(scores: Mapping[str, Scores]) -> list[Row]:
    return [(name, one.examples, dict(one.metrics)) for name, one in scores.items()]


def _means(scores: Mapping[str, Scores]) -> dict[str, float]:
    from flt.inference.evaluation import means

    return means([one.metrics for one in scores.values()])


def _figures(title: str, what: str, rows: Sequence[Row], more: str) -> Any:
    from rich.text import Text

    names = [name for name in rows[0][2] if name != "entropy"]
    table = _table(title, what, "examples", *(name.replace("_", " ") for name in names))
    for name, examples, metrics in rows[:MOST_ROWS]:
        count = f"{examples:,}" if isinstance(examples, int) else examples or ""
        table.add_row(Text(printable(name)), count, *(f"{metrics[key]:.4f}" for key in names))
    if len(rows) > MOST_ROWS:
        table.caption = f"and {len(rows) - MOST_ROWS} more {more} --json has all of them"
    return table


def _classes(task: TaskEvaluation) -> Any:
    from rich.text import Text

    table = _table("", "class", "precision", "recall", "F1", "examples")
    for one in task.scores.classes[:MOST_ROWS]:
        figures = (f"{figure:.4f}" for figure in (one.precision, one.recall, one.f1))
        table.add_row(Text(printable(one.name)), *figures, f"{one.support:,}")
    if len(task.scores.classes) > MOST_ROWS:
        table.caption = f"and {len(task.scores.classes) - MOST_ROWS} more classes; --json has all of them"
    return table
