"""Shows the progress of a federation: lines for rounds and, on a terminal or in a notebook, a live display."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping

from rich.console import Console, Group
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn
from rich.progress import Progress as Bars
from rich.text import Text

from flt.callbacks.notebook import NotebookLive, is_notebook
from flt.core import formatting
from flt.protocol.messages import JobId, Payload, Update
from flt.server.callback import FedCallback
from flt.server.federator import Federator

_GAP, _SECONDS = "  ", "time/round_seconds"
SILENCE = 10.0
"""Time in seconds. Without a live display, a line is printed during a round if none was printed for this long."""
LINES = 100
"""Largest number of lines for the rounds of a long run, without a live display."""


class Progress(FedCallback):
    """Shows the progress of the whole federation.

    On a terminal, the display consists of two bars and the newest metrics. The first bar counts the rounds and shows
    the remaining time. The second bar counts the clients of the round and shows which client is being trained. Above
    the bars, one line for each finished round stays on the screen. A notebook shows the same in one output area, with
    the newest rounds only. If the output is neither, there are no bars, only printed lines: at most LINES for the
    rounds of a long run, and a line wherever none was printed for SILENCE seconds.

    Args:
        title: Name of the run, for the first line.
        console: Console to print to. If None, standard output is used.
    """

    def __init__(self, title: str = "federation", console: Console | None = None) -> None:
        self.title, self.console = title, console or Console()
        self._display: _Display | None = None
        self._notebook: NotebookLive | None = None
        self._last_line_at = 0.0
        self._ended = 0

    def on_fit_start(self, federator: Federator) -> None:
        """Prints the first line and starts the display."""
        if is_notebook(self.console):
            self._notebook = NotebookLive(self.console.width)
        self._print(first_line(self.title, federator))
        if self._notebook or (self.console.is_terminal and not self.console.is_dumb_terminal):
            self._display = _Display(self.console, federator, self._notebook)

    def on_round_start(self, federator: Federator) -> None:
        """Sets the bar of the clients back to 0."""
        self._ended = 0
        if self._display:
            self._display.begin_round(federator)

    def on_job_start(self, federator: Federator, payload: Payload) -> None:
        """Shows the number of the client that is being trained."""
        if self._display:
            self._display.begin_job(payload)

    def on_job_end(self, federator: Federator, update: Update) -> None:
        """Moves the bars. Without bars, prints a line if no line has been printed for SILENCE seconds."""
        if self._display:
            self._display.end_job(federator, update)
        else:
            self._ended += 1
            done, expected = self._ended, max(self._ended, _expected(federator, len(federator.cohort)))
            unit = "clients" if len({job.client for job in federator.cohort}) == len(federator.cohort) else "jobs"
            self._say_at_times(f"  round {federator.round}/{federator.rounds}: {done} of {expected} {unit} trained")

    def on_evaluation(self, federator: Federator, done: int, batches: int) -> None:
        """Shows how many batches are done while a global or received model is evaluated."""
        if self._display:
            self._display.evaluate(done, batches)
        else:
            self._say_at_times(f"  evaluation: {done} of {batches} batches done")

    def on_log(self, federator: Federator, metrics: dict[str, float]) -> None:
        """Prints the line of the round, after all callbacks have logged their metrics."""
        if self._display:
            self._display.end_round(metrics)
        every = math.ceil(federator.rounds / LINES)
        if self._display or federator.round % every == 0 or federator.round in (1, federator.rounds):
            self._print(round_line(federator, metrics))
        else:
            self._say_at_times(round_line(federator, metrics))

    def on_fit_end(self, federator: Federator) -> None:
        """Stops the display."""
        self._stop()

    def on_exception(self, federator: Federator, exception: BaseException) -> None:
        """Stops the display, so that the terminal works normally again."""
        self._stop()

    def _say_at_times(self, line: str) -> None:
        """Prints a line if no line has been printed for SILENCE seconds, to show that the run is still working."""
        if time.perf_counter() - self._last_line_at > SILENCE:
            self._print(line)

    def _print(self, line: str) -> None:
        self._last_line_at = time.perf_counter()
        if self._notebook:
            self._notebook.add(line)
            return
        # Without Text, rich would interpret markup in the line and colour it. soft_wrap avoids line breaks.
        self.console.print(Text(line), soft_wrap=True)

    def _stop(self) -> None:
        if self._display:
            self._display.live.stop()
            self._display = self._notebook = None


class _Display:
    """Two bars and a line of metrics, which rich redraws in the background."""

    def __init__(self, console: Console, federator: Federator, notebook: NotebookLive | None = None) -> None:
        self.begun = time.perf_counter()
        self.first = federator.state.rounds
        self.loss: dict[str, float] = {}
        self.ended: list[JobId] = []
        self.last: dict[str, float] = federator.history[-1] if federator.history else {}
        columns = (BarColumn(40), MofNCompleteColumn(), TextColumn("{task.fields[note]}"))
        self.bars = Bars(TextColumn("{task.description}"), *columns, console=console)
        self.rounds = self.bars.add_task("rounds", total=federator.rounds, completed=self.first, note="")
        self.jobs = self.bars.add_task("clients", total=None, note="")
        terminal = Live(console=console, refresh_per_second=4, transient=True)
        self.live: Live | NotebookLive = terminal if notebook is None else notebook
        self.live.update(self._drawn())
        self.live.start()

    def begin_round(self, federator: Federator) -> None:
        """Sets the bar of the clients back to 0."""
        self.ended = []
        self.bars.reset(self.jobs, total=_expected(federator, len({job.client for job in federator.cohort})), note="")

    def begin_job(self, payload: Payload) -> None:
        """Shows the number of the client that is being trained."""
        self.bars.update(self.jobs, note=f"training client {payload.job[0]}")
        self.live.update(self._drawn())

    def end_job(self, federator: Federator, update: Update) -> None:
        """Moves both bars. If this process trains n jobs of a round, each job moves the bar of rounds by 1/n round."""
        losses = formatting.between(update.metrics, "fit/")
        self.loss = {name: losses[name]} if (name := formatting.loss(losses)) else self.loss
        self.ended.append(update.job)
        done = federator.state.rounds + min(1.0, len(self.ended) / _expected(federator, len(federator.cohort)))
        self.bars.update(self.jobs, completed=len({client for client, _ in self.ended}))
        self.bars.update(self.rounds, completed=done, note=self._left(done - self.first, federator.rounds - done))
        self.live.update(self._drawn())

    def evaluate(self, done: int, batches: int) -> None:
        """Shows how many batches are done while a global or received model is evaluated."""
        self.bars.update(self.jobs, note=f"evaluation, batch {done} of {batches}")
        self.live.update(self._drawn())

    def end_round(self, metrics: Mapping[str, float]) -> None:
        """Shows the metrics of the round."""
        self.last = {**self.last, **metrics}  # keeps the metrics of an older evaluation if this round had no evaluation
        self.bars.update(self.rounds, completed=metrics["round"])
        self.live.update(self._drawn())

    def _left(self, done: float, left: float) -> str:
        return f"{formatting.duration((time.perf_counter() - self.begun) / done * left)} left"

    def _drawn(self) -> Group:
        cells = [f"{name} {value:.3f}" for name, value in (self.loss | shown_score(self.last)).items()]
        totals = formatting.between(self.last, "comm/total_")
        cells += [f"total {way} {formatting.size(total)}" for way, total in totals.items()]
        return Group(self.bars, Text(_GAP.join(cells), style="dim", no_wrap=True, overflow="ellipsis"))


def _expected(federator: Federator, number: int) -> int:
    """Returns this process's share of a number of jobs or clients, assuming that all processes are equally fast."""
    return math.ceil(number / federator.engine.processes.size)


