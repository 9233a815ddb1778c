"""LoRA with the base's change in its file: what is broken or foreign in it is one line, and no pickle is opened."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from commands import QUICK, in_empty_folder
from safetensors.torch import load_file, save_file
from slowly import mostly_slowly
from torch import Tensor

import flt
from flt.api import train as train_cfg
from flt.run.compose import load_config

WEIGHTS, CARD = "adapter_model.safetensors", "adapter_config.json"


@pytest.fixture(scope="module")
def export(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two rounds of FLoRA, whose factors are folded by then: the file has weights of the base."""
    folder = tmp_path_factory.mktemp("export")
    with pytest.MonkeyPatch.context() as patch:
        in_empty_folder(folder, patch)
        quick = [f"{key}={value}" for key, value in {**QUICK, "rounds": 2}.items()]
        return folder / train_cfg(load_config([*quick, "algo=flora", "export.base=delta"])).exported


def tensors(change: Callable[[dict[str, Tensor]], Any]) -> Callable[[Path], None]:
    def write(export: Path) -> None:
        held = load_file(export / WEIGHTS)
        change(held)
        (export / WEIGHTS).unlink()  # the tensors are views of the file
        save_file(held, export / WEIGHTS, metadata={"format": "pt"})

    return write


def a_name(held: dict[str, Tensor], of: str) -> str:
    return next(name for name in sorted(held) if of in name)


def truncate(export: Path) -> None:
    (export / WEIGHTS).write_bytes((export / WEIGHTS).read_bytes()[:-1])


def pickled(export: Path) -> None:
    beside(export)
    (export / "adapter_model.bin").rename(export / WEIGHTS)


def beside(export: Path) -> None:
    torch.save(load_file(export / WEIGHTS), export / "adapter_model.bin")
    (export / WEIGHTS).unlink()


def another_rank(export: Path) -> None:
    card = json.loads((export / CARD).read_text())
    card["rank_pattern"] = dict.fromkeys(card["rank_pattern"], 3)
    (export / CARD).write_text(json.dumps(card))


BROKEN: dict[str, tuple[Callable[[Path], None], str]] = {
    "truncated": (truncate, "adapter_model.safetensors is cut off or damaged"),
    "a pickle": (pickled, "safetensors is cut off or damaged"),
    "a pickle beside": (beside, "the tensors are missing"),
    "another shape of the base": (
        tensors(lambda held: held.update({a_name(held, "base_layer"): torch.ones(3, 3)})),
        "size mismatch for ",
    ),
    "a weight that isn't the base's": (
        tensors(lambda held: held.update({"base_model.model.vit.strange.base_layer.weight": torch.ones(2)})),
        "base_model.model.vit.strange.base_layer.weight is none",
    ),
    "a pair too few": (tensors(lambda held: held.pop(a_name(held, "lora_B"))), "lora_B.weight is missing"),
    "no head": (tensors(lambda held: held.pop(a_name(held, "classifier.bias"))), "classifier.bias"),
    "another rank": (another_rank, "size mismatch for "),
}


QUICK_CASES = ("truncated", "another shape of the base", "a weight that isn't the base's")


@pytest.mark.parametrize("case", mostly_slowly(BROKEN, QUICK_CASES))
def test_a_broken_file_is_refused_in_one_line_and_never_unpickled(
    case: str, export: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    in_empty_folder(tmp_path, monkeypatch)
    shutil.copytree(export, tmp_path / "export")
    spoil, message = BROKEN[case]
    spoil(tmp_path / "export")
    opened: list[Any] = []
    monkeypatch.setattr(torch, "load", lambda *given, **_: opened.append(given))
    with pytest.raises(flt.InputError, match=message) as caught:
        flt.load(tmp_path / "export")
    assert "\n" not in str(caught.value)
    assert "allowed is" in str(caught.value)
    assert not opened


def test_a_whole_file_holds_weights_of_the_base_and_is_loaded(export: Path) -> None:
    held, model = load_file(export / WEIGHTS), flt.load(export)
    name = a_name(held, "base_layer.weight")
    assert torch.equal(model.get_parameter(name), held[name])
