import functools
import importlib.util
import io
import re
import sys
from importlib.machinery import ModuleSpec
from types import ModuleType, SimpleNamespace

import pytest
from fake_federator import clients_of, federator_of, figures
from rich.console import Console

from flt.callbacks import notebook as notebook_module
from flt.callbacks import progress
from flt.callbacks.progress import Progress
from flt.callbacks.timer import Timer
from flt.server.callback import FedCallback

HIDE, SHOW = "\x1b[?25l", "\x1b[?25h"


def pipe():
    return Console(file=io.StringIO(), width=100)


def terminal(width=100):
    return Console(file=io.StringIO(), width=width, force_terminal=True, color_system=None, _environ={"TERM": "xterm"})


def lines_of(console):
    return console.file.getvalue().splitlines()


class TestInAPipe:
    def test_first_line_says_what_runs_and_each_round_is_one_line(self):
        console = pipe()
        federator_of([Progress("hafl on agnews", console)]).fit()
        assert lines_of(console) == [
            "hafl on agnews  rounds 1-3  clients 12",
            "round 1/3  clients 12  train_loss 2.000  val_acc 0.510  up 120.3 kB  down 240.6 kB   4.1 s",
            "round 2/3  clients 12  train_loss 1.000  val_acc 0.520  up 120.3 kB  down 240.6 kB   4.1 s",
            "round 3/3  clients 12  train_loss 0.667  val_acc 0.530  up 120.3 kB  down 240.6 kB   4.1 s",
        ]

    def test_columns_stay_aligned_when_numbers_gain_digits(self):
        console = pipe()
        federator_of([Progress("x", console)], rounds=10).fit()
        first, *_, last = lines_of(console)[1:]
        assert [first.index(word) for word in ("clients", "train_loss", "up")] == [
            last.index(word) for word in ("clients", "train_loss", "up")
        ]

    def test_each_line_is_flushed_when_its_round_ends(self):
        flushed = []

        class Sink(io.StringIO):
            def flush(self):
                flushed.append(self.getvalue().count("\n"))

        federator_of([Progress("x", Console(file=Sink()))]).fit(until=2)
        assert {1, 2, 3} <= set(flushed)

    def test_no_control_codes_are_written(self):
        console = pipe()
        federator_of([Progress("x", console)]).fit()
        assert "\x1b" not in console.file.getvalue()

    def test_brackets_in_the_title_are_no_markup(self):
        console = pipe()
        federator_of([Progress("x [bold] :smile:", console)]).fit(until=1)
        assert lines_of(console)[0].startswith("x [bold] :smile:  rounds")

    def test_a_long_line_is_not_broken(self):
        console = Console(file=io.StringIO(), width=20)
        federator_of([Progress("x", console)]).fit(until=1)
        assert len(lines_of(console)) == 2

    def test_jobs_are_counted_where_clients_have_several(self):
        console = pipe()
        federator_of([Progress("x", console)], clients_=clients_of(3, tasks=("a", "b"))).fit(until=1)
        assert lines_of(console)[0] == "x  rounds 1-3  clients 3  jobs 6"

    @pytest.mark.parametrize(("tasks", "unit"), [(("a",), "clients"), (("a", "b"), "jobs")])
    def test_a_long_round_says_how_much_of_it_is_done(self, monkeypatch, tasks, unit):
        monkeypatch.setattr(progress, "SILENCE", -1.0)
        console = pipe()
        federator_of([Progress("x", console)], clients_=clients_of(1, tasks=tasks)).fit(until=1)
        assert lines_of(console)[1] == f"  round 1/3: 1 of {len(tasks)} {unit} trained"

    def test_a_module_that_logs_nothing_still_has_its_line(self):
        console = pipe()
        federator_of([Progress("x", console)], figures=lambda round: {}, measure=lambda job, round: {}).fit(until=1)
        assert lines_of(console)[1] == "round 1/3  clients 12"

    def test_a_metric_of_another_name_is_shown_by_it(self):
        console = pipe()
        federator_of([Progress("x", console)], figures=lambda round: {"round/val_f1": 0.25}).fit(until=1)
        assert lines_of(console)[1].endswith("val_f1 0.250")

    def test_without_a_global_model_the_mean_of_the_clients_is_shown(self):
        console = pipe()
        only = {key: value for key, value in figures(1).items() if key.startswith("clients/val")}
        federator_of([Progress("x", console)], figures=lambda round: only).fit(until=1)
        assert lines_of(console)[1].endswith("clients/val_acc 0.600")

    def test_an_empty_cohort_is_a_round_of_no_clients(self):
        console = pipe()
        federator_of([Progress("x", console)], cohort=[], figures=lambda round: {}).fit(until=1)
        assert lines_of(console)[1] == "round 1/3  clients  0"

    def test_resume_goes_on_after_the_round_of_the_state(self):
        console = pipe()
        federator = federator_of([])
        federator.fit(until=2)
        federator.callbacks = [Progress("x", console)]
        federator.fit()
        first, only = lines_of(console)
        assert first == "x  rounds 3-3  clients 12  resumes after round 2"
        assert only.startswith("round 3/3")

    def test_a_long_run_prints_about_a_hundred_lines_with_its_first_and_last_round(self):
        console = pipe()
        federator_of([Progress("x", console)], rounds=950, clients=1).fit()
        first, *rounds = lines_of(console)
        assert [int(line.split()[1].split("/")[0]) for line in rounds[:3]] == [1, 10, 20]
        assert rounds[-1].startswith("round 950/950")
        assert len(rounds) == 96

    def test_a_long_run_says_something_every_few_seconds(self, monkeypatch):
        monkeypatch.setattr(progress, "SILENCE", -1.0)
        console = pipe()
        federator_of([Progress("x", console)], rounds=950, cohort=[], clients=1).fit(until=5)
        assert len(lines_of(console)) == 6


