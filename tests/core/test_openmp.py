"""How long OpenMP's threads wait busily: what flt sets before torch is imported, and what it leaves as it is."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

NAMES = ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")


def python(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    clean = {key: value for key, value in os.environ.items() if not key.startswith(("OMP_", "GOMP_", "KMP_"))}
    command = [sys.executable, "-c", code]
    return subprocess.run(command, env={**clean, **environment}, text=True, capture_output=True, check=True)


@pytest.mark.parametrize(
    ("code", "environment", "expected"),
    [
        ("import flt", {}, "10000 None"),
        ("import flt.cli.main", {}, "10000 None"),
        ("import flt", {"GOMP_SPINCOUNT": "7"}, "7 None"),
        ("import flt", {"OMP_WAIT_POLICY": "ACTIVE"}, "None ACTIVE"),
        ("import sys, types; sys.modules['torch'] = types.ModuleType('torch'); import flt", {}, "None None"),
    ],
    ids=["flt", "command line", "number set by the user", "policy set by the user", "torch is there"],
)
def test_busy_waiting_is_limited_unless_the_user_has_chosen_or_it_is_too_late(
    code: str, environment: dict[str, str], expected: str
) -> None:
    done = python(f"{code}; import os; print(*(os.environ.get(name) for name in {NAMES}))", **environment)
    assert done.stdout.strip() == expected


@pytest.mark.slow
def test_the_library_that_torch_loads_has_taken_the_number() -> None:
    shown = python("import flt, torch", OMP_DISPLAY_ENV="verbose").stderr
    if "GOMP_SPINCOUNT" not in shown:
        pytest.skip("torch's OpenMP shows no such setting")
    assert "GOMP_SPINCOUNT = '10000'" in shown
