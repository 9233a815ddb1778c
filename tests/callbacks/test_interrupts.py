"""Ctrl-C, SIGTERM and SIGHUP: after the job that runs, with a checkpoint, to the same bits after a resume."""

from __future__ import annotations

import functools
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from commands import in_empty_folder, metrics, train
from forked import forked
from toys import toy_clients, toy_federator

from flt.callbacks.checkpoint import newest
from flt.callbacks.interrupts import Interrupts
from flt.core.errors import HungUp, Terminated
from flt.engines.distributed import DistributedEngine
from flt.engines.process_group import ProcessGroup
from flt.engines.sharded import ShardedEngine
from flt.models.module import ClientModule
from flt.protocol.messages import Payload, Update
from flt.server.callback import FedCallback
from flt.server.federator import Federator

pytestmark = pytest.mark.slow  # whole runs and fits


CODES = {signal.SIGINT: 130, signal.SIGTERM: 143, signal.SIGHUP: 129}


@pytest.fixture(autouse=True)
def as_in_a_terminal() -> Iterator[None]:
    """A shell's background jobs have SIGINT ignored, which a run would leave so."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


class Signals(FedCallback):
    """Sends this process a signal when a fit is about to begin, and writes down which fits ended."""

    def __init__(self, number: int, at: int, times: int = 1) -> None:
        self.number, self.at, self.times = number, at, times
        self.ended: list[int] = []

    def on_job_start(self, federator: Federator, payload: Payload) -> None:
        if len(self.ended) == self.at:
            for _ in range(self.times):
                os.kill(os.getpid(), self.number)

    def on_job_end(self, federator: Federator, update: Update) -> None:
        self.ended.append(update.job[0])


def counted(federator: Federator) -> list[int]:
    """The batches that fits have taken a step on, as they do."""
    module: Any = federator.engine.local_trainer.module
    step, steps = module.training_step, list[int]()

    def training_step(batch: Any, batch_idx: int) -> Any:
        steps.append(batch_idx)
        return step(batch, batch_idx)

    module.training_step = training_step
    return steps


@pytest.mark.parametrize(
    ("number", "error"),
    [(signal.SIGINT, KeyboardInterrupt), (signal.SIGTERM, Terminated), (signal.SIGHUP, HungUp)],
)
def test_the_job_that_runs_ends_and_no_other_begins(number: int, error: type[BaseException]) -> None:
    before = {its: signal.getsignal(its) for its in CODES}
    signals = Signals(number, at=1)
    federator = toy_federator(clients=toy_clients(4), callbacks=[signals, Interrupts()], steps=3)
    steps = counted(federator)
    with pytest.raises(error):
        federator.fit()
    assert signals.ended == [0]
    assert len(steps) == 3  # the next one was sent its payload, and took no step
    assert {its: signal.getsignal(its) for its in CODES} == before


def test_a_signal_inside_a_fit_lets_it_end() -> None:
    signals = Signals(signal.SIGTERM, at=99)
    federator = toy_federator(clients=toy_clients(4), callbacks=[Interrupts(), signals])
    module: Any = federator.engine.local_trainer.module
    step = module.training_step

    def training_step(batch: Any, batch_idx: int) -> Any:
        if len(signals.ended) == 2 and batch_idx == 0:
            os.kill(os.getpid(), signal.SIGTERM)
        return step(batch, batch_idx)

    module.training_step = training_step
    steps = counted(federator)
    with pytest.raises(Terminated):
        federator.fit()
    assert signals.ended == [0, 1]
    assert len(steps) == 3 * 3  # the third fit took all of its steps


def test_a_second_signal_stops_at_once() -> None:
    signals = Signals(signal.SIGINT, at=1, times=2)
    federator = toy_federator(clients=toy_clients(4), callbacks=[Interrupts(), signals])
    module: Any = federator.engine.local_trainer.module
    step, calls = module.training_step, list[int]()

    def training_step(batch: Any, batch_idx: int) -> Any:
        calls.append(batch_idx)
        if len(calls) == 4:
            for _ in range(2):
                os.kill(os.getpid(), signal.SIGINT)
        return step(batch, batch_idx)

    module.training_step = training_step
    signals.at = 99
    with pytest.raises(KeyboardInterrupt):
        federator.fit()
    assert signals.ended == [0]
    assert len(calls) == 4


def test_handlers_are_put_back_when_a_federation_has_ended() -> None:
    before = {its: signal.getsignal(its) for its in CODES}
    toy_federator(callbacks=[Interrupts()]).fit()
    assert {its: signal.getsignal(its) for its in CODES} == before


@pytest.fixture(scope="module")
def straight(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run that nothing interrupts."""
    folder = tmp_path_factory.mktemp("straight")
    with pytest.MonkeyPatch.context() as patch:
        in_empty_folder(folder, patch)
        assert train("algo=fedit", "rounds=2", "name=straight") == 0
    return folder / "lightning_logs" / "straight" / "version_0"


