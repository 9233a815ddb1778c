"""Rendezvous of a run's processes: they find each other at a store that the first process keeps, within a time limit.

If all processes are on one machine, they listen on the loopback interface only, so that no other machine reaches them.
"""

from __future__ import annotations

import contextlib
import datetime
import errno
import ipaddress
import os
import socket
import subprocess
import threading
import time
from collections.abc import Iterator, Sequence

import torch.distributed as dist
from lightning.fabric.plugins.environments import ClusterEnvironment, LightningEnvironment

from flt.core.errors import InputError, PeerDiedError

LIMIT = datetime.timedelta(minutes=10)
"""Time that the processes have to find each other. Each of them loads the model and the data before."""
PEER_TIMEOUT = datetime.timedelta(days=30)
"""Time after which a process stops waiting for another one that it has found. A fit may take long."""
STORE_TIMEOUT = datetime.timedelta(seconds=60)
"""Time after which a process stops waiting for an answer of a store that accepts connections."""
LOOK = 0.05
"""Seconds between two looks for the other processes."""
LOOPBACK = "127.0.0.1"


def is_loopback(host: str) -> bool:
    """Returns whether an address is one of the loopback interface. Names except localhost are not looked up.

    Many machines resolve their own name to a loopback address, although other machines reach them by this name.
    """
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def on_one_machine(environment: ClusterEnvironment, nodes: int) -> bool:
    """Returns whether all processes of the run are on this machine."""
    if not environment.creates_processes_externally:
        return nodes == 1 or is_loopback(environment.main_address)
    size = os.environ.get("WORLD_SIZE")  # torchrun sets this variable and the next one
    alone = size is not None and size == os.environ.get("LOCAL_WORLD_SIZE")
    return is_loopback(environment.main_address) or alone or os.environ.get("SLURM_NNODES") == "1"


def has_agent_store() -> bool:
    """Returns whether torchrun keeps the store, so that the first process needn't."""
    return os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"


def hosts_of_first(environment: ClusterEnvironment, nodes: int) -> tuple[str, str]:
    """Returns two addresses of the first process: where the processes meet, and where flt's own stores are reached.

    They differ only if torchrun runs all processes on one machine: torchrun's store has the address that the user has
    given to torchrun, but flt's own stores stay on the loopback interface.
    """
    given = environment.main_address
    own = LOOPBACK if on_one_machine(environment, nodes) else given
    return given if has_agent_store() else own, own


def stay_on_loopback() -> None:
    """Makes gloo and NCCL use the loopback interface, unless the user has chosen an interface."""
    with contextlib.suppress(OSError, AttributeError, StopIteration):  # a system without interfaces that have names
        name = next(name for _, name in socket.if_nameindex() if name in ("lo", "lo0"))
        os.environ.setdefault("GLOO_SOCKET_IFNAME", name)
        os.environ.setdefault("NCCL_SOCKET_IFNAME", name)


def listen(host: str, port: int = 0) -> socket.socket:
    """Opens a listening socket: on the loopback interface if the host is a loopback address, else on all interfaces.

    Args:
        host: Address at which other processes reach this one.
        port: Port; 0 for any free port.

    Raises:
        InputError: The port is in use, or may not be used.
    """
    try:
        if is_loopback(host):
            return socket.create_server((LOOPBACK, port))
        if socket.has_dualstack_ipv6():
            return socket.create_server(("", port), family=socket.AF_INET6, dualstack_ipv6=True)
        return socket.create_server(("", port))
    except OSError as error:
        why = "another program uses it" if error.errno == errno.EADDRINUSE else f"{error.strerror}"
        raise InputError.of("MASTER_PORT", port, "a free port; unset, with one machine, flt finds one", why) from error


def first_socket(environment: ClusterEnvironment, nodes: int) -> socket.socket | None:
    """Opens the socket of the first process's store, before this process launches others, and announces its port.

    Because the socket stays open, no other program can take the port meanwhile.

    Returns:
        The socket; None if another program launches the processes, or if the first process is on another machine.

    Raises:
        InputError: ``MASTER_PORT`` is wrong or in use, or must be set and isn't.
    """
    if environment.creates_processes_externally or not isinstance(environment, LightningEnvironment):
        return None
    for name, what in (("MASTER_ADDR", "address"), ("MASTER_PORT", "port")) if nodes > 1 else ():
        if not os.environ.get(name):
            allowed, why = f"the {what} of the first machine, the same on all machines", f"engine.nodes={nodes}"
            raise InputError.of(name, "not set", allowed, why)
    port = port_of(environment) if os.environ.get("MASTER_PORT") else 0
    if nodes > 1 and environment.node_rank() != 0:
        return None
    host = LOOPBACK if on_one_machine(environment, nodes) else environment.main_address
    opened = listen(host, port)
    os.environ.update(MASTER_ADDR=host, MASTER_PORT=str(opened.getsockname()[1]))
    return opened


