"""Models as distributed against merged weights by hand, and how many evaluations that takes."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from received import CENTRAL, OTHER, Sent, counted, federated, losses, private_b
from slowly import slowly
from torch import Tensor, nn
from toys import Planned, Toy, toy_clients, weights_of

from flt.algorithm.grouping.kmeans import KMeansGrouping
from flt.algorithm.importance import GradientSensitivity
from flt.algorithm.recipe import Recipe
from flt.algorithm.rule.mean import Mean
from flt.algorithm.rule.stacking import Stacking
from flt.algorithm.selection.freeze import Freeze
from flt.algorithm.selection.truncate import Truncate
from flt.callbacks.evaluate import mean_of_worst
from flt.protocol.messages import encode
from flt.protocol.state import ClientState
from flt.server.federator import Federator

pytestmark = pytest.mark.slow  # whole runs and fits


MEASURED = GradientSensitivity()
HAFL = Recipe(Mean(), selection=Freeze(), importance=MEASURED)
CUT = Recipe(Mean(), selection=Truncate("random"), importance=MEASURED)


PRIVATE = Recipe(Mean(), plan=Planned(make=private_b))


def by_hand(tensors: dict[str, Tensor], base: dict[str, Tensor], data: Any = CENTRAL) -> tuple[float, float]:
    """(accuracy, loss) of the toy with W + 2 B A in the place of W."""

    def weight(layer: str) -> Tensor:
        a, b = (tensors[f"{layer}.lora_{part}.default.weight"] for part in "AB")
        return base[f"{layer}.base_layer.weight"] + 2.0 * b @ a

    x, y = data.tensors
    for layer in ("fc1", "fc2"):
        x = torch.relu(x @ weight(layer).T + base[f"{layer}.base_layer.bias"])
    logits = x @ tensors["head.weight"].T + tensors["head.bias"]
    return (logits.argmax(-1) == y).float().mean().item(), nn.functional.cross_entropy(logits, y).item()


def base_of(federator: Federator) -> dict[str, Tensor]:
    module = federator.engine.local_trainer.module
    return {name: p.detach().clone() for name, p in module.named_parameters() if "base_layer" in name}


# ---------------------------------------------------------------------------------------------- what is measured


@pytest.mark.parametrize("recipe", [HAFL, CUT, PRIVATE], ids=["freeze", "truncate", "private"])
def test_figures_are_those_of_the_models_that_were_sent_by_mean_worst_and_rank(recipe: Recipe) -> None:
    federator = federated(recipe)
    base, initial = base_of(federator), federator.engine.local_trainer.initial
    federator.fit()
    for metrics, sent in zip(federator.history, federator.callbacks[-1].rounds, strict=True):  # type: ignore[attr-defined]  # the last callback is Sent
        found: dict[str, dict[int, list[float]]] = {"val_acc": {}, "val_loss": {}}
        for payload, private in sent:
            own = {name: private.tensors.get(name, tensor) for name, tensor in initial.items()}
            rank = federator.clients[payload.job[0]].rank
            for key, value in zip(found, by_hand({**own, **payload.tensors}, base), strict=True):
                found[key].setdefault(rank or 0, []).append(value)
        for key, by_rank in found.items():
            values = [value for of_rank in by_rank.values() for value in of_rank]
            assert metrics[f"distributed/{key}"] == pytest.approx(np.mean(values), abs=1e-6)
            assert metrics[f"distributed/{key}_worst10"] == pytest.approx(mean_of_worst(values, key), abs=1e-6)
            ranks = {name.rpartition("rank")[2] for name in metrics if name.startswith(f"distributed/{key}_rank")}
            assert ranks == set(map(str, by_rank))
            for rank, values in by_rank.items():
                assert metrics[f"distributed/{key}_rank{rank}"] == pytest.approx(np.mean(values), abs=1e-6)


def test_an_engine_brings_its_module_to_the_base_of_the_state_whatever_it_and_the_client_have_seen() -> None:
    federator, fresh = (federated(Recipe(Stacking()), rounds=3, cohort=None, steps=8) for _ in range(2))
    base = base_of(fresh)
    federator.fit()
    state, cohort = federator.state, federator.cohort
    payload = federator.server.broadcast(state, cohort[0], cohort)
    assert 0 < len(payload.base) < 3
    now = {name: state.base.value(name, federator.server.base) for name in federator.server.base}
    _, expected = by_hand(payload.tensors, {**base, **now})
    for engine in (fresh.engine, federator.engine):
        found = engine.local_trainer.evaluate_payload(state, payload, ClientState(), CENTRAL)
        assert found["val_loss"] == pytest.approx(expected, abs=1e-5)
    assert by_hand(payload.tensors, base)[1] != pytest.approx(expected, abs=1e-3)


@pytest.mark.parametrize("every", [1, 2, 3])
def test_a_client_that_was_absent_is_measured_on_the_base_as_it_is_now(every: int) -> None:
    """Whatever the resident module has seen: nothing was evaluated in the rounds between."""
    federator = federated(Recipe(Stacking()), every=every, rounds=7, cohort=1, clients=toy_clients(3), steps=8)
    base = base_of(federator)
    federator.fit()
    sent: Sent = federator.callbacks[-1]  # type: ignore[assignment]  # the last callback is Sent
    for number in range(0, 7, every):
        ((payload, _),) = sent.rounds[number]
        _, expected = by_hand(payload.tensors, {**base, **sent.bases[number]})
        assert losses(federator)[number] == pytest.approx(expected, abs=1e-5)
        assert losses(federator, "distributed/rise_loss")[number] == 0
    assert len({tuple(payload.base) == () for ((payload, _),) in sent.rounds}) == 2


def test_the_rise_is_what_distribution_costs_against_the_round_before() -> None:
    federator = federated(CUT, cohort=None)
    before = by_hand(weights_of(federator), base_of(federator))[1]
    federator.fit()
    for metrics in federator.history:
        assert metrics["distributed/rise_loss"] == pytest.approx(metrics["distributed/val_loss"] - before, abs=1e-6)
        before = metrics["round/val_loss"]
    assert all(abs(metrics["distributed/rise_loss_rank1"]) > 1e-4 for metrics in federator.history[1:])
    assert all(metrics["distributed/rise_loss_rank4"] == 0 for metrics in federator.history)


def test_freezing_loses_nothing_at_distribution_and_costs_one_evaluation_in_all() -> None:
    federator = federated(HAFL)
    counts = counted(federator)
    federator.fit()
    assert losses(federator, "distributed/rise_loss") == [0.0] * 3
    assert losses(federator)[1:] == losses(federator, "round/val_loss")[:-1]
    assert counts[id(CENTRAL)] == 3 + 1  # the initial model besides those of the rounds


def test_where_all_ranks_are_equal_there_are_no_figures_by_rank_and_private_tensors_leave_no_rise() -> None:
    federator = federated(PRIVATE, clients=toy_clients(3))
    federator.fit()
    names = {"val_acc", "val_acc_worst10", "val_loss", "val_loss_worst10"}
    assert {key for key in federator.history[-1] if key.startswith("distributed/")} == {
        f"distributed/{n}" for n in names
    }


def test_each_job_is_measured_on_its_own_task_against_its_own_group() -> None:
    recipe = Recipe(Mean("uniform"), grouping=KMeansGrouping(2))
    federator = federated(recipe, jobs=2, clients=toy_clients(3, jobs=2), rounds=2)
    base, sent = base_of(federator), federator.callbacks[-1]
    federator.fit()
    values = [
        by_hand(payload.tensors, base, (CENTRAL, OTHER)[payload.job[1]])[1]
        for payload, _ in sent.rounds[1]  # type: ignore[attr-defined]  # the last callback is Sent
    ]
    assert federator.history[1]["distributed/val_loss"] == pytest.approx(np.mean(values), abs=1e-6)
    assert losses(federator, "distributed/rise_loss") == [0.0, 0.0]


@pytest.mark.slow
def test_it_is_measured_in_the_rounds_that_follow_an_evaluated_one() -> None:
    federator = federated(CUT, every=2, rounds=5)
    federator.fit()
    assert [loss is not None for loss in losses(federator)] == [True, False, True, False, True]
    assert [loss is not None for loss in losses(federator, "round/val_loss")] == [False, True, False, True, True]
    reference = federator.history[1]["round/val_loss"]
    rise = federator.history[2]["distributed/val_loss"] - reference
    assert federator.history[2]["distributed/rise_loss"] == pytest.approx(rise, abs=1e-6)


# ---------------------------------------------------------------------------------------------- what it leaves alone


@pytest.mark.parametrize(
    "recipe",
    [CUT, Recipe(Stacking()), PRIVATE],
    ids=["truncate", "stacking", "private"],
)
@pytest.mark.parametrize("rank", [4, *slowly(1)])
def test_measuring_changes_no_bit_of_the_run_and_counts_no_byte(recipe: Recipe, rank: int) -> None:
    given = {"rounds": 4, "cohort": 1, "rank": rank, "clients": toy_clients(3, ranks=None if rank == 4 else [1])}
    states = []
    for measures in ((), ("evaluate",), ("evaluate", "distributed")):
        federator = federated(recipe, measures=measures, **given)
        federator.fit()
        private = {str(job): encode(state) for job, state in sorted(federator.client_states.items())}
        costs = [{k: v for k, v in metrics.items() if k.startswith("comm/")} for metrics in federator.history]
        states.append((encode(federator.state), private, costs))
    assert states[0] == states[1] == states[2]


@pytest.mark.slow
@pytest.mark.parametrize("recipe", [CUT, *slowly(HAFL, Recipe(Stacking()))], ids=["truncate", "freeze", "stacking"])
def test_a_resumed_run_measures_the_same(recipe: Recipe) -> None:
    given = {"rounds": 4, "cohort": 2, "clients": toy_clients(3, ranks=[4 if isinstance(recipe.rule, Stacking) else 2])}
    whole, half, rest = (federated(recipe, **{**given, "rounds": rounds}) for rounds in (4, 2, 4))
    whole.fit()
    half.fit()
    rest.state, rest.history, rest.client_states = half.state, list(half.history), half.client_states
    rest.callbacks[-2].load_state_dict(half.callbacks[-2].state_dict())
    rest.fit()
    assert rest.history == whole.history


def test_a_module_that_measures_nothing_leaves_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    import lightning.pytorch as pl

    monkeypatch.setattr(Toy, "validation_step", pl.LightningModule.validation_step)
    federator = federated(HAFL, rounds=1)
    federator.fit()
    assert not [key for key in federator.history[0] if key.startswith(("distributed/", "round/"))]


def test_a_loss_by_another_name_has_a_rise_and_no_loss_has_none() -> None:
    for logged, expected in (({"my_loss": 2.0, "val_acc": 0.5}, 0.0), ({"val_acc": 0.5}, None)):
        federator = federated(HAFL, rounds=1)
        federator.engine.local_trainer.evaluate = lambda *_, found=logged: dict(found)  # type: ignore[method-assign]  # a stand-in
        federator.fit()
        assert losses(federator, "distributed/rise_loss") == [expected]


def test_clients_of_a_task_without_central_examples_are_left_out() -> None:
    federator = federated(HAFL, jobs=2, rounds=1)
    evaluate, base, initial = federator.callbacks[0], base_of(federator), weights_of(federator)
    evaluate.datasets = {"task0": CENTRAL}  # type: ignore[attr-defined]  # the last callback is Sent
    federator.fit()
    assert losses(federator) == [pytest.approx(by_hand(initial, base)[1], abs=1e-6)]