@pytest.mark.parametrize(
    ("number", "fits"),
    [(signal.SIGTERM, 2), (signal.SIGINT, 5), (signal.SIGHUP, 5)],
    ids=["in the first round", "in the second", "when the terminal is closed"],
)
def test_the_command_line_ends_with_its_code_and_goes_on_to_the_same_bits(
    number: int, fits: int, straight: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    in_empty_folder(tmp_path, monkeypatch)
    seen, end = list[int](), ClientModule.on_train_epoch_end

    def on_train_epoch_end(self: ClientModule) -> None:
        seen.append(1)
        if len(seen) == fits:
            os.kill(os.getpid(), number)
        end(self)

    with monkeypatch.context() as patch:
        patch.setattr(ClientModule, "on_train_epoch_end", on_train_epoch_end)
        assert train("algo=fedit", "rounds=2", "name=stopped") == CODES[signal.Signals(number)]
    assert "resume=last" in capsys.readouterr().err
    stopped = tmp_path / "lightning_logs" / "stopped" / "version_0"
    found = newest(stopped / "checkpoints")
    assert found is not None
    assert found[0].server.rounds == (0 if fits == 2 else 1)
    assert len(seen) == fits
    assert train("algo=fedit", "rounds=2", "name=stopped", "resume=last") == 0
    exported = "adapter/adapter_model.safetensors"
    assert (stopped / exported).read_bytes() == (straight / exported).read_bytes()
    assert metrics(stopped) == metrics(straight)


def test_a_run_that_ignores_hang_ups_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as nohup leaves it
    try:
        signals = Signals(signal.SIGHUP, at=1)
        federator = toy_federator(clients=toy_clients(4), callbacks=[signals, Interrupts()], steps=3)
        federator.fit()
        assert len(signals.ended) == 4
    finally:
        signal.signal(signal.SIGHUP, before)


class Waits(FedCallback):
    """Before a process' first fit, for those of the others: else the faster one might leave them nothing to train."""

    def __init__(self, processes: ProcessGroup) -> None:
        self.processes, self.waited = processes, False

    def on_job_start(self, federator: Federator, payload: Payload) -> None:
        if not self.waited:
            self.waited = True
            self.processes.all_gather(b"begins")


def sharing(kind: str, number: int, processes: ProcessGroup) -> str:
    """A federation of two processes, of which the second alone is sent a signal, when its first fit begins."""
    federator = toy_federator(clients=toy_clients(5), rounds=2, steps=3)
    federator.callbacks = [Waits(processes), Interrupts(processes.is_first)]
    if not processes.is_first:
        federator.callbacks.insert(1, Signals(number, at=0))
    if kind == "sharded":
        federator.engine = ShardedEngine(federator.engine.local_trainer, federator.clients, processes, nodes=1)
    else:
        federator.engine = DistributedEngine(federator.engine, processes)
    try:
        federator.fit()
    except BaseException as error:
        return f"{type(error).__name__} in round {federator.round} after {federator.state.rounds}"
    return "went on"


@pytest.mark.parametrize("kind", ["distributed", "sharded"])
@pytest.mark.parametrize(("number", "error"), [(signal.SIGTERM, "Terminated"), (signal.SIGHUP, "HungUp")])
def test_a_signal_to_one_process_ends_all_in_the_same_round(number: int, error: str, kind: str, tmp_path: Path) -> None:
    found = forked(functools.partial(sharing, kind, number), 2, tmp_path)
    assert found == [f"{error} in round 1 after 0"] * 2
