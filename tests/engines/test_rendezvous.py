"""How processes find each other: on one machine nobody else can reach them, and nothing waits for ever."""

from __future__ import annotations

import datetime
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from multiprocessing import get_context
from multiprocessing.synchronize import Event
from pathlib import Path
from typing import Any

import psutil
import pytest
from lightning.fabric.plugins.environments import LightningEnvironment, SLURMEnvironment

from flt.core.errors import InputError, PeerDiedError
from flt.engines import rendezvous
from flt.engines.rendezvous import (
    first_socket,
    hosts_of_first,
    is_loopback,
    listen,
    on_one_machine,
    port_of,
    stay_on_loopback,
    store_of,
)

TORCHRUN = {
    "LOCAL_RANK": "0", "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "first.host",
    "TORCHELASTIC_USE_AGENT_STORE": "True",
}  # fmt: skip
"""What torchrun sets in the first of two processes on one machine."""
SET = {*TORCHRUN, "MASTER_PORT", "NODE_RANK", "SLURM_NNODES"}


@pytest.fixture(autouse=True)
def own_environment(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    for name in SET:
        monkeypatch.delenv(name, raising=False)
    before = dict(os.environ)
    yield
    os.environ.clear()
    os.environ.update(before)


@pytest.fixture
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rendezvous, "LIMIT", datetime.timedelta(seconds=0.6))
    monkeypatch.setattr(rendezvous, "STORE_TIMEOUT", datetime.timedelta(seconds=2))


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


@pytest.mark.parametrize(
    ("host", "expected"),
    [("127.0.0.1", True), ("127.0.1.1", True), ("::1", True), ("localhost", True), ("10.0.0.1", False),
     ("0.0.0.0", False), (socket.gethostname(), False), ("first.host", False), ("", False)],
)  # fmt: skip
def test_an_address_is_of_this_machine_only_if_every_machine_says_so(host: str, expected: bool) -> None:
    assert is_loopback(host) is expected


