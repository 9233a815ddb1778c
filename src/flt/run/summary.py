"""What a run came to: the final table, and where things are."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from flt.core import formatting

History = Sequence[Mapping[str, float]]
FOLDERS = ("adapter", "model", "checkpoints")
"""What a run's folder may hold."""
_CLUSTERING = "round/clustering_acc"


def render(
    history: History, path: Path, elapsed: float, console: Console | None = None, logdir: str = "lightning_logs"
) -> None:
    """Prints the final table and where things are.

    Args:
        history: The figures of all rounds.
        path: The run's folder.
        elapsed: Seconds that this process took.
        console: Where to; standard output by default.
        logdir: What TensorBoard is pointed at.
    """
    console = console or Console()
    console.print(table(history, path, elapsed))
    found = places(path, logdir)
    width = max(map(len, found))
    for what, where in found.items():
        console.print(Text(f" {what:<{width}}   {where}"), soft_wrap=True)  # a path is copied whole


def table(history: History, path: Path, elapsed: float) -> Table:
    """Accuracy and loss of the global and of the clients' models, and what they cost.

    Args:
        history: The figures of all rounds.
        path: The run's folder, which names the table.
        elapsed: Seconds that this process took, for a history without times.
    """
    rows = list(models(history[-1]))
    columns = [_header(next(filter(None, (pick(found) for _, found in rows)), what)) for pick, what in _PICKS]
    shown = Table(box=box.SIMPLE_HEAD, title=f"{path.parent.name} {path.name}".strip(), title_justify="left")
    shown.add_column("model")
    for column in columns:
        shown.add_column(column, justify="right")
    for what, found in rows:
        shown.add_row(what, *(_figure(found, pick(found)) for pick, _ in _PICKS))
    shown.add_section()
    for what, total, each in costs(history, elapsed):
        shown.add_row(what, total, each)
    return shown


def models(last: Mapping[str, float]) -> Iterator[tuple[str, dict[str, float]]]:
    """Each evaluated model or average of models, and its figures by the names under which its module logs them."""
    yield "global model, validation", formatting.under(last, "round/")
    if test := formatting.under(last, "test/"):
        yield "global model, test", test
    yield "clients' models as distributed, mean", formatting.distributed(last)
    yield "clients' models as distributed, worst tenth", formatting.under(last, "clients/", formatting.WORST)
    yield "clients' models after the fit, mean", formatting.under(last, "clients/fitted_")
    for task in dict.fromkeys(key.rpartition("/")[0] for key in last if key.startswith("task/")):
        yield f"task {task.removeprefix('task/')}", formatting.under(last, f"{task}/")


def costs(history: History, elapsed: float) -> Iterator[tuple[str, str, str]]:
    """What the run took: in all, and per round."""
    last, rounds = history[-1], len(history)
    if _CLUSTERING in last:
        yield "jobs in the group of their task", f"{last[_CLUSTERING]:.4f}", ""
    yield "rounds", str(rounds), ""
    for way, total in formatting.under(last, "comm/total_").items():
        yield f"bytes {way}", formatting.size(total), f"{formatting.size(total / rounds)} per round"
    if "comm/reduction" in last:
        less, last_round = last["comm/reduction"], last["comm/reduction_round"]
        yield "parameters up, fewer than the whole model's", f"{less:.2%}", f"{last_round:.2%} in the last round"
    seconds = last.get("time/total_seconds", elapsed)  # of all the processes that a resumed run took
    yield "time", formatting.duration(seconds), f"{formatting.duration(seconds / rounds)} per round"


def places(path: Path, logdir: str) -> dict[str, str]:
    """What lies where, and the command that shows the curves of this run beside those of others."""
    found = {name: str(path / name) for name in FOLDERS if (path / name).is_dir()}
    return {"run": str(path), **found, "curves": f"tensorboard --logdir {logdir}"}


_PICKS = ((formatting.score, "accuracy"), (formatting.loss, "loss"))


def _header(name: str) -> str:
    return {"acc": "accuracy"}.get(name.removeprefix("val_"), name.removeprefix("val_"))


def _figure(found: Mapping[str, float], name: str | None) -> str:
    return "-" if name is None else f"{found[name]:.4f}"
