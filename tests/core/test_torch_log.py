"""Processes of a run print no frames of torch's C++ library when another process dies."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

ORPHANED = """
import os, signal
from multiprocessing import get_context
import torch.distributed as dist

def keep(sender):
    store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    sender.send(store.port)
    signal.pause()

context = get_context("fork")
receiver, sender = context.Pipe(duplex=False)
keeper = context.Process(target=keep, args=(sender,))
keeper.start()
store = dist.TCPStore("127.0.0.1", receiver.recv(), is_master=False)
keeper.kill()
keeper.join()
try:
    store.add("key", 1)
except RuntimeError:
    print("the store has gone")
"""
"""A process whose store dies."""
LAUNCHING = "import torch, flt, subprocess, sys; subprocess.run([sys.executable, '-c', sys.argv[1]], check=True)"
"""A user's script that imports torch first, and a process that it launches."""


def printed(*command: str, **environment: str) -> tuple[str, str]:
    variables = {name: value for name, value in os.environ.items() if name != "TORCH_CPP_LOG_LEVEL"} | environment
    command = (sys.executable, "-c", *command)
    done = subprocess.run(command, env=variables, capture_output=True, text=True, timeout=120, check=True)
    return done.stdout, done.stderr


@pytest.mark.slow
@pytest.mark.slow
@pytest.mark.parametrize(
    "command", [("import flt\n" + ORPHANED,), (LAUNCHING, ORPHANED)], ids=["flt imported first", "launched"]
)
def test_the_death_of_another_process_prints_no_frames(command: tuple[str, ...]) -> None:
    assert printed(*command) == ("the store has gone\n", "")


@pytest.mark.parametrize(("given", "level"), [({}, "ERROR"), ({"TORCH_CPP_LOG_LEVEL": "INFO"}, "INFO")])
def test_the_import_of_flt_sets_the_level_unless_the_user_has(given: dict[str, str], level: str) -> None:
    assert printed("import flt, os; print(os.environ['TORCH_CPP_LOG_LEVEL'])", **given) == (f"{level}\n", "")
