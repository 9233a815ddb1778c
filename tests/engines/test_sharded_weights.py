"""Frozen weights that no process has whole: what comes out is what one device makes."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from forked import forked
from stacks import federator_of
from torch import Tensor
from torch.distributed.tensor import DTensor
from torch.utils.data import Subset

from flt.core.errors import InputError
from flt.engines.process_group import ProcessGroup
from flt.engines.sharded import ShardedEngine
from flt.server.federator import Federator

pytestmark = pytest.mark.slow  # whole runs and fits


def weights(federator: Federator) -> dict[str, Tensor]:
    return federator.state.groups[federator.state.home].weights


def split(processes: ProcessGroup) -> tuple[dict[str, list[float]], dict[str, float], float]:
    """Weights after a round, figures of an evaluation, and the share of the blocks' frozen numbers that is here."""
    federator = federator_of("hafl", sizes=(8, 8), held_out=3)
    module = federator.engine.local_trainer.module
    frozen = sum(p.numel() for name, p in module.named_parameters() if ".layer." in name and "lora" not in name)
    federator.engine = ShardedEngine(federator.engine.local_trainer, federator.clients, processes, 1, "fsdp")
    held = sum(p.to_local().numel() for p in module.parameters() if isinstance(p, DTensor))
    federator.fit()
    figures = federator.engine.local_trainer.evaluate_group(federator.state, 0, held_out(federator))
    return {name: tensor.flatten().tolist() for name, tensor in weights(federator).items()}, figures, held / frozen


def held_out(federator: Federator) -> Subset:
    return federator.clients[0].data[0].validation_set(None)


def test_two_processes_that_each_have_a_part_of_the_frozen_weights_make_what_one_makes(tmp_path: Path) -> None:
    serial = federator_of("hafl", sizes=(8, 8), held_out=3)
    serial.fit()
    expected = serial.engine.local_trainer.evaluate_group(serial.state, 0, held_out(serial))
    for found, figures, share in forked(split, 2, tmp_path):
        assert share == 0.5
        assert figures == pytest.approx(expected, abs=1e-5)
        for name, tensor in weights(serial).items():
            torch.testing.assert_close(torch.tensor(found[name]).view_as(tensor), tensor, rtol=1e-5, atol=1e-5)


def test_a_recipe_that_changes_the_frozen_weights_is_refused() -> None:
    federator = federator_of("fedavg")
    with pytest.raises(InputError, match=r"^engine.strategy=fsdp: the recipe changes the frozen weights"):
        ShardedEngine(federator.engine.local_trainer, federator.clients, ProcessGroup(), 1, "fsdp")


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
def test_two_gpus_make_what_one_makes(tmp_path: Path) -> None:
    from launched import ended, flt

    ended(flt(tmp_path, "engine=sharded", "engine.strategy=fsdp", "devices=2", "name=sharded", "rounds=1"))
    assert (tmp_path / "lightning_logs" / "sharded" / "version_0" / "adapter").is_dir()