def first_line(title: str, federator: Federator) -> str:
    """Returns the first line, with the title, the rounds to run, and the number of clients.

    If clients have several jobs, the line also contains the number of jobs. If the run is resumed, the line also
    contains the last finished round.
    """
    first, last = federator.state.rounds + 1, federator.rounds
    clients, jobs = len(federator.clients), sum(len(client.data) for client in federator.clients.values())
    cells = [title, f"rounds {first}-{last}", f"clients {clients}"]
    cells += [f"jobs {jobs}"] if jobs != clients else []
    cells += [f"resumes after round {first - 1}"] if first > 1 else []
    return _GAP.join(cells)


def round_line(federator: Federator, metrics: Mapping[str, float]) -> str:
    """Returns the line of a finished round. The columns of all lines are aligned."""
    clients = len({job.client for job in federator.cohort})
    digits, most = len(str(federator.rounds)), len(str(len(federator.clients)))
    cells = [f"round {metrics['round']:>{digits}}/{federator.rounds}", f"clients {clients:>{most}}"]
    losses = formatting.between(metrics, "clients/fit_")
    cells += [f"{name} {losses[name]:.3f}"] if (name := formatting.loss(losses)) else []
    cells += [f"{name} {value:.3f}" for name, value in shown_score(metrics).items()]
    cells += [f"{way} {formatting.size(n):>8}" for way, n in formatting.between(metrics, "comm/bytes_").items()]
    cells += [f"{formatting.duration(metrics[_SECONDS]):>6}"] if _SECONDS in metrics else []
    return _GAP.join(cells)


def shown_score(metrics: Mapping[str, float]) -> dict[str, float]:
    """Returns the name and value of the score to show, or an empty dict if no score was measured.

    The score of the global model is shown if there is one, else the mean score of the clients' received models.
    """
    for prefix, figures in (
        ("", formatting.between(metrics, "round/")),
        ("clients/", formatting.received_metrics(metrics)),
    ):
        if name := formatting.score(figures):
            return {prefix + name: figures[name]}
    return {}
