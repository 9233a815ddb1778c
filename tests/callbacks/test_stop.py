"""When a federation ends before its last round."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from pathlib import Path

import pytest
from commands import in_empty_folder, metrics, train
from stopped import Stopped, exported, state, stop_in_fit
from toys import toy_federator

from flt.callbacks.evaluate import Evaluate
from flt.callbacks.stop import Stop
from flt.core.errors import InputError
from flt.server.callback import FedCallback
from flt.server.federator import Federator


class Scripted(FedCallback):
    """Leaves what is written down as the figures of the global model; a None is a round without an evaluation."""

    def __init__(self, values: Sequence[float | None], name: str = "val_acc", **others: float) -> None:
        self.values, self.name, self.others = values, name, others

    def on_round_end(self, federator: Federator) -> None:
        value = self.values[federator.round - 1]
        if value is not None:
            federator.log({f"round/{key}": x for key, x in {**self.others, self.name: value}.items()})


class Ends(FedCallback):
    """Counts the ends."""

    ended = 0

    def on_fit_end(self, federator: Federator) -> None:
        self.ended += 1


def rounds_of(stop: Stop, scripted: Scripted) -> int:
    federator = toy_federator(rounds=len(scripted.values), steps=1, callbacks=[scripted, stop, ends := Ends()])
    federator.sampler = lambda clients, seed, round: []
    federator.fit()
    assert ends.ended == 1
    assert len(federator.history) == federator.state.rounds
    return federator.state.rounds


@pytest.mark.parametrize(
    ("accuracy", "values", "rounds"),
    [
        (0.5, [0.1, 0.5, 0.9], 2),
        (0.5, [0.6, 0.1, 0.1], 1),
        (0.5, [0.1, None, 0.6, 0.9], 3),
        (1.0, [0.1, 0.5, 0.9], 3),
        (None, [1.0, 1.0, 1.0], 3),
        (0.5, [None, None], 2),
        (0.5, [math.nan, 0.7, 0.8], 2),
    ],
)
def test_a_run_ends_with_the_round_whose_accuracy_is_reached(
    accuracy: float | None, values: list[float | None], rounds: int
) -> None:
    assert rounds_of(Stop(accuracy), Scripted(values, val_loss=1.0)) == rounds


@pytest.mark.parametrize(
    ("patience", "values", "rounds"),
    [
        (1, [0.1, 0.2, 0.2, 0.3], 3),
        (2, [0.1, 0.2, 0.2, 0.3, 0.1, 0.3, 0.9], 6),
        (2, [0.5, 0.4, None, None, 0.3, 0.9], 5),
        (2, [0.1, 0.2, 0.3, 0.4], 4),
        (1, [math.nan, math.nan, 0.3], 2),
        (1, [math.nan, 0.1, 0.3, math.nan, 0.5], 4),
        (None, [0.5] * 5, 5),
    ],
)
def test_a_run_ends_after_so_many_evaluations_in_a_row_without_a_better_one(
    patience: int | None, values: list[float | None], rounds: int
) -> None:
    """By the accuracy though the loss falls; by the loss of language models and where no accuracy is logged."""
    falling = [None if value is None else 1 - value for value in values]
    assert rounds_of(Stop(patience=patience), Scripted(values, val_loss=1.0)) == rounds
    assert rounds_of(Stop(patience=patience), Scripted(falling, "val_loss")) == rounds
    assert rounds_of(Stop(patience=patience), Scripted(falling, "val_loss", val_f1=0.5)) == rounds
    assert rounds_of(Stop(patience=patience), Scripted(values, "val_f1", clustering_acc=1.0)) == rounds
    language = Scripted(falling, "val_loss", val_acc=0.5, val_perplexity=9.0)
    assert rounds_of(Stop(patience=patience), language) == rounds


def test_one_line_says_why(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "flt")
    rounds_of(Stop(0.5, 9), Scripted([0.1, 0.75, 0.9]))
    rounds_of(Stop(0.9, 1), Scripted([0.25, 0.1, 0.9]))
    assert [record.message for record in caplog.records] == [
        "stopping after round 2 of 3: val_acc 0.7500 reaches stop.accuracy=0.5",
        "stopping after round 2 of 3: no val_acc better than 0.2500 in stop.patience=1 evaluations",
    ]


def test_where_nothing_is_evaluated_the_end_says_so(caplog: pytest.LogCaptureFixture) -> None:
    assert rounds_of(Stop(patience=1), Scripted([None] * 3)) == 3
    assert rounds_of(Stop(), Scripted([None] * 3)) == 3
    assert [record.levelname for record in caplog.records] == ["WARNING"]


def test_an_accuracy_is_refused_where_the_module_logs_none() -> None:
    with pytest.raises(
        InputError, match=r"^stop.accuracy=0.5: the module logs val_loss and no accuracy; allowed is null$"
    ):
        rounds_of(Stop(0.5), Scripted([0.1], "val_loss"))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"accuracy": 0.0}, r"^stop.accuracy=0.0: allowed is a number in \(0, 1\], or null$"),
        ({"accuracy": 80.0}, r"^stop.accuracy=80.0: "),
        ({"accuracy": math.nan}, r"^stop.accuracy=nan: "),
        ({"patience": 0}, r"^stop.patience=0: allowed is an integer >= 1, or null$"),
    ],
)
def test_nonsense_is_refused_in_one_line(settings: dict[str, float], message: str) -> None:
    with pytest.raises(InputError, match=message):
        Stop(**settings)  # type: ignore[arg-type]


def test_any_callback_can_stop_a_run() -> None:
    class Enough(FedCallback):
        def on_job_end(self, federator: Federator, update: object) -> None:
            federator.should_stop = True

    federator = toy_federator(rounds=5, steps=1, callbacks=[Enough()])
    federator.fit()
    assert federator.state.rounds == len(federator.history) == 1
    assert len(federator.updates) == 3


def test_a_stop_happens_at_an_evaluated_round() -> None:
    tasks = {(client, 0): "task0" for client in range(3)}
    evaluate = Evaluate({"task0": toy_federator().clients[0].data[0].dataset}, tasks, every=3)
    federator = toy_federator(rounds=20, steps=1, lr=0.0, callbacks=[evaluate, Stop(patience=2)])
    federator.fit()
    assert federator.state.rounds == 9
    assert [r for r, figures in enumerate(federator.history, 1) if "round/val_acc" in figures] == [3, 6, 9]


# ---------------------------------------------------------------------------------------------- runs

RUN = ["algo=fedit", "eval.every=2", "rounds=9", "stop.patience=1", "local.lr=1e-9", "eval.test_examples=30"]
"""Nothing is learned, so round 4 is no better than round 2."""


@pytest.mark.slow
def test_a_stopped_run_is_whole_and_a_resume_finds_nothing_left_to_do(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    in_empty_folder(tmp_path, monkeypatch)
    assert train(*RUN) == 0
    run = tmp_path / "lightning_logs/fedit/version_0"
    before, adapter = metrics(run), exported(run)
    assert len(before) == 4
    assert before[-1]["test/acc"]
    assert "global model, test" in capsys.readouterr().out
    assert adapter
    assert train(*RUN, "resume=last") == 0
    assert (metrics(run), exported(run)) == (before, adapter)
    assert "round 5" not in capsys.readouterr().out
    assert "has finished after 4 of 9 rounds; nothing is left to do" in caplog.text


@pytest.mark.slow
def test_a_killed_run_goes_on_to_stop_at_the_same_round_with_the_same_bits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    in_empty_folder(tmp_path, monkeypatch)
    whole = ["algo=hafl", *RUN[1:], "eval.distributed=true", "cohort.size=2", "selection=truncate"]
    assert train(*whole, "name=straight") == 0
    straight, killed = (tmp_path / "lightning_logs" / name / "version_0" for name in ("straight", "killed"))
    with monkeypatch.context() as patch:
        stop_in_fit(6, patch)  # in round 3, of two jobs of a step each
        with pytest.raises(Stopped):
            train(*whole, "name=killed")
    assert len(metrics(killed)) == 2
    assert train(*whole, "name=killed", "resume=last") == 0
    assert len(metrics(straight)) == 4
    assert metrics(killed) == metrics(straight)
    assert exported(killed) == exported(straight)
    assert state(killed) == state(straight)


@pytest.mark.slow
def test_a_run_that_was_killed_after_it_stopped_still_exports(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    in_empty_folder(tmp_path, monkeypatch)

    def killed(*_: object) -> None:
        raise Stopped

    with monkeypatch.context() as patch:
        patch.setattr(Stop, "on_fit_end", killed)
        with pytest.raises(Stopped):
            train(*RUN)
    run = tmp_path / "lightning_logs/fedit/version_0"
    assert not exported(run)
    assert train(*RUN, "resume=last") == 0
    assert exported(run)
    assert len(metrics(run)) == 4
    assert metrics(run)[-1]["test/acc"]
