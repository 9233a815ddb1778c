"""The number of torch's threads: the trial that chooses it, and the run that keeps it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from commands import QUICK, in_empty_folder, train
from toys import Toy, toy_data

import flt
from flt.core import openmp
from flt.engines.batched.engine import BatchedSettings
from flt.engines.distributed import DistributedSettings
from flt.engines.process_group import ProcessGroup
from flt.engines.serial import SerialSettings
from flt.run import threads
from flt.run.compose import load_config
from flt.run.federation import Federation
from flt.run.run import Run
from flt.run.workload import federation
from flt.server.callback import FedCallback
from flt.server.federator import Federator

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def three_threads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A process that has three threads and a user who has set nothing."""
    in_empty_folder(tmp_path, monkeypatch)
    monkeypatch.setattr(openmp, "IS_GIVEN", False)
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    yield
    torch.set_num_threads(before)


class Clock:
    """Time that passes only with work, which takes a number of seconds for each number of threads."""

    def __init__(self, costs: dict[int, float], monkeypatch: pytest.MonkeyPatch) -> None:
        self.now, self.costs, self.calls = 0.0, costs, list[int]()
        monkeypatch.setattr(threads.time, "perf_counter", lambda: self.now)

    def work(self, **inputs: Any) -> None:
        self.calls.append(torch.get_num_threads())
        self.now += self.costs[self.calls[-1]]


