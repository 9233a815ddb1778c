"""Private states at rest lie on disk, and count once their updates were accepted."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from toys import toy_clients, toy_federator

from flt.algorithm.recipe import Recipe
from flt.algorithm.rule.scaffold import Scaffold
from flt.callbacks.checkpoint import Checkpoint
from flt.protocol.messages import encode
from flt.protocol.state import ClientState
from flt.server.client_state_store import ClientStateStore


def state(value: float) -> ClientState:
    return ClientState({"w": torch.full((3,), value)})


@pytest.fixture(params=["memory", "disk"])
def states(request: pytest.FixtureRequest, tmp_path: Path) -> ClientStateStore:
    return ClientStateStore(tmp_path if request.param == "disk" else None)


def test_a_state_counts_once_its_update_was_accepted(states: ClientStateStore) -> None:
    states.put((1, 0), state(1.0), 1)
    states.put((2, 0), state(2.0), 1)
    assert not list(states)
    states.accept([(1, 0)])
    assert list(states) == [(1, 0)]
    assert encode(states[1, 0]) == encode(state(1.0))
    assert states.get((2, 0)) is None
    states.accept([(2, 0)])  # what was refused is forgotten
    assert list(states) == [(1, 0)]


def test_a_job_that_keeps_nothing_is_not_there(states: ClientStateStore) -> None:
    states.put((1, 0), ClientState(), 1)
    states.accept([(1, 0)])
    assert len(states) == 0


def test_a_refused_state_leaves_no_file(tmp_path: Path) -> None:
    states = ClientStateStore(tmp_path)
    states.put((1, 0), state(1.0), 1)
    states.put((1, 1), state(2.0), 1)
    states.accept([(1, 1)])
    assert [path.name for path in (tmp_path / "clients").iterdir()] == ["1_1_0001.safetensors"]


def test_an_older_file_stays_for_the_checkpoints_that_name_it(tmp_path: Path) -> None:
    states = ClientStateStore(tmp_path)
    for rounds in (1, 2):
        states.put((1, 0), state(float(rounds)), rounds)
        states.accept([(1, 0)])
    assert sorted(path.name for path in (tmp_path / "clients").iterdir()) == [
        "1_0_0001.safetensors",
        "1_0_0002.safetensors",
    ]
    assert encode(states[1, 0]) == encode(state(2.0))
    assert states.pop_replaced_files() == ["clients/1_0_0001.safetensors"]
    assert states.pop_replaced_files() == []


def test_states_in_memory_move_to_a_folder_with_their_values(tmp_path: Path) -> None:
    states = ClientStateStore(None)
    for job in ((1, 0), (2, 1)):
        states.put(job, state(float(job[0])), 1)
    states.accept([(1, 0), (2, 1)])
    states.move_to(tmp_path)
    assert sorted(states) == [(1, 0), (2, 1)]
    assert encode(states[2, 1]) == encode(state(2.0))
    assert sorted(path.name for path in (tmp_path / "clients").iterdir()) == [
        "1_0_0000.safetensors",
        "2_1_0000.safetensors",
    ]


def test_no_tensor_of_a_client_at_rest_is_in_memory(tmp_path: Path) -> None:
    federator = toy_federator(Recipe(Scaffold()), rounds=1, callbacks=[Checkpoint(tmp_path)], optimizer="sgd")
    federator.fit()
    held = [value for value in vars(federator.client_states).values() if isinstance(value, dict)]
    assert not [its for found in held for its in found.values() if isinstance(its, ClientState)]
    assert sorted(federator.client_states) == [(client, 0) for client in range(3)]


@pytest.mark.parametrize("keep", [1, 2, 3])
def test_a_folder_holds_the_states_of_the_kept_checkpoints_alone(keep: int, tmp_path: Path) -> None:
    """Each round trains two of five clients, so that states of different ages are kept."""
    checkpoint = Checkpoint(tmp_path, keep)
    federator = toy_federator(
        Recipe(Scaffold()), toy_clients(5), rounds=6, cohort=2, callbacks=[checkpoint], optimizer="sgd"
    )
    named: list[set[str]] = []
    log = checkpoint.on_log

    def logged(federator: object, metrics: dict[str, float]) -> None:
        log(federator, metrics)  # type: ignore[arg-type]  # the federator
        named.append(set(states.files.values()))
        there = {f"clients/{path.name}" for path in (tmp_path / "clients").iterdir()}
        assert there == set().union(*named[-keep:])

    states = federator.client_states
    checkpoint.on_log = logged  # type: ignore[method-assign]  # looks after each round
    federator.fit()
    assert len(named) == 6