class Area:
    """The output areas of a notebook: what each shows at the moment, and how often each was drawn."""

    def __init__(self):
        self.shown, self.drawn = [], []

    def display(self, page, display_id):
        assert display_id is True
        self.shown.append(page)
        self.drawn.append(1)
        return SimpleNamespace(update=functools.partial(self.update, len(self.shown) - 1))

    def update(self, number, page):
        self.shown[number] = page
        self.drawn[number] += 1


@pytest.fixture
def area(monkeypatch):
    """IPython isn't needed to test: flt uses one function and one class of it."""
    area = Area()
    module = ModuleType("IPython")
    module.__spec__ = ModuleSpec("IPython", None)
    shown = ModuleType("IPython.display")
    shown.HTML, shown.display = str, area.display
    monkeypatch.setitem(sys.modules, "IPython", module)
    monkeypatch.setitem(sys.modules, "IPython.display", shown)
    return area


def notebook():
    return Console(file=io.StringIO(), force_jupyter=True)


class TestInANotebook:
    def test_there_is_one_output_area_that_ends_with_the_newest_rounds(self, area):
        console = notebook()
        federator_of([Progress("hafl <b>", console)], rounds=40, clients=3).fit()
        assert console.file.getvalue() == ""
        (page,) = area.shown
        assert "\x1b" not in page
        assert page.startswith("<pre")
        lines = page.splitlines()
        assert "hafl &lt;b&gt;  rounds 1-40  clients 3" in lines[0]
        assert lines[1] == "(28 lines)"
        assert [line.split()[1] for line in lines[2:14]] == [f"{n}/40" for n in range(29, 41)]
        assert "━" not in page

    def test_while_it_runs_there_are_bars_and_the_client_in_work(self, area, monkeypatch):
        monkeypatch.setattr(notebook_module, "PAUSE", -1.0)
        shown = Progress("x", notebook())
        federator = federator_of([shown, Stop(after=15)])
        with pytest.raises(KeyboardInterrupt):
            federator.fit()
        (page,) = area.shown
        text = re.sub("<[^>]*>", "", page)
        assert re.search(r"rounds .* 1/3 .* left", text)
        assert re.search(r"3/12 training client 2", text)
        shown.on_exception(federator, KeyboardInterrupt())
        assert "training client" not in area.shown[0]

    def test_it_is_redrawn_a_few_times_a_second_at_most_beside_the_lines(self, area, monkeypatch):
        monkeypatch.setattr(notebook_module, "PAUSE", 1000.0)
        federator_of([Progress("x", notebook())]).fit()
        assert area.drawn == [1 + 3 + 1]  # the area, the rounds, the end

    def test_without_ipython_lines_are_printed(self, monkeypatch):
        monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
        shown = Progress("x", Console(file=io.StringIO(), force_jupyter=True))
        federator = federator_of([shown])
        federator.fit(until=1)
        assert shown._display is None


