"""OpenMP's wait policy: what flt sets before torch is imported, and what it leaves as it is."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

PASSIVE, ACTIVE = "OMP_WAIT_POLICY = 'PASSIVE'", "OMP_WAIT_POLICY = 'ACTIVE'"


def python(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    clean = {key: value for key, value in os.environ.items() if not key.startswith(("OMP_", "GOMP_", "KMP_"))}
    command = [sys.executable, "-c", code]
    return subprocess.run(command, env={**clean, **environment}, text=True, capture_output=True, check=True)


@pytest.mark.parametrize(
    ("code", "environment", "policy"),
    [
        ("import flt", {}, "PASSIVE"),
        ("import flt.cli.main", {}, "PASSIVE"),
        ("import flt", {"OMP_WAIT_POLICY": "ACTIVE"}, "ACTIVE"),
        ("import sys, types; sys.modules['torch'] = types.ModuleType('torch'); import flt", {}, "None"),
    ],
    ids=["flt", "command line", "set by the user", "torch is there"],
)
def test_the_policy_is_passive_unless_set_or_too_late(code: str, environment: dict[str, str], policy: str) -> None:
    done = python(f"{code}; import os; print(os.environ.get('OMP_WAIT_POLICY'))", **environment)
    assert done.stdout.strip() == policy


@pytest.mark.slow
def test_the_library_that_torch_loads_has_taken_the_policy() -> None:
    shown = python("import flt, torch", OMP_DISPLAY_ENV="true").stderr
    if "OMP_WAIT_POLICY" not in shown:
        pytest.skip("torch's OpenMP shows no settings")
    assert PASSIVE in shown
    assert ACTIVE not in shown
