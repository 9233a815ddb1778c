"""The printed form of a plan: tables of 80 columns."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Iterator, Sequence

from rich import box
from rich.console import Console
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from flt.core.formatting import short_duration, size
from flt.protocol.layout import TRAVELLING
from flt.run.planning.outcome import RunPlan
from flt.run.planning.traffic import RoundTraffic

WIDTH = 80
"""Number of columns."""
MEMORY = {
    "built": "program, data and model, once loaded",
    "server": "server: state, sums, copies of weights",
    "fit": "fit: gradients, optimiser, copies",
    "activations": "activations of a batch",
    "peak": "peak of the process, estimated",
}
"""Part of the memory -> its name in the table."""
SECONDS = {
    "step": "an optimiser step",
    "fit": "a fit, besides its steps",
    "evaluation": "an evaluation of the global model",
    "server": "the server, each round",
    "round": "a round, mean",
    "run": "the run",
}
"""Time of a trial -> how it is called in the table."""


def show(plan: RunPlan) -> None:
    """Prints a plan that nothing refuses."""
    console = Console(width=WIDTH, highlight=False)
    for table in (_parameters(plan), _traffic(plan), _clients(plan), _costs(plan)):
        console.print(table)
    for kind, texts in (("warning", plan.warnings), ("note", plan.notes)):
        for text in texts:
            console.print(Padding(Text(f"{kind}: {text}", style="yellow" if kind == "warning" else ""), (0, 0, 0, 1)))


def _parameters(plan: RunPlan) -> Table:
    table = _table(f"plan of {plan.title}", ["parameters", "number", "share", "trained", "sent"])
    whole = sum(role.count for role in plan.parameters.values())
    for role, found in plan.parameters.items():
        if found.count:
            share = f"{100 * found.count / whole:.2f} %"
            table.add_row(role, f"{found.count:,}", share, f"{found.trained:,}", f"{found.sent:,}")
    table.add_section()
    trained, sent = plan.trained, sum(role.sent for role in plan.parameters.values())
    table.add_row("all", f"{whole:,}", "100 %", f"{trained:,}", f"{sent:,}")
    table.add_row("", "", "", f"{100 * trained / whole:.2f} %", f"{100 * sent / whole:.2f} %")
    return table


def _traffic(plan: RunPlan) -> Table:
    columns = ["rounds", "trained", "clients", "rank", "down", "up", "up/client"]
    table = _table("bytes of a round, mean", columns)
    for part in _alike(plan.rounds):
        down, up = (statistics.fmean(sizes) for sizes in ([r.down.bytes for r in part], [r.up.bytes for r in part]))
        each = up / max(statistics.fmean(r.clients for r in part), 1)
        values = [r.round for r in part], [r.clients for r in part], [r.components for r in part]
        number, clients, rank = (_between(column) for column in values)
        amounts = map(size, (down, up, each))
        table.add_row(number, _trained(part), clients, rank, *amounts)
    table.add_section()
    totals = (size(way.bytes) for way in (plan.bytes_down, plan.bytes_up))
    table.add_row(f"all {len(plan.rounds)}", "", "", "", *totals, "")
    return table


def _clients(plan: RunPlan) -> Table:
    table = _table(f"{len(plan.clients)} clients", ["each client", "least", "mean", "most"])
    rows: dict[str, list[float]] = {
        "training examples": [c.examples for c in plan.clients],
        "optimiser steps in a round": [c.steps for c in plan.clients],
        "rank": [c.rank for c in plan.clients if c.rank is not None],
        "fits in the run": [c.fits for c in plan.clients],
    }
    for name, values in rows.items():
        if values:
            table.add_row(name, *(f"{value:,.4g}" if value < 1000 else f"{value:,.0f}" for value in _ends(values)))
    for name, amounts in (
        ("bytes down in the run", [c.bytes_down for c in plan.clients]),
        ("bytes up in the run", [c.bytes_up for c in plan.clients]),
    ):
        table.add_row(name, *map(size, _ends(amounts)))
    return table


def _costs(plan: RunPlan) -> Table:
    table = _table("this machine", ["memory, disk and time", "amount"])
    for name, amount in plan.memory.items():
        table.add_row(MEMORY[name], size(amount))
    table.add_section()
    for name, amount in plan.disk.items():
        if amount:
            table.add_row(f"disk: {name}", size(amount))
    if simulated := [one.simulated_seconds for one in plan.rounds if one.simulated_seconds is not None]:
        table.add_section()
        table.add_row("simulated time of a round, mean", short_duration(statistics.fmean(simulated)))
        table.add_row("simulated time of the run", short_duration(sum(simulated)))
    if plan.seconds:
        table.add_section()
        for name, time in plan.seconds.items():
            table.add_row(f"time of {SECONDS[name]}", short_duration(time))
    return table


def _table(title: str, columns: Sequence[str]) -> Table:
    table = Table(box=box.SIMPLE_HEAD, title=title, title_justify="left", title_style="bold")
    for number, column in enumerate(columns):
        table.add_column(column, justify="right" if number else "left")
    return table


def _alike(rounds: Iterable[RoundTraffic]) -> Iterator[list[RoundTraffic]]:
    """Yields runs of consecutive rounds that train the same tensors. Rounds that alternate are taken together."""
    part: list[RoundTraffic] = []
    for one in rounds:
        if part and one.plan.stage != part[-1].plan.stage:
            yield part
            part = []
        part.append(one)
    yield part


def _trained(part: Sequence[RoundTraffic]) -> str:
    """Returns what is trained in some rounds. The factors of LoRA are named only if one of them isn't trained."""
    kinds = dict.fromkeys(one.plan.train for one in part)
    names = ["adapter, head" if set(train) == set(TRAVELLING) else ", ".join(train) for train in kinds]
    return " or ".join(names)


def _between(values: Sequence[float]) -> str:
    least, most = min(values), max(values)
    return f"{least:.4g}" if least == most else f"{least:.4g} to {most:.4g}"


def _ends(values: Sequence[float]) -> tuple[float, float, float]:
    return min(values), statistics.fmean(values), max(values)
