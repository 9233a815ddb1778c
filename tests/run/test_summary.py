import io
import re
from pathlib import Path

import pytest
from rich.console import Console

from flt.core import formatting
from flt.run import summary

LAST = {
    "round": 10,
    "round/val_acc": 0.87125,
    "round/val_loss": 0.41,
    "clients/steps": 50,
    "clients/val_acc": 0.8,
    "clients/val_acc_worst10": 0.5,
    "clients/val_loss": 0.6,
    "clients/val_loss_worst10": 1.5,
    "clients/fitted_val_acc": 0.9,
    "clients/fit_train_loss": 0.2,
    "comm/bytes_up": 1,
    "comm/total_up": 1_203_000,
    "comm/total_down": 2_406_000,
    "time/total_seconds": 41.0,
}


def printed(last, path, rounds=10, width=100, **kwargs):
    console = Console(file=io.StringIO(), width=width)
    history = [{"round": n} for n in range(1, rounds)] + [last]
    summary.render(history, path, 12.0, console=console, **kwargs)
    return console.file.getvalue()


def cells_of(text):
    """Name of a row -> its other cells."""
    rows = [[cell for cell in line.strip().split("  ") if cell] for line in text.splitlines() if line.strip()]
    return {row[0].strip(): [cell.strip() for cell in row[1:]] for row in rows}


def test_rows_are_the_models_with_accuracy_and_loss(tmp_path):
    cells = cells_of(printed(LAST, tmp_path))
    assert cells["model"] == ["accuracy", "loss"]
    assert cells["global model, validation"] == ["0.8712", "0.4100"]
    assert cells["models as received by clients, mean"] == ["0.8000", "0.6000"]
    assert cells["models as received, worst 10 % of clients"] == ["0.5000", "1.5000"]
    assert cells["models after local training, mean"] == ["0.9000", "-"]


def test_costs_are_in_all_and_per_round(tmp_path):
    cells = cells_of(printed(LAST, tmp_path))
    assert cells["rounds"] == ["10"]
    assert cells["bytes up (clients to server)"] == ["1.2 MB", "120.3 kB per round"]
    assert cells["bytes down (server to clients)"] == ["2.4 MB", "240.6 kB per round"]
    assert cells["time"] == ["41.0 s", "4.1 s per round"]


def test_parameters_are_a_share_of_the_whole_model(tmp_path):
    cells = cells_of(printed({**LAST, "comm/reduction": 0.9508, "comm/reduction_round": 0.99}, tmp_path))
    assert cells["share of whole model sent to the server"] == ["4.92 %", "last round: 1.00 %"]


@pytest.mark.parametrize(
    ("jobs", "several", "name"),
    [
        (1, False, "worst client"),
        (19, False, "worst client"),
        (20, False, "worst 10 % of clients"),
        (19, True, "worst job"),
        (20, True, "worst 10 % of jobs"),
    ],
)
def test_the_worst_are_named_as_the_single_one_that_they_may_be(tmp_path, jobs, several, name):
    cells = cells_of(printed(LAST, tmp_path, worst=summary.worst_of(jobs, several)))
    assert cells[f"models as received, {name}"] == ["0.5000", "1.5000"]


@pytest.mark.parametrize(("run", "label"), [("norep", "runs/norep"), ("/norep", "norep"), ("a/b/c", "b/c")])
def test_the_heading_names_the_run_by_its_last_two_folders(tmp_path, monkeypatch, run, label):
    (tmp_path / "runs").mkdir()
    monkeypatch.chdir(tmp_path / "runs")
    assert f"results of {label}\n" in re.sub(" +\n", "\n", printed(LAST, Path(run)))


def test_a_note_says_on_which_examples_clients_are_evaluated(tmp_path):
    note = "examples that each client holds out"
    assert note in printed(LAST, tmp_path)
    assert note not in printed({"round": 1}, tmp_path, rounds=1)


def test_no_row_is_broken_on_a_narrow_terminal(tmp_path):
    full = {**LAST, "comm/reduction": 0.9508, "comm/reduction_round": 0.99, "round/clustering_acc": 1.0}
    assert printed(full, tmp_path, width=80).count("\n") == printed(full, tmp_path, width=200).count("\n")


