"""Jobs that fail: dropped, named and counted; rounds that stand, are tried again, or end the run."""

from __future__ import annotations

import dataclasses
import logging
import signal
import time
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from failing import Breaks, raises, tolerant
from methods import METHODS, clients_of
from toys import Toy, assert_same, toy_clients, toy_federator, weights_of

from flt.algorithm.recipe import Recipe
from flt.algorithm.rule.exact_sum import LARGEST
from flt.algorithm.rule.mean import Mean
from flt.algorithm.rule.scaffold import Scaffold
from flt.algorithm.rule.stacking import Stacking
from flt.callbacks.failures import Failures
from flt.callbacks.fault_injection import Faults, FaultsConfig, hostile, with_flipped_labels
from flt.core.errors import InputError
from flt.core.timeout import ClientTimeoutError, time_limit
from flt.data.clients import ClientSpec
from flt.protocol.messages import Payload, Update
from flt.server.callback import FedCallback
from flt.server.failure_policy import FailurePolicy, RoundFailedError
from flt.server.federator import Federator

NOTHING = FaultsConfig(drop=0.0, nan=0.0, attack=None, hostile=0.2, scale=10.0)
RULES = [Mean(), Stacking()]
"""One that streams, and one that doesn't."""


class Changes(FedCallback):
    """A transform that spoils what some clients send."""

    def __init__(self, clients: Sequence[int], spoil: Callable[[torch.Tensor], torch.Tensor]) -> None:
        self.clients, self.spoil = clients, spoil

    def __call__(self, updates: list[Update]) -> list[Update]:
        for update in updates:
            if update.job[0] in self.clients:
                name = min(update.tensors)
                update.tensors[name] = self.spoil(update.tensors[name])
        return updates


def out_of_memory(module: Toy) -> None:
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 1 TiB")


def hangs(module: Toy) -> None:
    time.sleep(60)


def without(client: int, rule: Any, rounds: int = 1) -> Federator:
    """A federation that never had a client."""
    clients = {number: its for number, its in toy_clients(4).items() if number != client}
    federator = toy_federator(Recipe(rule), clients, rounds=rounds)
    federator.server.jobs = 4
    federator.fit()
    return federator


# ---------------------------------------------------------------------------------------------- a round that stands


@pytest.mark.parametrize(
    ("how", "rule"),
    [(how, rule) for how in (raises, out_of_memory) for rule in RULES] + [(hangs, RULES[0])],
    ids=lambda its: getattr(its, "__name__", type(its).__name__),
)
def test_a_round_stands_without_a_job_that_fails_as_if_the_client_were_not_there(
    how: Callable[[Toy], Any], rule: Any, caplog: pytest.LogCaptureFixture
) -> None:
    failures = Failures()
    federator = toy_federator(Recipe(rule), toy_clients(4), rounds=2, callbacks=[Breaks([2], how), failures])
    with caplog.at_level(logging.WARNING):
        tolerant(federator, min_updates=3, client_timeout=1.0).fit()
    assert_same(weights_of(federator), weights_of(without(2, rule, rounds=2)))
    assert [metrics["faults/failed"] for metrics in federator.history] == [1, 1]
    said = [record.getMessage().partition(":")[0] for record in caplog.records]
    assert said == [f"round {number} has no update from client 2, job 0" for number in (1, 2)]


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: type(rule).__name__)
@pytest.mark.parametrize(
    "spoil", [lambda its: torch.full_like(its, torch.nan), lambda its: its[..., :-1]], ids=["nan", "shape"]
)
def test_an_update_with_nan_or_another_shape_is_dropped_whole(
    spoil: Callable[[torch.Tensor], torch.Tensor], rule: Any
) -> None:
    federator = toy_federator(Recipe(rule), toy_clients(4), callbacks=[Failures()])
    federator.transforms = [Changes([2], spoil)]
    tolerant(federator, min_updates=3).fit()
    assert [update.job[0] for update in federator.updates] == [0, 1, 3]
    assert [metrics["faults/failed"] for metrics in federator.history] == [1]
    assert_same(weights_of(federator), weights_of(without(2, rule)))


def test_a_failure_is_named_without_the_text_of_the_error(caplog: pytest.LogCaptureFixture) -> None:
    federator = toy_federator(clients=toy_clients(3), callbacks=[Breaks([1], raises), Failures()])
    with caplog.at_level(logging.WARNING):
        tolerant(federator, min_updates=1).fit()
    (record,) = caplog.records
    line = raises.__code__.co_firstlineno + 1
    expected = f"round 1 has no update from client 1, job 0: RuntimeError in failing.py, line {line}"
    assert record.getMessage() == expected


