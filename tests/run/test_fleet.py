"""Fleets of real runs: ranks that memory allows, an end by the simulated clock, a resume, and what is refused."""

from __future__ import annotations

import csv
import os
from pathlib import Path
from typing import Any

import pytest
from commands import in_empty_folder, train
from omegaconf import OmegaConf
from planned import run_of, settings

import flt
from flt.cli.main import main
from flt.run import workload
from flt.run.assembly import Setup, assemble
from flt.run.planning.plan import plan_run

MEMORY = ["fleet=tiers", "ranks=fleet", "clients=4", "adapter.rank=6", "adapter.alpha=12"]


@pytest.fixture(autouse=True)
def quick(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    in_empty_folder(tmp_path, monkeypatch)


def history(run: Path) -> list[dict[str, float]]:
    with (run / "metrics.csv").open() as file:
        return [{key: float(value) for key, value in row.items() if value} for row in csv.DictReader(file)]


def setup_of(*overrides: str) -> tuple[Setup, Any]:
    cfg = settings(*overrides)
    federation = workload.federation(cfg)
    return assemble(cfg, federation), federation


def needed(*overrides: str) -> list[int]:
    """Bytes that a fit needs at rank 1, 2, ..., from the lines with which less is refused."""
    import flt.run.fleet as module

    found: list[int] = []
    cfg = settings(*MEMORY, *overrides)
    federation = workload.federation(cfg)
    original = module.FitCost.memory

    def memory(self: Any, *arguments: Any) -> int:
        found.append(original(self, *arguments))
        return found[-1]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module.FitCost, "memory", memory)
        module.with_fleet_ranks(cfg, federation)
    return found[:6]


@pytest.fixture(scope="module")
def bytes_of_ranks(tmp_path_factory: pytest.TempPathFactory) -> list[int]:
    before = Path.cwd()
    with pytest.MonkeyPatch.context() as patch:
        in_empty_folder(tmp_path_factory.mktemp("memory"), patch)
        found = needed("algo=flexlora", "fleet.tiers.phone.share=0")
    os.chdir(before)
    return found


def test_more_components_need_more_memory(bytes_of_ranks: list[int]) -> None:
    assert bytes_of_ranks == sorted(set(bytes_of_ranks))


def tiers(found: list[int], *ranks: int) -> list[str]:
    """Tiers of which the first has room for the first rank, and so on."""
    names = ("phone", "laptop", "workstation")
    return [f"fleet.tiers.{name}.memory={found[rank - 1] + 1}" for name, rank in zip(names, ranks, strict=True)]


def test_each_client_gets_the_largest_rank_that_its_memory_allows(bytes_of_ranks: list[int]) -> None:
    setup, _ = setup_of("algo=flexlora", *MEMORY, *tiers(bytes_of_ranks, 2, 4, 6))
    assert setup.fleet is not None
    ranks = {device.kind: setup.clients[client].rank for client, device in setup.fleet.of.items()}
    assert ranks == {"phone": 2, "laptop": 4, "workstation": 6}


def test_where_all_train_all_components_the_adapter_has_the_least_rank_and_its_scale(bytes_of_ranks: list[int]) -> None:
    setup, federation = setup_of("algo=fedit", *MEMORY, *tiers(bytes_of_ranks, 2, 4, 6))
    plain, same = setup_of("algo=fedit", "clients=4", "adapter.rank=2", "adapter.alpha=4")
    assert setup.layout == plain.layout
    assert {layer.scale for layer in setup.layout.layers.values()} == {2.0}
    found, expected = (dict(each.module.named_parameters()) for each in (federation, same))
    assert sorted(found) == sorted(expected)
    assert all(bool((value == expected[name]).all()) for name, value in found.items())
    assert all(value.requires_grad == expected[name].requires_grad for name, value in found.items())


def test_the_export_names_the_rank_that_all_have_room_for(bytes_of_ranks: list[int]) -> None:
    sizes = tiers(bytes_of_ranks, 2, 4, 6)
    assert train("algo=fedit", *MEMORY, *sizes, "name=least", "logger=[]", "report=false") == 0
    run = Path("lightning_logs/least/version_0")
    card = (run / "adapter" / "README.md").read_text()
    assert "lora (rank 2, alpha 4.0)" in card
    assert "adapter.rank=6" in card  # the command is the user's
    assert flt.show(run).model == "embedded, lora of rank up to 6, by the devices' memory"


def test_a_client_without_room_for_rank_1_is_named(bytes_of_ranks: list[int], capsys: pytest.CaptureFixture) -> None:
    assert main(["train", "algo=flexlora", *MEMORY, "fleet.tiers.phone.memory=1000"]) == 2
    error = capsys.readouterr().err
    assert "memory of client" in error
    assert "for rank 1" in error


