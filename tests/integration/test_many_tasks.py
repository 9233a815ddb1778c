"""Clients with fifty tasks each: every job has its model, and the groups are found among all of them."""

from __future__ import annotations

from pathlib import Path

import pytest
from safetensors.torch import load_file
from toys import Toy, toy_clients

import flt

pytestmark = pytest.mark.slow  # 100 fits


@pytest.mark.parametrize("algo", ["fl_tac", "local"])
def test_fifty_tasks_a_client_run_to_the_end(algo: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    short = ["local.steps=1", "threads=1", "eval.client_examples=2"]
    clients = list(toy_clients(2, jobs=50).values())
    result = flt.fit(Toy(), clients, algo, 1, progress=False, overrides=short)
    exported = [load_file(path) for path in result.exported.rglob("*.safetensors")]
    trained = {tuple(tensors["base_model.model.fc1.lora_B.weight"].flatten().tolist()) for tensors in exported}
    assert len(trained) == len(exported) == {"fl_tac": 50, "local": 100}[algo]
    assert all(tensor.isfinite().all() for tensors in exported for tensor in tensors.values())
