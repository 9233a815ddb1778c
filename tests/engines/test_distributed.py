"""A cohort shared over processes: the bits of one process, whatever their number, and one error for all of them."""

from __future__ import annotations

import dataclasses
import functools
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from failing import Breaks, raises, tolerant
from forked import forked
from methods import METHODS
from slowly import mostly_slowly
from stacks import federator_of
from toys import Sent, assert_same, toy_clients, toy_federator, updates_of
from whole_runs import everything, mixed

from flt.algorithm.recipe import Recipe
from flt.algorithm.rule.mean import Mean
from flt.algorithm.rule.scaffold import Scaffold
from flt.algorithm.rule.stacking import Stacking
from flt.callbacks.bit_widths import BitWidths
from flt.callbacks.checkpoint import Checkpoint
from flt.callbacks.communication import Communication
from flt.callbacks.failures import Failures
from flt.core.errors import InputError
from flt.engines.batched.engine import BatchedEngine, BatchedSettings
from flt.engines.distributed import DistributedEngine
from flt.engines.process_group import PeerFailedError, ProcessGroup, StatusMessage
from flt.engines.serial import SerialEngine
from flt.protocol.messages import Payload, decode, encode
from flt.server.client_state_store import ClientStateStore
from flt.server.engine import Assignment
from flt.server.failure_policy import FailurePolicy
from flt.server.federator import Federator

QUICK = ["scaffold", "haflq channel", "everything"]
COUNTED = ("comm/bytes_up", "comm/bytes_down", "comm/params_up", "comm/bits_mean", "comm/pairs_dropped")


def shared(name: str, folder: Path, processes: ProcessGroup) -> Federator:
    """A federation of one of the methods, in one of its processes."""
    recipe, settings = METHODS[name]
    federator = toy_federator(recipe, **{**settings, **mixed()})
    federator.callbacks = [Communication(), BitWidths(), Sent()]
    folder.mkdir(parents=True, exist_ok=True)
    federator.client_states = ClientStateStore(folder)
    federator.engine = DistributedEngine(federator.engine, processes)
    federator.fit()
    return federator


def bits(name: str, folder: Path, processes: ProcessGroup) -> tuple[list[bytes], list[dict[str, float]], int]:
    federator = shared(name, folder, processes)
    figures = [{key: of_round[key] for key in COUNTED if key in of_round} for of_round in federator.history]
    return everything(federator), figures, len(updates_of(federator))


@pytest.mark.parametrize("name", mostly_slowly(METHODS, QUICK))
def test_any_number_of_processes_has_the_bits_and_the_counts_of_one(name: str, tmp_path: Path) -> None:
    expected, counted, jobs = bits(name, tmp_path / "1", ProcessGroup())
    for size in (2, 4) if name in QUICK else (2,):
        found = forked(functools.partial(bits, name, tmp_path / str(size)), size, tmp_path)
        assert [its[:2] for its in found] == [(expected, counted)] * size
        assert sum(its[2] for its in found) == jobs


def test_one_process_has_the_bits_of_the_serial_engine(tmp_path: Path) -> None:
    serial = toy_federator(METHODS["everything"][0], **{**METHODS["everything"][1], **mixed()})
    serial.fit()
    assert bits("everything", tmp_path, ProcessGroup())[0] == everything(serial)


def test_the_inner_engine_and_the_outer_one_have_the_same_failure_policy() -> None:
    engine = DistributedEngine(toy_federator().engine, ProcessGroup())
    policy = FailurePolicy(min_updates=1, client_timeout=5.0)
    engine.set_failure_policy(policy)
    assert engine.failure_policy is engine.inside.failure_policy is policy
    assert engine.local_trainer.timeout == 5.0


class Failing(SerialEngine):
    """An engine in which one client's fit can't be done."""

    error: Exception

    def run(self, assignments: Iterable[Assignment]) -> Iterator[Any]:
        for assignment, out in zip(assignments := list(assignments), super().run(assignments), strict=True):
            if assignment.payload.job[0] == 2:
                raise self.error
            yield out


def failing(error: Exception, processes: ProcessGroup) -> str:
    federator = toy_federator(Recipe(Mean()), rounds=2)
    inside = Failing(federator.engine.local_trainer, federator.clients)
    inside.error = error
    federator.engine = DistributedEngine(inside, processes)
    try:
        federator.fit()
    except Exception as raised:
        return f"{processes.rank} {type(raised).__name__}: {raised}"
    return "went on"


def test_a_mistake_that_one_process_finds_is_raised_in_all_of_them(tmp_path: Path) -> None:
    found = forked(functools.partial(failing, InputError("a line")), 2, tmp_path)
    assert found == ["0 InputError: a line", "1 InputError: a line"]


