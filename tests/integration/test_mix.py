"""The ideas of three papers in one command: HAFL's freezing in FL-TAC's clusters under SA-FedLoRA's schedule."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch
from benchmarks.pages.combinations import MIX
from commands import in_empty_folder, metrics, train
from toys import toy_clients, toy_federator

from flt.callbacks.communication import Communication
from flt.protocol.messages import Update
from flt.protocol.state import ServerState
from flt.run import build
from flt.run.compose import load_config
from flt.server.callback import FedCallback
from flt.server.federator import Federator

pytestmark = pytest.mark.slow  # whole runs and fits


ROUNDS, RANK, RANKS = 8, 8, (2, 4)
METHODS = Path(__file__).parents[2] / "docs" / "methods.md"


@dataclasses.dataclass
class Seen(FedCallback):
    """What came and went in a round: the states before and after it, and the updates."""

    before: list[ServerState] = dataclasses.field(default_factory=list)
    after: list[ServerState] = dataclasses.field(default_factory=list)
    updates: list[list[Update]] = dataclasses.field(default_factory=list)

    def on_round_start(self, federator: Federator) -> None:
        self.before.append(federator.state)

    def on_round_end(self, federator: Federator) -> None:
        self.after.append(federator.state)
        self.updates.append(list(federator.updates))


@pytest.fixture(scope="module")
def mixed() -> tuple[Federator, Seen]:
    """The command's recipe on four clients of two tasks each, federated for eight rounds."""
    recipe = build.recipe(load_config([*MIX.split()[2:], f"rounds={ROUNDS}"]), tasks=2)
    seen, clients = Seen(), toy_clients(4, 2, RANKS)
    for number, client in clients.items():  # nothing is evaluated here
        data = tuple(dataclasses.replace(job, held_out=job.held_out[:0]) for job in client.data)
        clients[number] = dataclasses.replace(client, data=data)
    watch = [Communication(), seen]
    federator = toy_federator(recipe, clients, rounds=ROUNDS, rank=RANK, steps=15, lr=2e-2, callbacks=watch)
    federator.fit()
    return federator, seen


def test_jobs_are_clustered_into_their_tasks_which_the_server_is_not_told(mixed: tuple[Federator, Seen]) -> None:
    _, seen = mixed
    jobs = [(client, task) for client in range(4) for task in range(2)]
    cluster_of = {task: seen.after[-1].group_of((0, task)) for task in range(2)}
    assert cluster_of[0] != cluster_of[1]
    for state in seen.after:
        assert {job: state.group_of(job) for job in jobs} == {job: cluster_of[job[1]] for job in jobs}


def test_clients_train_as_many_pairs_as_their_rank_and_hold_all_living_ones(mixed: tuple[Federator, Seen]) -> None:
    _, seen = mixed
    for before, updates in zip(seen.before, seen.updates, strict=True):
        for update in updates:
            living, rank = before.alive, RANKS[update.job[0] % len(RANKS)]
            assert {name: len(ids) for name, ids in update.kept.items()} == {
                name: min(rank, len(ids)) for name, ids in living.items()
            }
    assert {len(update.kept["fc1"]) for update in seen.updates[0]} == set(RANKS)


def test_a_pair_that_no_member_of_a_cluster_trained_keeps_its_bits_and_others_move(
    mixed: tuple[Federator, Seen],
) -> None:
    federator, seen = mixed
    frozen = moved = 0
    for before, after, updates in zip(seen.before, seen.after, seen.updates, strict=True):
        for gid in {after.group_of(update.job) for update in updates}:
            members = [update for update in updates if after.group_of(update.job) == gid]
            (came_from,) = {before.group_of(update.job) for update in members}
            for name, layer in federator.server.layout.layers.items():
                trained = {pair for update in members for pair in update.kept[name]}
                a, b = before.groups[came_from].weights[layer.a], after.groups[gid].weights[layer.a]
                same = [torch.equal(a[pair], b[pair]) for pair in range(RANK)]
                assert all(same[pair] for pair in range(RANK) if pair not in trained)
                frozen += len(set(before.alive[name]) - trained)
                moved += sum(not same[pair] for pair in trained)
    assert frozen > 0
    assert moved > 0


def test_the_budget_falls_over_the_rounds_and_messages_with_it(mixed: tuple[Federator, Seen]) -> None:
    federator, seen = mixed
    budgets = [len(state.alive["fc1"]) for state in [seen.before[0], *seen.after]]
    assert budgets[0] == RANK
    assert budgets[-1] == 2
    assert budgets == sorted(budgets, reverse=True)
    for direction in ("comm/bytes_up", "comm/bytes_down"):
        assert federator.history[-1][direction] < federator.history[0][direction]


@pytest.mark.slow
def test_the_command_of_the_page_of_methods_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    in_empty_folder(tmp_path, monkeypatch)
    assert MIX.removeprefix("flt train algo=hafl ") in METHODS.read_text()
    assert train(*MIX.split()[2:], "rounds=3", "name=mix") == 0
    run = tmp_path / "lightning_logs" / "mix" / "version_0"
    assert len(metrics(run)) == 3
    assert len(list((run / "adapter").glob("group_*"))) == 2


@pytest.mark.slow
@pytest.mark.parametrize(
    "command",
    [
        "algo=hafl plan=stages",
        "algo=sa_fedlora selection=freeze ranks=[2,16] schedule.end=2",
        "algo=fl_tac schedule=annealed importance=gradient",
    ],
)
def test_a_paper_takes_another_one_s_part(command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    in_empty_folder(tmp_path, monkeypatch)
    assert train(*command.split(), "rounds=3", "name=mix") == 0
    assert len(metrics(tmp_path / "lightning_logs" / "mix" / "version_0")) == 3
