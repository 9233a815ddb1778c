"""ProcessGroup that Lightning launches for the command line: on one machine, on two nodes, and what refuses them."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from multiprocessing import get_context
from pathlib import Path

import psutil
import pytest
import torch.distributed as dist
from commands import metrics
from launched import LIMIT, SHORT, ForkedFlt, ended, flt
from safetensors.torch import load

from flt.cli.main import main
from flt.core.errors import InputError
from flt.engines.distributed import DistributedSettings
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


def listening() -> set[tuple[str, int]]:
    found = [its.laddr for its in psutil.Process().net_connections() if its.status == psutil.CONN_LISTEN]
    return {(its.ip, its.port) for its in found}


def under_torchrun(host: str) -> None:
    """A process that torchrun has started, which also keeps torchrun's store here."""
    agent = dist.TCPStore(host, 0, is_master=True, wait_for_workers=False)
    before = listening()
    environment = {"RANK": 0, "LOCAL_RANK": 0, "GROUP_RANK": 0, "WORLD_SIZE": 1, "LOCAL_WORLD_SIZE": 1}
    environment |= {"TORCHELASTIC_RUN_ID": "run", "TORCHELASTIC_USE_AGENT_STORE": True}
    environment |= {"MASTER_ADDR": host, "MASTER_PORT": agent.port}
    os.environ.update({name: str(value) for name, value in environment.items()})
    own = launch(1, DistributedSettings(), lambda processes: listening() - before)
    os._exit(7 if own and {ip for ip, _ in own} == {"127.0.0.1"} else 8)


def test_under_torchrun_on_one_machine_all_that_flt_opens_is_on_loopback() -> None:
    host = socket.gethostname()
    try:
        socket.getaddrinfo(host, None)
    except OSError:
        pytest.skip("this machine doesn't know its own name")
    process = get_context("fork").Process(target=under_torchrun, args=(host,))
    process.start()
    process.join(60)
    process.kill()
    process.join()
    assert process.exitcode == 7


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