def test_a_failure_of_one_process_ends_the_others_and_is_named(tmp_path: Path) -> None:
    found = forked(functools.partial(failing, MemoryError("none left")), 2, tmp_path)
    assert sorted(line[2:] for line in found) == [
        "MemoryError: none left",
        f"PeerFailedError: process {[line[2:4] for line in found].index('Me')}: MemoryError: none left",
    ]


def stopping(processes: ProcessGroup) -> int:
    federator = toy_federator(rounds=5)

    class Stop(Sent):
        def on_log(self, federator: Federator, metrics: dict[str, float]) -> None:
            federator.should_stop = federator.round == 2

    federator.callbacks = [Stop()] if processes.is_first else []
    federator.engine = DistributedEngine(federator.engine, processes)
    return federator.fit().rounds


def test_what_the_first_process_decides_stops_all(tmp_path: Path) -> None:
    assert forked(stopping, 2, tmp_path) == [2, 2]


def larger(processes: ProcessGroup) -> str:
    """Sums that fit in each process, and not together."""
    federator = toy_federator(Recipe(Mean("uniform")), toy_clients(2))
    federator.cohort = federator.draw_cohort()
    accumulator = federator.server.accumulator(federator.state, federator.cohort)
    engine = DistributedEngine(federator.engine, processes)
    federator.engine = engine
    sent = federator._sent()
    one = next(sent)
    processes.all_gather(b"each has claimed one")  # else the faster one might have both
    for update in (update for updates in (one, *sent) for update in updates):
        tensors = {name: torch.full_like(tensor, 2.0**37) for name, tensor in update.tensors.items()}
        accumulator.add(dataclasses.replace(update, tensors=tensors))
    try:
        engine.exchange(accumulator, federator.counts, federator.client_states)
    except InputError as error:
        return str(error)
    return "went on"


def test_sums_that_are_too_large_together_are_refused(tmp_path: Path) -> None:
    for line in forked(larger, 2, tmp_path):
        assert line.startswith("updates=exact sum of 2 terms: ")
        assert line.endswith("allowed is smaller numbers; lower local.lr")


def apart(processes: ProcessGroup) -> str:
    """ProcessGroup that go on from different checkpoints."""
    try:
        processes.assert_same_round(processes.rank)
    except InputError as error:
        return str(error)
    return "went on"


def test_processes_that_have_finished_different_rounds_do_not_go_on(tmp_path: Path) -> None:
    line = "rounds that have been run=[0, 1]: machines go on from different checkpoints; allowed is the same"
    assert [its.partition(" in all")[0] for its in forked(apart, 2, tmp_path)] == [line, line]
    ProcessGroup().assert_same_round(3)


def stacked(
    jobs: Sequence[int | None], rounds: int, folder: Path, processes: ProcessGroup
) -> tuple[int | None, list[int], bytes]:
    """Rounds of stacked jobs, after those in the folder; each process has found another number of jobs to be best."""
    federator, found, checkpoint = federator_of(sizes=(11, 6, 17, 9, 8, 12)), list[int](), Checkpoint(folder, 1)
    inside = BatchedEngine(
        federator.engine.local_trainer, federator.clients, BatchedSettings(jobs=jobs[processes.rank]),
        lambda settings: found.append(settings["jobs"]),
    )  # fmt: skip
    federator.engine, federator.rounds = DistributedEngine(inside, processes), rounds
    federator.callbacks = [checkpoint] if processes.is_first else []
    checkpoint.restore(federator)
    federator.fit()
    return inside.jobs, found, encode(federator.state)


@pytest.mark.slow
def test_all_processes_go_on_with_the_least_number_of_jobs_at_once_and_a_resume_to_the_same_bits(
    tmp_path: Path,
) -> None:
    def run(jobs: Sequence[int | None], rounds: int, folder: str) -> list[tuple[int | None, list[int], bytes]]:
        return forked(functools.partial(stacked, jobs, rounds, tmp_path / folder), 2, tmp_path)

    (jobs, recorded, state), (others, _, same) = run((3, 2), 3, "undisturbed")
    assert (jobs, others, recorded) == (2, 2, [2])
    assert state == same
    run((3, 2), 1, "resumed")
    (_, recorded, again), (_, unchanged, _) = run((2, 2), 3, "resumed")  # both read what was recorded
    assert again == state
    assert recorded == unchanged == []
    serial = federator_of(sizes=(11, 6, 17, 9, 8, 12))
    serial.rounds = 3
    serial.fit()
    assert_same(decode(state).groups[0].weights, serial.state.groups[0].weights, 1e-5)