def test_a_run_ends_with_the_round_that_reaches_the_hours_and_a_resume_goes_on_by_the_same_clock() -> None:
    fleet = ["algo=fedit", "fleet=tiers", "logger=[]", "report=false", "rounds=4"]
    assert train(*fleet, "name=whole") == 0
    whole = history(Path("lightning_logs/whole/version_0"))
    hours = [row["time/simulated_hours"] for row in whole]
    assert len(hours) == 4
    assert train(*fleet, "name=short", f"stop.simulated_hours={(hours[0] + hours[1]) / 2}") == 0
    short = Path("lightning_logs/short/version_0")
    assert [row["time/simulated_hours"] for row in history(short)] == hours[:2]
    assert train("algo=fedit", "name=short", "resume=last", "rounds=4", "stop.simulated_hours=null") == 0
    for row, other in zip(history(short), whole, strict=True):
        assert _steady(row) == _steady(other)


def _steady(row: dict[str, float]) -> dict[str, float]:
    """Metrics without real times, and without those of the test split, which a run has where it ends."""
    return {key: value for key, value in row.items() if not key.startswith(("time/round", "time/total", "test/"))}


def test_a_run_of_a_version_without_fleets_goes_on_without_one() -> None:
    assert train("algo=fedit", "logger=[]", "report=false", "name=old") == 0
    config = Path("lightning_logs/old/version_0/config.yaml")
    saved = OmegaConf.load(config)
    del saved["fleet"], saved["stop"]["simulated_hours"]
    OmegaConf.save(saved, config)
    assert train("algo=fedit", "name=old", "resume=last", "rounds=2") == 0
    rows = history(Path("lightning_logs/old/version_0"))
    assert len(rows) == 2
    assert not [key for row in rows for key in row if "fleet" in key or "simulated" in key]


def test_a_plan_has_the_simulated_seconds_of_the_run() -> None:
    cfg = settings("algo=hafl", "fleet=tiers", "rounds=3", "report=false", "logger=[]")
    planned = plan_run(cfg, lambda: workload.federation(cfg))
    _, rows = run_of(cfg)
    found = [one.simulated_seconds for one in planned.rounds]
    assert found == pytest.approx([row["fleet/round_seconds"] for row in rows], rel=1e-2)  # digits of metrics
    without = settings("algo=hafl")
    assert plan_run(without, lambda: workload.federation(without)).rounds[0].simulated_seconds is None


BAD = {
    "no such fleet": ("fleet=cars", "fleet=cars"),
    "no such key": ("fleet=uniform fleet.speed=3", "fleet.speed=3"),
    "a key without a fleet": ("fleet.deadline=3", "fleet.deadline=3"),
    "compute of zero": ("fleet=uniform fleet.compute=0", "fleet.compute=0.0"),
    "compute in words": ("fleet=uniform fleet.compute=fast", "fleet.compute=fast"),
    "a tier without a share": ("fleet=tiers fleet.tiers.phone.share=-1", "fleet.tiers.phone.share=-1.0"),
    "a trace without a file": ("fleet=trace", "fleet.path=None"),
    "a trace that is not there": ("fleet=trace fleet.path=gone.csv", "fleet.path=gone.csv"),
    "a trace with too few clients": ("fleet=trace fleet.path=short.csv", "a row for client 1"),
    "over-selection of all": ("fleet=uniform fleet.over_selection=0.3", "cohort.size"),
    "ranks of no fleet": ("ranks=fleet", "ranks=fleet"),
    "ranks in words": ("ranks=many", "ranks=many"),
    "ranks without components": ("fleet=uniform ranks=fleet algo=fedavg", "no components"),
    "hours without a clock": ("stop.simulated_hours=1", "stop.simulated_hours=1"),
    "hours of nothing": ("fleet=uniform stop.simulated_hours=0", "stop.simulated_hours=0"),
    "a rule that needs more than may arrive": ("fleet=uniform fleet.deadline=1 rule=krum", "rule"),
}


@pytest.mark.parametrize(("words", "expected"), BAD.values(), ids=BAD)
def test_what_cannot_be_is_refused_in_one_line_before_anything_is_written(
    words: str, expected: str, capsys: pytest.CaptureFixture
) -> None:
    Path("short.csv").write_text("client,compute,down,up\n0,1,1,1\n")
    assert main(["train", *(["algo=fedit"] if "algo=" not in words else []), *words.split()]) == 2
    error = capsys.readouterr().err.strip()
    assert expected in error
    assert "Traceback" not in error
    assert not Path("lightning_logs").exists()


@pytest.mark.slow
@pytest.mark.parametrize(
    "recipe",
    ["hafl", "haflq", "hetlora", "flora", "flexlora", "fedit", "sa_fedlora", "c2a", "fl_tac", "fedsa_lora", "fedavg"],
)
def test_every_recipe_has_a_simulated_clock(recipe: str) -> None:
    data = ["data=digits_two"] if recipe == "fl_tac" else []
    assert train(f"algo={recipe}", *data, "fleet=tiers", "fleet.deadline=10", "rounds=2", "report=false") == 0
    (run,) = Path("lightning_logs").glob("*/version_0")
    assert all(row["fleet/round_seconds"] > 0 for row in history(run))