def test_the_other_jobs_of_a_client_are_sent_without_the_one_that_failed() -> None:
    class FirstJob(Breaks):
        def on_job_start(self, federator: Federator, payload: Payload) -> None:
            self.client = 2 if payload.job == (2, 0) else -1

    federator = toy_federator(clients=toy_clients(3, jobs=2), callbacks=[FirstJob([2], raises)])
    tolerant(federator, min_updates=5).fit()
    assert [update.job for update in federator.updates] == [(0, 0), (0, 1), (1, 0), (1, 1), (2, 1)]


# ------------------------------------------------------------------------------------------- one that is tried again


def test_a_round_that_is_tried_again_has_the_bits_of_one_that_went_well() -> None:
    undisturbed = toy_federator(clients=toy_clients(3), rounds=2)
    undisturbed.fit()
    federator = toy_federator(clients=toy_clients(3), rounds=2, callbacks=[Breaks([1], raises, times=2), Failures()])
    tolerant(federator, max_retries=2).fit()
    assert_same(weights_of(federator), weights_of(undisturbed))
    assert [metrics["faults/retries"] for metrics in federator.history] == [2, 0]
    assert [metrics["faults/failed"] for metrics in federator.history] == [2, 0]


@pytest.mark.slow
def test_another_cohort_is_drawn_for_another_attempt() -> None:
    cohorts = []

    class Cohorts(FedCallback):
        def on_round_start(self, federator: Federator) -> None:
            cohorts.append([job.client for job in federator.cohort])

    clients = toy_clients(8)
    federator = toy_federator(clients=clients, cohort=3, callbacks=[Cohorts(), Breaks(list(clients), raises, times=6)])
    tolerant(federator, max_retries=4).fit()
    assert len(cohorts) == 3
    assert len({tuple(its) for its in cohorts}) > 1


@pytest.mark.slow
def test_the_run_stops_in_a_line_when_no_attempt_is_left() -> None:
    federator = toy_federator(clients=toy_clients(3), callbacks=[Breaks([1], raises)])
    line = "round 1=failed: of 3 jobs 2 sent an update, after 2 retries; allowed is min_updates=the whole cohort"
    with pytest.raises(RoundFailedError, match=line):
        tolerant(federator, max_retries=2).fit()
    assert federator.state.rounds == 0


def test_the_engine_of_a_federator_has_the_federators_policy() -> None:
    made, policy = toy_federator(), FailurePolicy(min_updates=1, client_timeout=7.0)
    federator = Federator(
        made.server, made.clients, made.engine, made.sampler, [], 1, 0, made.state, failure_policy=policy
    )
    assert federator.engine.failure_policy is policy
    assert federator.engine.local_trainer.timeout == 7.0


def test_without_tolerance_the_first_failure_is_the_runs_end_with_the_error_itself() -> None:
    federator = toy_federator(clients=toy_clients(3), callbacks=[Breaks([1], raises)])
    with pytest.raises(RuntimeError, match="a text of a user's example"):
        federator.fit()


def test_without_tolerance_a_fit_that_takes_too_long_is_named() -> None:
    federator = toy_federator(clients=toy_clients(3), callbacks=[Breaks([1], hangs)])
    with pytest.raises(ClientTimeoutError, match=r"client 1, job 0: client_timeout=1.0: a fit took longer"):
        tolerant(federator, client_timeout=1.0).fit()


def test_nothing_of_a_failed_fit_is_left_in_the_module() -> None:
    federator = toy_federator(Recipe(Stacking()), toy_clients(3), callbacks=[Breaks([0], raises)])
    module = federator.engine.local_trainer.module
    frozen = {name: its.detach().clone() for name, its in module.named_parameters() if not its.requires_grad}
    tolerant(federator, min_updates=2, client_timeout=60.0).fit()
    assert all(torch.equal(dict(module.named_parameters())[name], its) for name, its in frozen.items())
    assert all(its.grad is None for its in module.parameters())
    assert signal.getitimer(signal.ITIMER_REAL) == (0.0, 0.0)


# --------------------------------------------------------------------------------------------------------- the time


def test_time_that_is_up_interrupts_what_waits_and_leaves_no_timer() -> None:
    began = time.monotonic()
    with pytest.raises(ClientTimeoutError, match=r"client_timeout=0.05: a fit took longer"), time_limit(0.05):
        time.sleep(30)
    assert time.monotonic() - began < 10
    with time_limit(30):
        pass
    assert signal.getitimer(signal.ITIMER_REAL) == (0.0, 0.0)


