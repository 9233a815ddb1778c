"""The plan of a run: its bytes are those of the run."""

from __future__ import annotations

import copy
import dataclasses
import json
from pathlib import Path

import pytest
import torch
from commands import in_empty_folder
from planned import Sent, run_of, settings, simulation
from toys import Toy, toy_data

import flt
from flt.core.errors import InputError
from flt.run.conf_groups import choices
from flt.run.planning.traffic import Traffic

BY_VALUE = {"hetlora": "clients prune themselves", "sa_fedlora": "scores decide which ids of two digits are sent"}
"""Recipe whose sizes depend on trained values -> why. The run's bytes lie in the plan's range."""
MIXES = [
    "algo=hafl grouping=kmeans schedule=annealed rounds=6",
    "algo=fedavg cohort.size=2 rounds=11",  # absent clients lack changes of the base, and rounds get two digits
    "algo=flora cohort.size=2 rounds=8 selection=truncate ranks=[2,4]",
    "algo=fl_tac data=digits_two cohort.size=2 rounds=6",  # heads of different shapes
    "algo=rolora rule=scaffold rounds=11 local.optimizer=sgd",
    "algo=fedit cohort.sampling=poisson cohort.rate=0.3 rounds=8 local.epochs=1 local.steps=null plan.lr_decay=0.9",
    "algo=haflq compression.down=true rounds=6",
    "algo=fedit eval.client_examples=0",
    "algo=fedit partition.held_out=0 faults.drop=0.3 min_updates=1",
    "algo=sa_fedlora plan.until=3 rounds=8 adapter.rank=8 cohort.size=2",
]


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    in_empty_folder(tmp_path, monkeypatch)
    return tmp_path


def assert_equal_to_the_run(*overrides: str, by_value: bool = False) -> None:
    cfg = settings(*overrides)
    planned = flt.plan(cfg, progress=False)
    sent, history = run_of(cfg)
    assert len(planned.rounds) == len(history)
    for number, (plan, logged) in enumerate(zip(planned.rounds, history, strict=True)):
        down, up = logged["comm/bytes_down"], logged["comm/bytes_up"]
        assert plan.down.least <= down <= plan.down.most
        assert plan.up.least <= up <= plan.up.most
        if not by_value:
            assert (plan.down.bytes, plan.down.least) == (down, down)
            assert plan.up.bytes == sum(sent.up[number].values())
            assert plan.params_up == logged.get("comm/params_up", 0)
    if not by_value:
        for client in planned.clients:
            assert (client.bytes_down, client.bytes_up) == sent.of_client(client.client)


@pytest.mark.parametrize("algo", ["hafl", "flora"])
def test_the_bytes_of_a_plan_are_those_of_the_run(algo: str) -> None:
    assert_equal_to_the_run(f"algo={algo}")


def test_the_steps_of_a_plan_are_those_of_the_run() -> None:
    cfg = settings(
        "algo=fedit", "rounds=1", "local.epochs=2", "local.steps=null", "local.accumulate=3", "batch_size=16"
    )
    _, (logged,) = run_of(cfg)
    assert sum(client.steps for client in flt.plan(cfg, progress=False).clients) == logged["clients/steps"]


@pytest.mark.slow
@pytest.mark.parametrize("algo", choices("algo"))
def test_the_bytes_of_every_recipe_s_plan_are_those_of_its_run(algo: str) -> None:
    assert_equal_to_the_run(f"algo={algo}", by_value=algo in BY_VALUE)


@pytest.mark.slow
@pytest.mark.parametrize("overrides", MIXES)
def test_the_bytes_of_a_mix_s_plan_are_those_of_its_run(overrides: str) -> None:
    by_value = "haflq" in overrides or "faults" in overrides
    assert_equal_to_the_run(*overrides.split(), by_value=by_value)


@pytest.mark.slow
@pytest.mark.parametrize(
    "overrides",
    [
        "algo=hetlora rounds=8",
        "algo=haflq compression=channel compression.tau=0.06",
        "algo=hafl selection.scope=global adapter.rank=12 rounds=4",
        "algo=hafl selection.scope=global ranks=[1,3] clients=5 cohort.size=3 rounds=6 faults.drop=0.3 min_updates=1",
        "algo=sa_fedlora rounds=8 cohort.size=2",
        "algo=sa_fedlora rounds=8 schedule.allocation=global",
    ],
)
def test_where_values_decide_sizes_the_run_s_bytes_lie_in_the_plan_s_range(overrides: str) -> None:
    assert_equal_to_the_run(*overrides.split(), by_value=True)


