"""ProcessGroup that Lightning launches for the command line: on one machine, on two nodes, and what refuses them."""

from __future__ import annotations

import dataclasses
import socket
import time
from pathlib import Path

import psutil
import pytest
from commands import metrics
from launched import LIMIT, SHORT, ended, flt
from safetensors.torch import load_file

from flt.cli.main import main
from flt.core.errors import InputError
from flt.engines.launcher import launch
from flt.run import build
from flt.run.compose import load_config


@pytest.mark.parametrize(
    ("overrides", "line"),
    [
        (
            ["devices=2"],
            "devices=2: engine=distributed and engine=sharded use several; allowed is 1 with engine=serial",
        ),
        (["engine=distributed", "devices=0"], "devices=0: allowed is an integer "),
        (["engine=distributed", "engine.strategy=dp"], "engine.strategy=dp: allowed is ddp, ddp_spawn, ddp_fork"),
        (["engine=distributed", "engine.nodes=0"], "engine.nodes=0: allowed is an integer >= 1"),
    ],
)
def test_what_cannot_be_launched_is_refused_in_a_line(overrides: list[str], line: str) -> None:
    def go() -> None:
        cfg = load_config(overrides)
        launch(cfg.devices, build.engine_settings(cfg), lambda processes: None)

    with pytest.raises(InputError) as raised:
        go()
    assert str(raised.value).startswith(line)


@pytest.mark.parametrize(
    ("engine", "line"),
    [
        ({"name": "parallel"}, "engine.name=parallel: allowed is "),
        ({"name": "distributed", "inside": "distributed"}, "engine.inside=distributed: allowed is "),
        ({"name": "serial", "jobs": 3}, "engine.jobs=3: "),
    ],
)
def test_settings_that_an_engine_does_not_have_are_refused(engine: dict[str, object], line: str) -> None:
    with pytest.raises(InputError) as raised:
        build.engine_settings(dataclasses.replace(load_config([]), engine=engine))
    assert str(raised.value).startswith(line)


def bits(folder: Path, name: str) -> dict[str, bytes]:
    """The adapter and the figures of a run."""
    (run,) = (folder / "lightning_logs" / name).glob("version_*")
    return {
        "adapter": (run / "adapter" / "adapter_model.safetensors").read_bytes(),
        "metrics": "\n".join(map(str, metrics(run))).encode(),
    }


def test_forked_processes_have_one_thread_each(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    options = ["engine=distributed", "devices=2", "engine.strategy=ddp_fork", "threads=2"]
    assert main(["train", *SHORT, *options]) == 2
    assert "error: threads=2: " in capfd.readouterr().err
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_processes_of_one_machine_have_the_bits_of_serial_and_one_of_them_speaks(tmp_path: Path) -> None:
    ended(flt(tmp_path, "name=plain"))
    for strategy in ("ddp", "ddp_spawn", "ddp_fork"):
        options = ["engine=distributed", "devices=2", f"engine.strategy={strategy}", f"name={strategy}"]
        (printed,) = ended(flt(tmp_path, *options))
        assert bits(tmp_path, strategy) == bits(tmp_path, "plain")
        assert printed.splitlines()[1] == f"{strategy} on digits  rounds 1-2  clients 4"
        assert printed.count("round 2/2") == 1


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_the_fits_of_a_run_are_split_over_processes(strategy: str, tmp_path: Path) -> None:
    ended(flt(tmp_path, "name=plain", "rounds=1"))
    ended(flt(tmp_path, "engine=sharded", f"engine.strategy={strategy}", "devices=2", "name=sharded", "rounds=1"))
    plain, split = (
        load_file(tmp_path / "lightning_logs" / name / "version_0" / "adapter" / "adapter_model.safetensors")
        for name in ("plain", "sharded")
    )
    assert plain.keys() == split.keys()
    assert 0 < max(float((plain[key] - split[key]).abs().max()) for key in plain) < 1e-4  # not to the bit


@pytest.mark.slow
def test_two_nodes_share_a_cohort_over_loopback(tmp_path: Path) -> None:
    ended(flt(tmp_path, "name=plain"))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    options = ["engine=distributed", "engine.nodes=2", "devices=1", "name=nodes"]
    there = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    nodes = [flt(tmp_path, *options, **there, NODE_RANK=str(rank)) for rank in range(2)]
    first, second = ended(*nodes)
    assert bits(tmp_path, "nodes") == bits(tmp_path, "plain")
    assert "round 2/2" in first
    assert second == ""


@pytest.mark.slow
def test_a_run_goes_on_with_another_number_of_processes(tmp_path: Path) -> None:
    ended(flt(tmp_path, "name=plain"))
    options = ["engine=distributed", "algo=hafl", "name=resumed"]
    ended(flt(tmp_path, *options, "devices=2", "rounds=1"))
    ended(flt(tmp_path, *options, "devices=3", "rounds=2", "resume=last"))
    assert bits(tmp_path, "resumed")["adapter"] == bits(tmp_path, "plain")["adapter"]
    (config,) = (tmp_path / "lightning_logs" / "resumed").glob("*/config.yaml")
    assert "devices: 3" in config.read_text()


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["ddp", "ddp_spawn", "ddp_fork"])
def test_a_mistake_is_one_line_and_exit_code_2_with_several_processes_too(strategy: str, tmp_path: Path) -> None:
    options = ["engine=distributed", f"engine.strategy={strategy}", "devices=2"]
    run = flt(tmp_path, *options, "local.lr=1e30", "name=high")
    printed = run.communicate(timeout=LIMIT)[0]
    assert run.returncode == 2
    assert len([line for line in printed.splitlines() if line.startswith("error: ")]) == 1
    assert "Traceback" not in printed
    assert not (tmp_path / "lightning_logs" / "high").exists()


@pytest.mark.slow
def test_a_process_that_dies_is_replaced_and_no_bit_changes(tmp_path: Path) -> None:
    longer = ["rounds=6", "local.steps=20"]
    ended(flt(tmp_path, "name=plain", *longer))
    run = flt(tmp_path, "engine=distributed", "devices=2", "name=replaced", *longer)
    checkpoints = tmp_path / "lightning_logs" / "replaced" / "version_0" / "checkpoints"
    until = time.monotonic() + LIMIT
    while not list(checkpoints.glob("round_*.json")) and time.monotonic() < until:
        time.sleep(0.02)
    (other,) = psutil.Process(run.pid).children()
    other.kill()
    (printed,) = ended(run)
    assert "a process has died and is replaced (1 of at most 3 times)" in printed
    assert "Traceback" not in printed
    assert bits(tmp_path, "replaced") == bits(tmp_path, "plain")
