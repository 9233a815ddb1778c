"""Summary of a finished run: a table with metrics and costs, and the folders of the run."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from flt.core import formatting
from flt.run.stored import REPORT, label_of

History = Sequence[Mapping[str, float]]
FOLDERS = ("adapter", "model", "checkpoints")
"""Subfolders that a run's folder may have."""
SINGLE = 20
"""With fewer jobs than this number, the worst 10 % of the jobs are a single job."""
_CLUSTERING = "round/clustering_acc"


def render(
    history: History,
    path: Path,
    elapsed: float,
    console: Console | None = None,
    logdir: str | None = "lightning_logs",
    worst: str = "worst 10 % of clients",
    further: Mapping[str, str] = MappingProxyType({}),
) -> None:
    """Prints the table of metrics and costs, and the folders of the run.

    Args:
        history: Metrics of all rounds.
        path: Folder of the run.
        elapsed: Seconds that this process took. Shown only if the history contains no times.
        console: Console to print to. None: standard output.
        logdir: Folder in the TensorBoard command that is printed. None: no such command is printed.
        worst: Label of the worst 10 % of the models in the table, see :func:`worst_of`.
        further: Further lines below the table, see :func:`next_steps`.
    """
    console = console or Console()
    console.print(table(history, path, elapsed, worst))
    entries = places(path, logdir, further)
    width = max(map(len, entries))
    lines = "\n".join(f" {name:<{width}}   {value}" for name, value in entries.items())
    console.print(Text(lines), soft_wrap=True)  # a path stays on one line, for copying


def table(history: History, path: Path, elapsed: float, worst: str) -> Table:
    """Returns the table. It shows the accuracy and loss of the global model and the clients' models, and the costs.

    Args:
        history: Metrics of all rounds.
        path: Folder of the run, for the table's title.
        elapsed: Seconds that this process took. Shown only if the history contains no times.
        worst: Label of the worst 10 % of the models in the table.
    """
    header, *rows = cells(history, elapsed, worst)
    measured = len(list(models(history[-1], worst)))
    caption = None
    if formatting.received_metrics(history[-1]):
        caption = "Models of clients are evaluated on the examples that each client holds out."
    title = f"results of {label_of(path)}"
    shown = Table(box=box.SIMPLE_HEAD, title=title, title_justify="left", caption=caption, caption_justify="left")
    for number, column in enumerate(header):
        shown.add_column(column, justify="right" if number else "left")
    for number, row in enumerate(rows, start=1):
        shown.add_row(*row, end_section=number == measured)
    return shown


def cells(history: History, elapsed: float = 0.0, worst: str = "worst 10 % of clients") -> list[tuple[str, str, str]]:
    """Returns the rows of the table as texts: the header, a row for each model, and a row for each cost.

    Args:
        history: Metrics of all rounds.
        elapsed: As in :func:`table`.
        worst: As in :func:`table`.
    """
    rows = list(models(history[-1], worst))
    accuracy, loss = (
        _header(next(filter(None, (pick(figures) for _, figures in rows)), name)) for pick, name in _PICKS
    )
    measured = [(name, *(_figure(figures, pick(figures)) for pick, _ in _PICKS)) for name, figures in rows]
    return [("model", accuracy, loss), *measured, *costs(history, elapsed)]  # type: ignore[list-item]  # of three texts


def worst_of(jobs: int, several: bool) -> str:
    """Returns the table's label for the worst 10 % of the evaluated models, which may be a single model.

    Args:
        jobs: Number of jobs whose models were evaluated.
        several: Whether any client has several jobs.

    Example:
        >>> worst_of(10, False), worst_of(100, False), worst_of(100, True)
        ('worst client', 'worst 10 % of clients', 'worst 10 % of jobs')
    """
    unit = "job" if several else "client"
    return f"worst {unit}" if jobs < SINGLE else f"worst 10 % of {unit}s"