@pytest.mark.parametrize(
    ("nodes", "environment", "expected"),
    [
        (1, {}, True),
        (1, {"MASTER_ADDR": "10.0.0.1"}, True),  # this process launches all others
        (2, {"MASTER_ADDR": "10.0.0.1"}, False),
        (2, {"MASTER_ADDR": "127.0.0.1"}, True),
        (1, {"LOCAL_RANK": "0", "MASTER_ADDR": "127.0.0.1"}, True),
        (1, {"LOCAL_RANK": "0", "MASTER_ADDR": "first.host"}, False),
        (1, {"LOCAL_RANK": "0", "MASTER_ADDR": "first.host", "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}, True),
        (1, {"LOCAL_RANK": "0", "MASTER_ADDR": "first.host", "WORLD_SIZE": "4", "LOCAL_WORLD_SIZE": "2"}, False),
        (1, {"LOCAL_RANK": "0", "MASTER_ADDR": "first.host", "SLURM_NNODES": "1"}, True),
    ],
)
def test_runs_on_one_machine_are_recognised(
    nodes: int, environment: dict[str, str], expected: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert on_one_machine(LightningEnvironment(), nodes) is expected


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({"MASTER_ADDR": "first.host"}, ("127.0.0.1", "127.0.0.1")),  # this process launches all others
        (TORCHRUN, ("first.host", "127.0.0.1")),
        (TORCHRUN | {"MASTER_ADDR": "localhost"}, ("localhost", "127.0.0.1")),
        (TORCHRUN | {"WORLD_SIZE": "4"}, ("first.host", "first.host")),
        (TORCHRUN | {"TORCHELASTIC_USE_AGENT_STORE": "False"}, ("127.0.0.1", "127.0.0.1")),
        ({"LOCAL_RANK": "0", "MASTER_ADDR": "first.host", "SLURM_NNODES": "1"}, ("127.0.0.1", "127.0.0.1")),
        ({"LOCAL_RANK": "0", "MASTER_ADDR": "first.host", "SLURM_NNODES": "2"}, ("first.host", "first.host")),
    ],
)
def test_only_the_store_of_torchrun_is_reached_by_the_name_of_the_machine(
    environment: dict[str, str], expected: tuple[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert hosts_of_first(LightningEnvironment(), 1) == expected


def test_gloo_and_nccl_use_the_loopback_interface_unless_the_user_has_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("GLOO_SOCKET_IFNAME", raising=False)
    monkeypatch.setenv("NCCL_SOCKET_IFNAME", "eth7")
    stay_on_loopback()
    assert os.environ["GLOO_SOCKET_IFNAME"] in ("lo", "lo0")
    assert os.environ["NCCL_SOCKET_IFNAME"] == "eth7"


def addresses(opened: socket.socket) -> set[str]:
    return {
        found.laddr.ip
        for found in psutil.Process().net_connections()
        if found.status == psutil.CONN_LISTEN and found.laddr.port == opened.getsockname()[1]
    }


@pytest.mark.parametrize(("host", "expected"), [("127.0.0.1", {"127.0.0.1"}), ("first.host", {"::", "0.0.0.0"})])
def test_a_socket_is_open_to_the_network_only_for_several_machines(host: str, expected: set[str]) -> None:
    with listen(host) as opened:
        assert addresses(opened)
        assert addresses(opened) <= expected


def alone() -> None:
    opened = listen("127.0.0.1")
    port = opened.getsockname()[1]
    store = store_of("127.0.0.1", port, 0, 1, opened, ())
    found = [its.laddr for its in psutil.Process().net_connections() if its.status == psutil.CONN_LISTEN]
    os._exit(7 if store.port == port and {its.ip for its in found if its.port == port} == {"127.0.0.1"} else 8)


def test_a_store_keeps_to_the_socket_that_was_opened_for_it() -> None:
    assert exit_code(alone) == 7


def exit_code(work: Callable[..., None], *arguments: object) -> int | None:
    """The exit code of a fork. A store has threads, with which later forks of the test's process could hang."""
    process = get_context("fork").Process(target=work, args=arguments)
    process.start()
    process.join(30)
    process.kill()
    process.join()
    return process.exitcode


def test_without_a_port_any_free_one_is_taken_and_announced() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        opened = first_socket(LightningEnvironment(), nodes=1)
        assert opened is not None
        with opened:
            assert os.environ["MASTER_ADDR"] == "127.0.0.1"
            assert os.environ["MASTER_PORT"] == str(opened.getsockname()[1]) != str(taken.getsockname()[1])
            with pytest.raises(InputError):  # it is held until the store takes it over
                listen("127.0.0.1", opened.getsockname()[1])


@pytest.mark.parametrize("nodes", [1, 2])
def test_a_given_port_that_is_taken_is_a_line(nodes: int, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
        monkeypatch.setenv("MASTER_PORT", str(port))
        with pytest.raises(InputError, match=f"^MASTER_PORT={port}: another program uses it; allowed is a free port"):
            first_socket(LightningEnvironment(), nodes)


@pytest.mark.parametrize("port", ["abc", "0", "-1", "65536", "1e4", " "])
def test_a_port_that_is_none_is_a_line(port: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MASTER_PORT", port)
    with pytest.raises(InputError, match=r"^MASTER_PORT=.*: allowed is an integer from 1 to 65535"):
        first_socket(LightningEnvironment(), 1)
    with pytest.raises(InputError, match="^MASTER_PORT="):
        port_of(LightningEnvironment())


@pytest.mark.parametrize(
    ("given", "name", "what"),
    [
        ({}, "MASTER_ADDR", "address"),
        ({"MASTER_PORT": "29500"}, "MASTER_ADDR", "address"),
        ({"MASTER_ADDR": "first.host"}, "MASTER_PORT", "port"),
    ],
)
def test_several_machines_need_an_address_and_a_port(
    given: dict[str, str], name: str, what: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for key, value in given.items():
        monkeypatch.setenv(key, value)
    line = f"{name}=not set: engine.nodes=2; allowed is the {what} of the first machine, the same on all machines"
    with pytest.raises(InputError, match=f"^{line}$"):
        first_socket(LightningEnvironment(), 2)


def test_the_other_machines_and_other_launchers_open_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MASTER_ADDR", "first.host")
    monkeypatch.setenv("MASTER_PORT", str(free_port()))
    monkeypatch.setenv("NODE_RANK", "1")
    assert first_socket(LightningEnvironment(), 2) is None
    assert first_socket(SLURMEnvironment(), 2) is None
    monkeypatch.setenv("LOCAL_RANK", "0")
    assert first_socket(LightningEnvironment(), 1) is None


def one_of_two(rank: int, port: int, tried: Event) -> None:
    connect = socket.create_connection

    def trying(*arguments: Any, **keywords: Any) -> socket.socket:
        try:
            return connect(*arguments, **keywords)
        except OSError:
            tried.set()
            raise

    socket.create_connection = trying
    store = store_of("127.0.0.1", port, rank, 2, None, ())
    if rank == 0:
        store.wait(["seen"])  # the store has to live until the other one has seen this process
    else:
        store.set("seen", "")
    os._exit(7)


def test_processes_meet_in_any_order() -> None:
    port, context = free_port(), get_context("fork")
    tried = context.Event()
    other, first = (context.Process(target=one_of_two, args=(rank, port, tried)) for rank in (1, 0))
    other.start()
    assert tried.wait(30)
    first.start()
    for process in (other, first):
        process.join(30)
        process.kill()
        process.join()
        assert process.exitcode == 7


def joining(rank: int, size: int, port: int, said: Path) -> None:
    try:
        store_of("127.0.0.1", port, rank, size, None, ())
    except InputError as error:
        said.write_text(str(error))
    os._exit(0)  # torch's thread may wait for ever


def test_a_first_process_that_nobody_joins_ends_with_a_line(soon: None, tmp_path: Path) -> None:
    began = time.monotonic()
    assert exit_code(joining, 0, 3, free_port(), tmp_path / "said") == 0
    line = "processes of the run=apart: 2 of 3 processes are missing, the first of them with rank 1; allowed is to meet"
    assert (tmp_path / "said").read_text().startswith(line)
    assert time.monotonic() - began < 10


@pytest.mark.parametrize("host", ["127.0.0.1", "no.such.host.invalid"])
def test_a_process_that_reaches_no_first_one_ends_with_a_line(host: str, soon: None) -> None:
    began = time.monotonic()
    with pytest.raises(InputError, match=f"^processes of the run=apart: {host}:.* can't be reached: .*; allowed is to"):
        store_of(host, free_port(), 1, 2, None, ())
    assert time.monotonic() - began < 20  # some resolvers take their time


@pytest.mark.parametrize("answer", [b"", b"HTTP/1.1 400 Bad Request\r\n\r\n"], ids=["silent", "talkative"])
def test_another_program_at_the_port_ends_the_rendezvous_with_a_line(answer: bytes, soon: None, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        process = get_context("fork").Process(target=joining, args=(1, 2, port, tmp_path / "said"))
        process.start()
        kept = []
        for _ in range(2):
            kept.append(other.accept()[0])
            kept[-1].sendall(answer)
        process.join(20)
        process.kill()
        process.join()
        for connection in kept:
            connection.close()
    line = f"processes of the run=apart: no store of a run answers at 127.0.0.1:{port}; allowed is to meet within"
    assert (tmp_path / "said").read_text().startswith(line)


def launching(said: Path) -> None:
    launched = [subprocess.Popen([sys.executable, "-c", "import sys; sys.exit(5)"])]
    try:
        store_of("127.0.0.1", free_port(), 0, 2, None, launched)
    except PeerDiedError as error:
        said.write_text(str(error))
    os._exit(0)


def test_a_launched_process_that_ends_meanwhile_is_named(tmp_path: Path) -> None:
    assert exit_code(launching, tmp_path / "said") == 0
    line = "process 1 of this machine has ended while it started, with exit code 5"
    assert (tmp_path / "said").read_text() == line