def claiming(processes: ProcessGroup) -> list[int]:
    """Claims after the other process has failed at its first one."""
    claimed, items = list[int](), range(10_000)
    for item in processes.work_queue(items):
        claimed.append(item)
        if processes.is_first:
            time.sleep(0.01)
            continue
        processes.report_failure(MemoryError("none left"))
        return claimed
    try:
        processes.all_gather_checked(encode(StatusMessage()))
    except PeerFailedError:
        return claimed
    return []


def test_nobody_claims_anything_once_another_process_has_failed(tmp_path: Path) -> None:
    of_first, _ = forked(claiming, 2, tmp_path)
    assert len(of_first) < 1000  # of 10,000; none, where the other was first


def halves(recipe: Recipe, folder: Path, processes: ProcessGroup) -> list[bytes]:
    """One round in this process alone, then two more by all."""
    first = toy_federator(recipe, optimizer="sgd")
    if processes.is_first:
        folder.mkdir(parents=True, exist_ok=True)
        first.client_states = ClientStateStore(folder)
        first.fit()
    processes.broadcast_from_first(str)
    rest = toy_federator(recipe, rounds=3, optimizer="sgd")
    if not processes.is_first:
        first.fit()
    rest.state, rest.client_states = first.state, ClientStateStore(folder)
    files = {(client, 0): f"clients/{client}_0_0001.safetensors" for client in range(3)}
    if isinstance(recipe.rule, Scaffold):
        rest.client_states.load(files, dict.fromkeys(files.values(), ""))
    rest.engine = DistributedEngine(rest.engine, processes)
    rest.fit()
    return everything(rest)


@pytest.mark.parametrize("rule", [Scaffold(), Stacking()], ids=["sums", "lists"])
@pytest.mark.slow
def test_processes_go_on_where_one_alone_has_stopped(rule: Any, tmp_path: Path) -> None:
    whole = toy_federator(Recipe(rule), rounds=3, optimizer="sgd")
    whole.fit()
    found = forked(functools.partial(halves, Recipe(rule), tmp_path / "states"), 2, tmp_path)
    assert found == [everything(whole)] * 2


def stopped_before(processes: ProcessGroup) -> int:
    """A run that a callback of the first process stops before its first round, as a resumed one that has finished."""
    federator = toy_federator(rounds=3)

    class Finished(Sent):
        def on_fit_start(self, federator: Federator) -> None:
            federator.should_stop = True

    federator.callbacks = [Finished()] if processes.is_first else []
    federator.engine = DistributedEngine(federator.engine, processes)
    return federator.fit().rounds


def test_no_process_trains_a_round_that_the_first_one_has_stopped_before(tmp_path: Path) -> None:
    assert forked(stopped_before, 2, tmp_path) == [0, 0]


class BreaksAttempts(Breaks):
    """Lets one client's fits fail, by whatever process, in so many attempts at the first round; in 99: at any."""

    def on_job_start(self, federator: Federator, payload: Payload) -> None:
        super().on_job_start(federator, payload)
        self.left = int(federator.attempt < self.times and (federator.round == 1 or self.times == 99))


def enduring(times: int, settings: dict[str, int], folder: Path, processes: ProcessGroup) -> tuple[list[bytes], Any]:
    """SCAFFOLD, which keeps something on the clients, with a client whose fits fail so often."""
    recipe, given = METHODS["scaffold"]
    federator = toy_federator(recipe, **{**given, **mixed(), "cohort": None})
    failures = Failures()
    said = list[str]()
    failures.on_failures = lambda federator, found: said.extend(map(str, found))  # type: ignore[method-assign]  # to watch
    federator.callbacks = [BreaksAttempts([1], raises, times), failures]
    folder.mkdir(parents=True, exist_ok=True)
    federator.client_states = ClientStateStore(folder)
    if processes.size > 1:
        federator.engine = DistributedEngine(federator.engine, processes)
    tolerant(federator, **settings).fit()
    return everything(federator), [said, [metrics["faults/retries"] for metrics in federator.history]]


@pytest.mark.parametrize(
    ("times", "settings", "failed", "retries"),
    [(99, {"min_updates": 6}, 2, [0, 0]), (1, {"max_retries": 2}, 1, [1, 0]), (2, {"max_retries": 2}, 2, [2, 0])],
    ids=["the round stands", "a round is tried again", "twice"],
)
@pytest.mark.slow
def test_a_failure_in_one_process_is_one_in_all_and_the_bits_are_those_of_one_process(
    times: int, settings: dict[str, int], failed: int, retries: list[int], tmp_path: Path
) -> None:
    expected, (said, again) = enduring(times, settings, tmp_path / "1", ProcessGroup())
    assert len(said) == failed
    assert again == retries
    found = forked(functools.partial(enduring, times, settings, tmp_path / "2"), 2, tmp_path)
    assert [its[0] for its in found] == [expected, expected]
    assert [its[1] for its in found] == [[said, again], [said, again]]