@pytest.fixture(autouse=True)
def own_environment() -> Iterator[None]:
    """A launcher leaves variables that would make the runs of later tests parts of its own."""
    before = dict(os.environ)
    yield
    os.environ.clear()
    os.environ.update(before)


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The bits of a run in one process."""
    folder = tmp_path_factory.mktemp("plain")
    with contextlib.chdir(folder):
        assert main(["train", *SHORT, "name=plain"]) == 0
    return bits(folder, "plain")


@pytest.mark.slow
def test_processes_of_one_machine_have_the_bits_of_serial_and_one_of_them_speaks(
    tmp_path: Path, plain: dict[str, bytes]
) -> None:
    (printed,) = ended(flt(tmp_path, "engine=distributed", "devices=2", "name=ddp"))
    assert bits(tmp_path, "ddp") == plain
    assert printed.splitlines()[1] == "ddp on digits  rounds 1-2  clients 4"
    assert printed.count("round 2/2") == 1


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["ddp_spawn", "ddp_fork"])
def test_processes_that_python_starts_have_the_bits_of_serial_and_one_of_them_speaks(
    strategy: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str],
    plain: dict[str, bytes],
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    options = ["engine=distributed", "devices=2", f"engine.strategy={strategy}", f"name={strategy}"]
    assert main(["train", *SHORT, *options]) == 0
    printed = "".join(capfd.readouterr())
    assert bits(tmp_path, strategy) == plain
    assert f"{strategy} on digits  rounds 1-2  clients 4\n" in printed
    assert printed.count("round 2/2") == 1


@pytest.mark.slow
def test_the_fits_of_a_run_are_split_over_processes(tmp_path: Path, plain: dict[str, bytes]) -> None:
    ended(ForkedFlt(tmp_path, "engine=sharded", "engine.strategy=fsdp", "devices=2", "name=sharded"))
    whole, split = (load(its["adapter"]) for its in (plain, bits(tmp_path, "sharded")))
    assert whole.keys() == split.keys()
    assert 0 < max(float((whole[key] - split[key]).abs().max()) for key in whole) < 1e-4  # not to the bit


@pytest.mark.slow
def test_two_nodes_share_a_cohort_over_loopback(tmp_path: Path, plain: dict[str, bytes]) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    options = ["engine=distributed", "engine.nodes=2", "devices=1", "name=nodes"]
    there = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    nodes = [ForkedFlt(tmp_path, *options, **there, NODE_RANK=str(rank)) for rank in range(2)]
    first, second = ended(*nodes)
    assert bits(tmp_path, "nodes") == plain
    assert "round 2/2" in first
    assert second == ""


@pytest.mark.slow
def test_a_run_goes_on_with_another_number_of_processes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, plain: dict[str, bytes]
) -> None:
    monkeypatch.chdir(tmp_path)
    options = ["engine=distributed", "engine.strategy=ddp_fork", "name=resumed"]
    assert main(["train", *SHORT, *options, "devices=2", "rounds=1"]) == 0
    assert main(["train", *SHORT, *options, "devices=3", "rounds=2", "resume=last"]) == 0
    assert bits(tmp_path, "resumed")["adapter"] == plain["adapter"]
    (config,) = (tmp_path / "lightning_logs" / "resumed").glob("*/config.yaml")
    assert "devices: 3" in config.read_text()


def assert_one_line(printed: str) -> None:
    assert len([line for line in printed.splitlines() if line.startswith("error: ")]) == 1
    assert "Traceback" not in printed


MISTAKE = ["engine=distributed", "devices=2", "local.lr=1e30", "name=high"]


@pytest.mark.slow
def test_a_mistake_is_one_line_and_exit_code_2_with_several_processes_too(tmp_path: Path) -> None:
    run = ForkedFlt(tmp_path, *MISTAKE)
    printed = run.communicate(timeout=LIMIT)[0]
    assert run.returncode == 2
    assert_one_line(printed)
    assert not (tmp_path / "lightning_logs" / "high").exists()


@pytest.mark.slow
def test_a_mistake_is_one_line_and_exit_code_2_in_forked_processes_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["train", *SHORT, *MISTAKE, "engine.strategy=ddp_fork"]) == 2
    assert_one_line("".join(capfd.readouterr()))
    assert not (tmp_path / "lightning_logs" / "high").exists()


@pytest.mark.slow
def test_a_process_that_dies_is_replaced_and_no_bit_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    longer = ["rounds=4", "local.steps=10"]
    run = ForkedFlt(tmp_path, "engine=distributed", "devices=2", "name=replaced", *longer)
    checkpoints = tmp_path / "lightning_logs" / "replaced" / "version_0" / "checkpoints"
    until = time.monotonic() + LIMIT
    while not list(checkpoints.glob("round_*.json")) and time.monotonic() < until:
        time.sleep(0.02)
    (other,) = psutil.Process(run.pid).children()
    other.kill()
    monkeypatch.chdir(tmp_path)
    assert main(["train", *SHORT, *longer, "name=plain"]) == 0
    (printed,) = ended(run)
    assert "a process has died and is replaced (1 of at most 3 times)" in printed
    assert "Traceback" not in printed
    assert bits(tmp_path, "replaced") == bits(tmp_path, "plain")


TWICE = """
import sys
from flt.cli.main import main
codes = [main(["train", *sys.argv[1:], *more]) for more in (["local.lr=1e30"], [], ["engine=serial", "devices=1"])]
print(codes)
"""
"""A program that goes on after a run has failed."""


@pytest.mark.slow
def test_after_a_failed_run_a_second_one_is_refused_in_a_line_and_one_without_processes_works(tmp_path: Path) -> None:
    (tmp_path / "twice.py").write_text(TWICE)
    options = [*SHORT, "engine=distributed", "devices=2", "name=twice"]
    done = subprocess.run(
        [sys.executable, "twice.py", *options], cwd=tmp_path, capture_output=True, text=True, timeout=LIMIT
    )
    assert done.stdout.splitlines()[-1] == "[2, 2, 0]"
    first, second = done.stderr.splitlines()
    assert first.startswith("error: update of client ")
    assert second.startswith("error: engine.strategy=ddp: its processes ended when an earlier run failed")