@pytest.mark.parametrize(
    ("costs", "most", "best"),
    [
        ({1: 0.009, 2: 0.005, 3: 0.003}, 3, 3),
        ({1: 0.009, 2: 0.005, 3: 0.0049}, 3, 2),
        ({1: 0.003, 2: 0.004, 3: 0.009}, 3, 1),
        ({1: 0.003, 2: 0.0029, 3: 0.002}, 3, 3),
        ({1: 0.003, 2: 0.002, 4: 0.001}, 4, 4),
        ({1: 0.003, 2: 0.002, 4: 0.001, 6: 0.005}, 6, 4),
    ],
    ids=str,
)
def test_the_fewest_threads_that_no_more_clearly_beat(
    costs: dict[int, float], most: int, best: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = Clock(costs, monkeypatch)
    assert threads.fastest(clock.work, most) == best
    assert set(clock.calls) == set(costs)
    assert clock.now < threads.BUDGET + 2 * sum(costs.values())  # ends with the turn in which the budget is spent


def test_a_disturbance_of_one_pass_does_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock({1: 0.003, 2: 0.002}, monkeypatch)

    def disturbed() -> None:
        clock.work()
        clock.now += 0.05 * (len(clock.calls) == 4)  # the first timed pass with two threads

    assert threads.fastest(disturbed, 2) == 2


@pytest.fixture(scope="module")
def digits() -> Federation:
    """The federation of the default data on the embedded backbone."""
    with pytest.MonkeyPatch.context() as patch:
        in_empty_folder(Path.cwd(), patch)
        return federation(load_config([f"{key}={value}" for key, value in QUICK.items()]))


def chosen(made: Federation, settings: Any = None, device: torch.device = CPU) -> int:
    return threads.choose_threads(made, settings or SerialSettings(), 16, device)


def test_a_trial_changes_neither_the_module_nor_the_generators_nor_the_threads(digits: Federation) -> None:
    before = {name: value.clone() for name, value in digits.module.state_dict().items()}
    modes = [module.training for module in digits.module.modules()]
    generator = torch.get_rng_state()
    assert chosen(digits) in (1, 2, 3)
    assert torch.equal(torch.get_rng_state(), generator)
    assert torch.get_num_threads() == 3
    assert [module.training for module in digits.module.modules()] == modes
    assert all(torch.equal(value, before[name]) for name, value in digits.module.state_dict().items())
    assert all(parameter.grad is None for parameter in digits.module.parameters())


@pytest.mark.parametrize(
    ("settings", "sizes"),
    [
        (SerialSettings(), {1, 16}),
        (BatchedSettings(jobs=2), {1, 32}),
        (BatchedSettings(), {1, 48}),  # of three clients
        (DistributedSettings(inside="batched"), {1, 48}),
        (DistributedSettings(), {1, 16}),
    ],
    ids=str,
)
def test_the_passes_are_those_of_a_batch(
    settings: Any, sizes: set[int], digits: Federation, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = Clock({1: 0.0001, 2: 0.0001, 3: 0.0001}, monkeypatch)
    seen = set()

    def forward(self: Any, **inputs: Any) -> None:
        clock.work()
        seen.add(len(inputs["pixel_values"]))

    monkeypatch.setattr(type(digits.module), "forward", forward)
    assert chosen(digits, settings) == 1
    assert seen == sizes


def test_a_batch_that_takes_long_gets_all_threads_after_two_passes(
    digits: Federation, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = Clock({3: threads.LONG}, monkeypatch)
    monkeypatch.setattr(type(digits.module), "forward", clock.work)
    assert chosen(digits) == 3
    assert clock.calls == [3, 3]


def untouchable(*arguments: Any, **inputs: Any) -> Any:
    raise AssertionError("no trial should be made")


@pytest.mark.parametrize("why", ["given", "GPU", "one thread"])
def test_no_trial_where_nothing_is_left_open(why: str, digits: Federation, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(type(digits.module), "forward", untouchable)
    monkeypatch.setattr(openmp, "IS_GIVEN", why == "given")
    torch.set_num_threads(1 if why == "one thread" else 3)
    assert chosen(digits, device=torch.device("cuda" if why == "GPU" else "cpu")) == torch.get_num_threads()


def test_a_user_s_own_module_is_called_in_no_trial(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Toy, "forward", untouchable)
    clients = flt.partition(toy_data(20), by=None, clients=2)
    assert chosen(Federation(Toy(), clients, {}, {})) == 3


class Seen(FedCallback):
    """Keeps the number of threads of each round."""

    def __init__(self) -> None:
        self.threads: list[int] = []

    def on_round_start(self, federator: Federator) -> None:
        self.threads.append(torch.get_num_threads())


def recorded() -> Any:
    (path,) = Path("lightning_logs").glob("*/version_0/config.yaml")
    return yaml.safe_load(path.read_text())["threads"]


def fit(*overrides: str, rounds: int) -> list[int]:
    seen = Seen()
    shares = flt.partition(toy_data(20), by=None, clients=2)
    given = ("name=kept", "local.steps=1", *overrides)
    flt.fit(Toy(), shares, "fedit", rounds, overrides=given, callbacks=[seen], progress=False)
    return seen.threads


def choosing(number: int) -> Callable[..., int]:
    return lambda *arguments: number


def test_a_resume_takes_the_number_that_the_run_has_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("flt.run.run.choose_threads", choosing(2))
    assert fit(rounds=1) == [2]
    assert torch.get_num_threads() == 3
    assert recorded() == 2
    monkeypatch.setattr("flt.run.run.choose_threads", untouchable)
    assert fit("resume=last", rounds=2) == [2]
    assert fit("resume=last", "threads=1", rounds=3) == [1]
    assert recorded() == 1


def test_a_number_that_is_given_is_taken_without_a_trial(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("flt.run.run.choose_threads", untouchable)
    assert fit("threads=1", rounds=1) == [1]
    assert recorded() == 1


def test_a_run_of_a_version_without_trials_goes_on_with_torch_s_number(monkeypatch: pytest.MonkeyPatch) -> None:
    fit("threads=3", rounds=1)
    (path,) = Path("lightning_logs").glob("*/version_0/config.yaml")
    path.write_text(path.read_text().replace("threads: 3", "threads: null"))
    monkeypatch.setattr("flt.run.run.choose_threads", untouchable)
    assert fit("resume=last", rounds=2) == [3]
    assert recorded() is None


def test_the_first_process_chooses_for_all(digits: Federation, monkeypatch: pytest.MonkeyPatch) -> None:
    class Second(ProcessGroup):
        def broadcast_from_first(self, make: Callable[[], str]) -> str:
            return "2"

    monkeypatch.setattr("flt.run.run.choose_threads", untouchable)
    run = Run(load_config([]), digits)
    run.processes = Second()
    run._set_threads()
    assert (run.cfg.threads, torch.get_num_threads()) == (2, 2)


def test_a_run_of_the_command_line_records_its_trial(tmp_path: Path) -> None:
    assert train("algo=fedit") == 0
    assert recorded() in (1, 2, 3)
    assert torch.get_num_threads() == 3


def test_the_settings_of_all_engines_are_asked_for_jobs_at_once(digits: Federation) -> None:
    many = dataclasses.replace(digits, clients=[digits.clients[0]] * 99)
    assert threads._jobs_at_once(BatchedSettings(), many) == threads.JOBS