@pytest.mark.parametrize("overrides", ["algo=hafl", "algo=fedavg cohort.size=1", "algo=rolora rule=scaffold"])
def test_rounds_that_are_only_counted_have_the_bytes_of_simulated_ones(
    overrides: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    cfg = settings("rounds=12", "local.optimizer=sgd", *overrides.split())
    counted = simulation(cfg)
    short = list(counted.rounds())
    monkeypatch.setattr(Traffic, "_may_repeat", lambda *_: False)
    full = simulation(cfg)
    assert short == list(full.rounds())
    assert (counted.down, counted.up, counted.fits) == (full.down, full.up, full.fits)
    assert counted.simulated < full.simulated == 12


def test_a_thousand_rounds_are_planned_from_a_few() -> None:
    cfg = settings("algo=fedit", "rounds=1000")
    traffic = simulation(cfg)
    rounds = list(traffic.rounds())
    assert (len(rounds), rounds[-1].round) == (1000, 1000)
    assert traffic.simulated <= 3


def test_a_plan_writes_nothing_and_says_what_is_trained(folder: Path) -> None:
    planned = flt.plan(settings("algo=ffa_lora"), progress=False)
    assert list(folder.iterdir()) == []
    adapter = planned.parameters["adapter"]
    assert 0 < adapter.trained < adapter.count
    assert planned.parameters["base"].trained == planned.parameters["base"].sent == 0
    assert planned.memory["peak"] == sum(planned.memory[key] for key in planned.memory if key != "peak")
    assert planned.seconds == {}
    assert planned.memory["activations"] > 100_000
    assert repr(planned).startswith("RunPlan(ffa_lora on digits with embedded: 3 rounds, 3 clients, ")
    json.dumps(planned.as_dict())


def test_private_tensors_are_trained_and_not_sent() -> None:
    planned = flt.plan(settings("algo=local"), progress=False)
    assert planned.parameters["adapter"].trained > 0 == planned.parameters["adapter"].sent
    assert all(one.params_up == 0 for one in planned.rounds)


def test_all_reasons_for_a_refusal_are_said_at_once() -> None:
    planned = flt.plan(["algo=fedit", "ranks=[2,4]", "devices=2"], progress=False)
    assert len(planned.refused) == 2
    assert "devices=2" in planned.refused[0]
    assert planned.refused[1].startswith("selection=all: a client of rank 2")
    assert "refused, devices=2" in repr(planned)
    assert planned.as_dict()["refused"] == list(planned.refused)


def test_a_budget_that_a_round_would_exceed_is_refused() -> None:
    planned = flt.plan(settings("algo=haflq", "compression.budget=100"), progress=False)
    assert planned.refused[0].startswith("compression=100 bytes for client 0: allowed is at least the ")


def test_a_trial_gives_times_and_leaves_the_plan_as_it_is() -> None:
    cfg = settings("algo=sa_fedlora", "rounds=4", "threads=1")
    plain, timed = flt.plan(cfg, progress=False), flt.plan(cfg, trial=True, progress=False)
    assert [one.up for one in timed.rounds] == [one.up for one in plain.rounds]
    assert set(timed.seconds) == {"step", "fit", "evaluation", "server", "round", "run"}
    assert timed.seconds["run"] == pytest.approx(4 * timed.seconds["round"])
    assert 0 < timed.seconds["round"] < 60


@pytest.mark.parametrize("overrides", ["algo=fl_tac data=digits_two", "algo=c2a engine=batched", "algo=fedsa_lora"])
def test_a_trial_fits_each_kind_of_recipe(overrides: str) -> None:
    cfg = settings("rounds=2", "threads=1", *overrides.split())
    assert flt.plan(cfg, trial=True, progress=False).seconds["run"] > 0


def test_a_module_of_one_s_own_is_planned_as_it_is_fitted() -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        module = Toy()
    before, clients = copy.deepcopy(module.state_dict()), flt.partition(toy_data(60), alpha=5.0, clients=3)
    chosen = ["algo=hafl", "rounds=2", "local.steps=2"]
    planned = flt.plan(chosen, module=module, clients=clients, progress=False)
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())
    sent = Sent()
    result = flt.fit(module, clients, "hafl", 2, callbacks=[sent], progress=False, overrides=["local.steps=2"])
    assert [one.down.bytes for one in planned.rounds] == [row["comm/bytes_down"] for row in result.round_metrics]
    assert any("isn't counted" in note for note in planned.notes)


def test_a_transfer_by_losses_is_planned_for_a_module_whose_metrics_are_not_known() -> None:
    chosen = ["algo=fedit", "grouping=kmeans", "grouping.k=2", "rounds=2", "local.steps=1"]
    clients = flt.partition(toy_data(60), alpha=5.0, clients=3)
    learned, plain = (
        flt.plan([*chosen, f"transfer={name}"], module=Toy(), clients=clients, progress=False)
        for name in ("learned", "none")
    )
    assert [one.down.bytes for one in learned.rounds] == [one.down.bytes for one in plain.rounds]


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ({"settings": "algo=hafl"}, r"settings='algo=hafl': allowed is a list of texts: \[\"algo=hafl\"\]"),
        ({"settings": 3}, "settings=3: allowed is a list of texts"),
        ({"settings": [3]}, "settings=3: allowed is a list of texts"),
        ({"trial": "yes"}, "trial='yes': allowed is True or False"),
        ({"module": Toy()}, r"clients=\[\]: allowed is at least one client"),
        ({"module": Toy, "clients": [1]}, "module=the class Toy: allowed is an instance"),
    ],
)
def test_wrong_arguments_are_refused_in_one_line(arguments: dict, error: str) -> None:
    with pytest.raises(InputError, match=error):
        flt.plan(**arguments)


def test_warnings_name_what_takes_long_or_does_not_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    from flt.run.planning import advice

    cfg = settings("algo=fedit", "rounds=1000", "clients=30", "local.steps=100", "cohort.size=29")
    monkeypatch.setattr(advice, "available_memory", lambda device: 0)
    monkeypatch.setattr(advice, "_free_disk", lambda root: 0.0)
    said = "\n".join(flt.plan(cfg, progress=False).warnings)
    assert "1,000 rounds x 29 jobs are 29,000 local fits" in said
    assert "more memory are needed, and 0 B are free" in said
    assert "are written, and 0 B are free on the disk" in said
    assert "a fit passes more than 10 times over the examples of" in said


def test_clients_that_no_cohort_has_are_counted() -> None:
    cfg = dataclasses.replace(settings("algo=fedit", "rounds=1"), cohort=settings("cohort.size=1").cohort)
    assert "2 of 3 clients take part in no round" in flt.plan(cfg, progress=False).warnings