def test_without_times_in_the_history_the_process_time_is_shown(tmp_path):
    assert cells_of(printed({"round": 2}, tmp_path, rounds=2))["time"] == ["12.0 s", "6.0 s per round"]


def test_test_figures_have_a_row_where_there_are_any(tmp_path):
    assert "global model, test" not in printed(LAST, tmp_path)
    cells = cells_of(printed({**LAST, "test/acc": 0.85, "test/loss": 0.45}, tmp_path))
    assert cells["global model, test"] == ["0.8500", "0.4500"]


def test_tasks_have_rows_whatever_their_names_hold(tmp_path):
    tasks = {"task/sst2/val_acc": 0.9, "task/sst2/val_loss": 0.3, "task/glue/mrpc/val_acc": 0.7}
    cells = cells_of(printed({**LAST, **tasks, "round/clustering_acc": 0.975}, tmp_path))
    assert cells["task sst2, validation"] == ["0.9000", "0.3000"]
    assert cells["task glue/mrpc, validation"] == ["0.7000", "-"]
    assert cells["jobs in the group of their task"] == ["97.50 %"]
    assert cells["global model, validation"] == ["0.8712", "0.4100"]


def test_where_there_is_no_global_model_its_cells_are_dashes(tmp_path):
    alone = {key: value for key, value in LAST.items() if not key.startswith("round/")}
    cells = cells_of(printed(alone, tmp_path))
    assert cells["global model, validation"] == ["-", "-"]
    assert cells["model"] == ["accuracy", "loss"]


def test_another_metric_heads_its_column(tmp_path):
    cells = cells_of(printed({"round": 1, "round/val_f1": 0.5}, tmp_path, rounds=1))
    assert cells["model"] == ["f1", "loss"]
    assert cells["global model, validation"] == ["0.5000", "-"]


def test_a_module_that_logs_nothing_has_a_table_too(tmp_path):
    assert cells_of(printed({"round": 1}, tmp_path, rounds=1))["global model, validation"] == ["-", "-"]


def test_folders_that_exist_and_the_command_for_the_curves_follow(tmp_path):
    (tmp_path / "adapter").mkdir()
    (tmp_path / "checkpoints").mkdir()
    cells = cells_of(printed(LAST, tmp_path, logdir="runs"))
    assert cells["run folder"] == [str(tmp_path)]
    assert cells["adapter"] == [str(tmp_path / "adapter")]
    assert cells["checkpoints"] == [str(tmp_path / "checkpoints")]
    assert cells["show curves"] == ["tensorboard --logdir runs"]
    assert "model" not in [line.split()[0] for line in printed(LAST, tmp_path).splitlines()[-4:] if line]


@pytest.mark.parametrize(
    ("kind", "report", "steps"),
    [
        (
            "text",
            True,
            {"report": "a run/report.html", "predict": "flt predict 'a run' data=new.csv out=predictions.csv"},
        ),
        ("image", False, {"predict": "flt predict 'a run' data=images/ out=predictions.csv"}),
        ("causal", False, {"ask it": "flt generate 'a run' prompt=\"...\""}),
        ("", True, {"report": "a run/report.html"}),
    ],
)
def test_a_finished_run_says_what_can_be_done_with_it(kind, report, steps):
    assert summary.next_steps(Path("a run"), kind, report) == steps


def test_no_line_of_the_table_is_wider_than_the_pipe_and_no_path_is_broken(tmp_path):
    path = tmp_path / ("long" * 40)
    text = printed(LAST, path, width=100)
    assert str(path) in text
    assert all(len(line) <= 100 for line in text.splitlines() if "long" not in line)


@pytest.mark.parametrize(
    ("count", "text"),
    [(0, "0 B"), (999, "999 B"), (1000, "1.0 kB"), (999_949, "999.9 kB"), (999_950, "1.0 MB"), (2.5e15, "2500.0 TB")],
)
def test_sizes_are_in_powers_of_1000(count, text):
    assert formatting.size(count) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.04, "0.0 s"), (59.94, "59.9 s"), (59.96, "1 min 00 s"), (3599.6, "1 h 00 min"), (86400, "24 h 00 min")],
)
def test_durations_are_in_their_two_largest_units(seconds, text):
    assert formatting.duration(seconds) == text