class TestOnATerminal:
    def test_finished_rounds_stay_readable_above_the_display(self):
        console = terminal()
        federator_of([Progress("x", console)]).fit()
        text = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", console.file.getvalue())
        assert [text.count(f"round {n}/3  clients 12  train_loss") for n in (1, 2, 3)] == [1, 1, 1]

    def test_display_shows_rounds_clients_the_client_in_work_and_the_last_figures(self):
        console = terminal()
        progress = Progress("x", console)
        federator = federator_of([progress, Stop(after=15)])
        with pytest.raises(KeyboardInterrupt):
            federator.fit()
        shown = Console(file=io.StringIO(), width=100)
        shown.print(progress._display._drawn())  # not stopped: nobody has called on_exception
        rounds, clients, last = lines_of(shown)[:3]
        assert "rounds" in rounds
        assert re.search(r"1/3 .* left", rounds)
        assert re.search(r"clients .* 3/12 training client 2", clients)
        assert last == "train_loss 1.000  val_acc 0.510  total up 120.3 kB  total down 240.6 kB"
        progress.on_exception(federator, KeyboardInterrupt())

    def test_an_exception_gives_the_cursor_back_and_ends_the_redirection_of_output(self):
        console = terminal()
        progress = Progress("x", console)
        federator = federator_of([progress, Stop(after=2)])
        with pytest.raises(KeyboardInterrupt):
            federator.fit()
        written = console.file.getvalue()
        assert written.count(HIDE) > written.count(SHOW)
        federator.call("on_exception", KeyboardInterrupt())
        written = console.file.getvalue()
        assert written.count(HIDE) == written.count(SHOW)
        assert progress._display is None

    def test_an_exception_before_the_start_is_harmless(self):
        Progress("x", terminal()).on_exception(federator_of([]), ValueError())

    def test_time_left_is_that_of_this_process(self):
        console = terminal()
        federator = federator_of([], rounds=100)
        federator.fit(until=98)
        progress = Progress("x", console)
        federator.callbacks = [progress]
        federator.call("on_fit_start")
        progress._display.begun -= 50  # one of two rounds in 50 s, not 99 of 100
        federator.run_round()
        note = progress._display.bars.tasks[0].fields["note"]
        assert 49 < float(note.split()[0]) < 60
        federator.call("on_fit_end")

    def test_a_terminal_without_cursor_gets_lines(self):
        console = Console(file=io.StringIO(), width=100, force_terminal=True, _environ={"TERM": "dumb"})
        federator_of([Progress("x", console)]).fit()
        assert len(lines_of(console)) == 4


class TestTimer:
    def test_seconds_of_rounds_add_up_to_the_total(self):
        federator = federator_of([Timer()], figures=lambda round: {})
        federator.fit()
        seconds = [metrics["time/round_seconds"] for metrics in federator.history]
        assert all(second > 0 for second in seconds)
        assert federator.history[-1]["time/total_seconds"] == pytest.approx(sum(seconds))

    def test_an_attempt_that_failed_is_part_of_its_rounds_time(self):
        timer, federator = Timer(), federator_of([], figures=lambda round: {})
        timer.on_round_start(federator)
        begun = timer._start
        federator.attempt = 1
        timer.on_round_start(federator)
        assert timer._start == begun

    def test_total_survives_a_resume(self):
        timer, resumed = Timer(), Timer()
        timer.total = 100.0
        resumed.load_state_dict(timer.state_dict())
        federator = federator_of([resumed])
        federator.fit(until=1)
        assert 100 < federator.metrics["time/total_seconds"] < 101


class Stop(FedCallback):
    """Interrupts after so many jobs."""

    def __init__(self, after):
        self.left = after

    def on_job_end(self, federator, update):
        self.left -= 1
        if self.left == 0:
            raise KeyboardInterrupt