def test_a_body_that_swallows_an_interruption_is_interrupted_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("flt.core.timeout.AGAIN", 0.1)
    swallowed = []

    def body() -> None:
        while len(swallowed) < 2:
            try:
                time.sleep(30)
            except Exception as error:
                swallowed.append(type(error))
        time.sleep(30)

    began = time.monotonic()
    with pytest.raises(ClientTimeoutError), time_limit(0.05):
        body()
    assert swallowed == [ClientTimeoutError] * 2
    assert time.monotonic() - began < 20
    assert signal.getitimer(signal.ITIMER_REAL) == (0.0, 0.0)


def sleep_and(clean: Callable[[], None]) -> None:
    try:
        time.sleep(30)
    finally:
        clean()


def test_what_cleans_up_after_an_interruption_is_not_interrupted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("flt.core.timeout.AGAIN", 0.05)
    cleaned = []

    def clean() -> None:
        time.sleep(0.3)
        cleaned.append(True)

    with pytest.raises(ClientTimeoutError), time_limit(0.05):
        sleep_and(clean)
    assert cleaned


def test_cleaning_up_without_end_is_interrupted_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("flt.core.timeout.AGAIN", 0.05)
    monkeypatch.setattr("flt.core.timeout.GRACE", 0.2)
    began = time.monotonic()
    with pytest.raises(ClientTimeoutError), time_limit(0.05):
        sleep_and(lambda: time.sleep(30))
    assert time.monotonic() - began < 20


@pytest.mark.parametrize(
    ("settings", "line"),
    [
        ({"min_updates": 0}, "min_updates=0: allowed is an integer >= 1"),
        ({"max_retries": -1}, "max_retries=-1: allowed is an integer >= 0"),
        ({"client_timeout": 0}, "client_timeout=0: allowed is seconds > 0"),
        ({"client_timeout": float("nan")}, "client_timeout=nan: allowed is seconds > 0"),
    ],
)
def test_settings_out_of_range_are_refused_in_a_line(settings: dict[str, Any], line: str) -> None:
    with pytest.raises(InputError) as raised:
        FailurePolicy(**settings)
    assert str(raised.value).startswith(line)


# --------------------------------------------------------------------------------------------------- faults on purpose


def faulty(clients: int = 10, rounds: int = 3, **settings: Any) -> Federator:
    made = clients_of(clients)
    faults = Faults(FaultsConfig(**{**vars(NOTHING), **settings}), 7, list(made))
    federator = toy_federator(clients=made, rounds=rounds, callbacks=[faults, Failures()], steps=1)
    federator.transforms = [faults]
    return tolerant(federator, min_updates=1)


@pytest.mark.parametrize("kind", ["drop", "nan"])
@pytest.mark.slow
def test_so_many_jobs_fail_as_were_asked_for_and_the_same_ones_each_time(kind: str) -> None:
    failed = []
    for _ in range(2):
        federator = faulty(**{kind: 0.3})
        federator.fit()
        failed.append([metrics["faults/failed"] for metrics in federator.history])
    assert failed[0] == failed[1]
    assert 2 <= sum(failed[0]) <= 17  # of 30, binomial: all but once in a million
    assert len(set(failed[0])) > 1


def test_hostile_clients_are_a_share_of_all_drawn_once() -> None:
    faults = FaultsConfig(**{**vars(NOTHING), "attack": "scale", "hostile": 0.25})
    chosen = hostile(faults, 3, range(20))
    assert len(chosen) == 5
    assert chosen == hostile(faults, 3, range(20)) != hostile(faults, 4, range(20))
    assert hostile(NOTHING, 3, range(20)) == frozenset()


@pytest.mark.parametrize(("attack", "factor"), [("sign_flip", -1.0), ("scale", 10.0)])
def test_an_attack_changes_the_change_of_the_hostile_alone(attack: str, factor: float) -> None:
    plain, attacked = faulty(4, 1), faulty(4, 1, attack=attack, hostile=0.25)
    (evil,) = attacked.transforms[0].hostile  # type: ignore[attr-defined]  # the transform is Faults
    sent: list[list[Update]] = []
    for federator in (plain, attacked):
        start = dict(weights_of(federator))
        federator.fit()
        sent.append(federator.callbacks[-1].updates)  # type: ignore[attr-defined]  # what the clients sent
    for honest, found in zip(*sent, strict=True):
        for name, tensor in found.tensors.items():
            expected = honest.tensors[name]
            if found.job[0] == evil:
                expected = start[name] + factor * (expected - start[name])
            torch.testing.assert_close(tensor, expected)