def models(last: Mapping[str, float], worst: str) -> Iterator[tuple[str, dict[str, float]]]:
    """Yields (label, metrics) for each row of the table that describes one model or the mean of several models.

    The metrics have the names under which the module logs them, such as ``val_acc``.
    """
    yield "global model, validation", formatting.between(last, "round/")
    if test := formatting.between(last, "test/"):
        yield "global model, test", test
    if own := formatting.between(last, "client_test/"):
        yield "final models, each client's own test", own
    yield "models as received by clients, mean", formatting.received_metrics(last)
    # "by clients" is left out of this label, so that the table fits into 80 columns.
    yield f"models as received, {worst}", formatting.between(last, "clients/", formatting.WORST)
    yield "models after local training, mean", formatting.between(last, "clients/fitted_")
    for task in dict.fromkeys(key.rpartition("/")[0] for key in last if key.startswith("task/")):
        yield f"task {task.removeprefix('task/')}, validation", formatting.between(last, f"{task}/")


def costs(history: History, elapsed: float) -> Iterator[tuple[str, str, str]]:
    """Yields (label, value for the whole run, value for one round) for each cost of the run."""
    last, rounds = history[-1], len(history)
    if _CLUSTERING in last:
        yield "jobs in the group of their task", _percent(last[_CLUSTERING]), ""
    yield "rounds", str(rounds), ""
    for way, meaning in _WAYS.items():
        if (total := last.get(f"comm/total_{way}")) is not None:
            yield f"bytes {way} ({meaning})", formatting.size(total), f"{formatting.size(total / rounds)} per round"
    if "comm/reduction" in last:
        share, last_share = 1 - last["comm/reduction"], 1 - last["comm/reduction_round"]
        yield "share of whole model sent to the server", _percent(share), f"last round: {_percent(last_share)}"
    seconds = last.get("time/total_seconds", elapsed)  # includes the rounds before a resume
    yield "time", formatting.duration(seconds), f"{formatting.duration(seconds / rounds)} per round"
    if (hours := last.get("time/simulated_hours")) is not None:
        simulated = 3600 * hours
        each = formatting.short_duration(simulated / rounds)
        yield "simulated time", formatting.short_duration(simulated), f"{each} per round"
        yield "simulated energy", f"{last['fleet/energy']:.4g} J", f"{last['fleet/energy'] / rounds:.4g} J per round"


def places(path: Path, logdir: str | None, further: Mapping[str, str] = MappingProxyType({})) -> dict[str, str]:
    """Returns label -> text. The texts are the run's folders, and the command that shows the curves of all runs.

    Args:
        path: Folder of the run.
        logdir: Folder in the TensorBoard command. None: no such command is shown.
        further: Further lines, see :func:`next_steps`.
    """
    folders = {name: str(path / name) for name in FOLDERS if (path / name).is_dir()}
    shown = {} if logdir is None else {"show curves": f"tensorboard --logdir {logdir}"}
    return {"run folder": str(path), **folders, **shown, **further}


def next_steps(path: Path, kind: str, report: bool) -> dict[str, str]:
    """Returns label -> text of what can be done with a finished run: its report, and the command that uses its models.

    Args:
        path: Folder of the run.
        kind: Kind of the inputs of flt's own module: text, pair, image or causal. Empty for a user's own module.
        report: Whether the run writes a report.
    """
    steps = {"report": str(path / REPORT)} if report else {}
    if kind:
        steps["ask it" if kind == "causal" else "predict"] = use(str(path), kind)
    return steps


def use(run: str, kind: str) -> str:
    """Returns the command that uses a run's models.

    Args:
        run: Folder of the run.
        kind: Kind of the inputs: text, pair, image or causal.

    Example:
        >>> use("runs/my run", "image")
        "flt predict 'runs/my run' data=images/ out=predictions.csv"
    """
    if kind == "causal":
        return f'flt generate {shlex.quote(run)} prompt="..."'
    return f"flt predict {shlex.quote(run)} data={'images/' if kind == 'image' else 'new.csv'} out=predictions.csv"


_PICKS = ((formatting.score, "accuracy"), (formatting.loss, "loss"))
_WAYS = {"up": "clients to server", "down": "server to clients"}


def _header(name: str) -> str:
    return {"acc": "accuracy"}.get(name.removeprefix("val_"), name.removeprefix("val_"))


def _figure(figures: Mapping[str, float], name: str | None) -> str:
    return "-" if name is None else f"{figures[name]:.4f}"


def _percent(share: float) -> str:
    return f"{100 * share:.2f} %"