def port_of(environment: ClusterEnvironment) -> int:
    """Returns the port of the first process's store.

    Raises:
        InputError: It isn't the number of a port.
    """
    given = os.environ.get("MASTER_PORT", "")
    try:
        port = environment.main_port
    except ValueError:
        port = -1
    if not 0 < port < 1 << 16:
        raise InputError.of("MASTER_PORT", given or port, "an integer from 1 to 65535")
    return port


def store_of(
    host: str, port: int, rank: int, size: int, opened: socket.socket | None, launched: Sequence[subprocess.Popen]
) -> dist.TCPStore:
    """Returns the store at which all processes of the run have met.

    Args:
        host: Address of the first process.
        port: Port of the first process's store.
        rank: Rank of this process.
        size: Number of processes.
        opened: Socket of the store, in the first process. None: this process opens it now.
        launched: Processes that this process has launched.

    Raises:
        InputError: The processes didn't meet within ``LIMIT``.
        PeerDiedError: A launched process has ended meanwhile.
    """
    until = time.monotonic() + LIMIT.total_seconds()
    if rank == 0 and not has_agent_store():
        server = opened or listen(host, port)
        store = dist.TCPStore(
            host, port, is_master=True, wait_for_workers=False, timeout=STORE_TIMEOUT, master_listen_fd=server.detach()
        )
    else:
        if opened is not None:  # inherited from the process that has launched this one
            opened.close()
        store = _reached(host, port, until)
    with _broken_store(host, port):
        _meet(store, rank, size, until, launched)
    store.set_timeout(PEER_TIMEOUT)
    return store


def _reached(host: str, port: int, until: float) -> dist.TCPStore:
    """Returns the store of the first process, as soon as it can be reached."""
    while True:  # torch would wait for the first process in code that no signal interrupts
        try:
            with socket.create_connection((host, port), timeout=1.0):
                break
        except OSError as error:
            if time.monotonic() > until:
                raise _not_met(f"{host}:{port} can't be reached: {error}") from error
        time.sleep(LOOK)
    found: list[dist.TCPStore] = []

    def connect() -> None:
        with contextlib.suppress(RuntimeError):
            found.append(dist.TCPStore(host, port, is_master=False, timeout=STORE_TIMEOUT))

    # If another program answers at the port, torch may wait for ever for the rest of the answer.
    thread = threading.Thread(target=connect, daemon=True)
    thread.start()
    thread.join(STORE_TIMEOUT.total_seconds() + 1)
    if not found:
        raise _not_met(f"no store of a run answers at {host}:{port}")
    return found[0]


def _meet(store: dist.TCPStore, rank: int, size: int, until: float, launched: Sequence[subprocess.Popen]) -> None:
    """Waits for all processes."""
    store.set(f"flt met {rank}", "")
    missing = list(range(size))
    while missing := [other for other in missing if not store.check([f"flt met {other}"])]:
        check_alive(launched)
        if time.monotonic() > until:
            raise _not_met(f"{len(missing)} of {size} processes are missing, the first of them with rank {missing[0]}")
        time.sleep(LOOK)


def check_alive(launched: Sequence[subprocess.Popen]) -> None:
    """Checks that no launched process has ended.

    Raises:
        PeerDiedError: A process has ended.
    """
    for rank, process in enumerate(launched, start=1):
        if (code := process.poll()) is not None:
            error = PeerDiedError(f"process {rank} of this machine has ended while it started, with exit code {code}")
            error.advice = "start the run again"
            raise error


@contextlib.contextmanager
def _broken_store(host: str, port: int) -> Iterator[None]:
    """Replaces the errors of a store that isn't one, or that is gone."""
    try:
        yield
    except PeerDiedError:
        raise
    except RuntimeError as error:
        raise _not_met(f"no store of a run answers at {host}:{port}") from error


def _not_met(why: str) -> InputError:
    minutes = LIMIT.total_seconds() / 60
    allowed = f"to meet within {minutes:g} minutes, at one MASTER_ADDR and MASTER_PORT"
    return InputError.of("processes of the run", "apart", allowed, why)