def test_flipped_labels_are_the_last_class_for_the_first_where_the_chosen_clients_train() -> None:
    clients = list(toy_clients(3).values())
    with pytest.raises(InputError, match=r"faults.attack=label_flip: the classes"):
        with_flipped_labels(clients, frozenset([1]))
    counted = [
        ClientSpec(its.id, tuple(job.but(label_counts=(4, 5, 6)) for job in its.data), its.rank) for its in clients
    ]
    flipped = with_flipped_labels(counted, frozenset([1]))
    for before, after in zip(counted, flipped, strict=True):
        hostile = before.id == 1
        assert after.data[0].label_counts == ((6, 5, 4) if hostile else (4, 5, 6))
        for i in range(5):
            (x, y), (found_x, found_y) = before.data[0].training_set[i], after.data[0].training_set[i]
            assert torch.equal(x, found_x)
            assert int(found_y) == (2 - int(y) if hostile else int(y))
        for honest, found in zip(before.data[0].validation_set(None), after.data[0].validation_set(None), strict=True):
            assert int(honest[1]) == int(found[1])


@pytest.mark.parametrize("rule", [Mean(), Scaffold()], ids=lambda rule: type(rule).__name__)
def test_an_update_that_is_too_large_for_the_sums_leaves_nothing_in_them(rule: Any) -> None:
    def vast(updates: list[Update]) -> list[Update]:
        for update in updates:
            if update.job[0] == 2:
                last = max(update.tensors)
                update.tensors[last] = torch.full_like(update.tensors[last], 1e30)
        return updates

    federator = toy_federator(Recipe(rule), toy_clients(4))
    federator.transforms = [vast]
    tolerant(federator, min_updates=3).fit()
    assert_same(weights_of(federator), weights_of(without(2, rule)))


@pytest.mark.parametrize("factor", [1e30, 1e9])
def test_whether_an_update_is_too_large_depends_on_no_other(factor: float) -> None:
    def vast(updates: list[Update]) -> list[Update]:
        for update in updates:
            if update.job[0] in (1, 2):
                last = max(update.tensors)
                update.tensors[last] = torch.full_like(update.tensors[last], factor * LARGEST / 2e9)
        return updates

    federator = toy_federator(Recipe(Mean()), toy_clients(4))
    federator.transforms = [vast]
    tolerant(federator, min_updates=1).fit()
    assert [update.job[0] for update in federator.updates] == [0, 3]  # the one that came first, too


@pytest.mark.parametrize("settings", [{"min_updates": 1}, {"max_retries": 1}, {}], ids=str)
def test_a_client_that_sends_nothing_has_nothing_to_compress(settings: dict[str, int]) -> None:
    recipe, given = METHODS["haflq channel"]

    def dropped(updates: list[Update]) -> list[Update]:
        return [update for update in updates if update.job[0] != 1]

    federator = toy_federator(recipe, **{**given, "rounds": 1})
    federator.transforms = [dropped]
    tolerant(federator, **settings)
    if "min_updates" in settings:
        federator.fit()
        assert 1 not in [update.job[0] for update in federator.updates]
    else:
        with pytest.raises(RoundFailedError):
            federator.fit()


def test_a_fit_that_would_leave_nan_on_its_client_is_a_failure() -> None:
    def spoilt(federator: Federator) -> None:
        run = federator.engine.run

        def outcomes(tasks: Any) -> Any:
            for update, state in run(tasks):
                if update.job[0] == 1:
                    slots = {"kept": {"x": torch.tensor([1.0, torch.nan])}}
                    yield update, dataclasses.replace(state, slots=slots)
                else:
                    yield update, state

        federator.engine.run = outcomes  # type: ignore[method-assign]  # to spoil what comes out

    federator = toy_federator(clients=toy_clients(3), callbacks=[failures := Failures()])
    spoilt(federator)
    tolerant(federator, min_updates=2).fit()
    assert failures.failed == 1
    assert [update.job[0] for update in federator.updates] == [0, 2]
    federator = toy_federator(clients=toy_clients(3))
    spoilt(federator)
    with pytest.raises(InputError, match=r"^private state of client 1, job 0: x=1 of 2 not finite"):
        federator.fit()
