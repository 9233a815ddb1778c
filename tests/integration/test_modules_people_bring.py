"""Users' LightningModules of many kinds: a federation of one client and one round is a plain ``Trainer.fit``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import brought_modules as brought
import pytest
import torch
from asking_module import Asks
from brought_modules import Averaged, Brought, Point
from commands import in_empty_folder
from plain_fits import ADAPTER, WHOLE_MODEL, federated_and_plain
from torch.utils.data import Dataset, TensorDataset
from toys import CLASSES, toy_data

EXAMPLES = 60


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    in_empty_folder(tmp_path, monkeypatch)
    return tmp_path


def points() -> TensorDataset:
    return toy_data(EXAMPLES)


def words() -> TensorDataset:
    generator = torch.Generator().manual_seed(0)
    x = torch.randint(1, brought.WORDS, (EXAMPLES, brought.LENGTH), generator=generator)
    return TensorDataset(x, x[:, 0] % CLASSES)


class Made(Dataset):
    """Examples in a form of one's own."""

    def __init__(self, form: Any) -> None:
        self.examples = [form(x, label) for x, label in points()]

    def __len__(self) -> int:
        return EXAMPLES

    def __getitem__(self, i: int) -> Any:
        return self.examples[i]


def noisy_collate(examples: list[Any]) -> list[torch.Tensor]:
    """A collate function that draws at random."""
    x = torch.stack([x for x, _ in examples])
    return [x + 0.1 * torch.randn_like(x), torch.stack([label for _, label in examples])]


KINDS: dict[str, tuple[Any, Any, dict[str, Any]]] = {
    "plain": (Brought, points, {}),
    "torchmetrics of all kinds": (brought.Metrics, points, {}),
    "several epochs": (Brought, points, {"steps": None, "epochs": 2}),
    "a sequence of schedules": (brought.Scheduled, points, {}),
    "a schedule that needs the number of steps": (brought.OneCycle, points, {}),
    "a schedule that needs a metric": (brought.Plateau, points, {"steps": None, "epochs": 3}),
    "manual optimisation": (brought.Manual, points, {}),
    "two optimisers that take turns": (brought.TwoOptimisers, points, {"steps": 6}),
    "layer and group norms": (brought.Norms, points, {}),
    "batches that are dicts": (
        brought.Dicts, lambda: Made(lambda x, label: {"inputs": {"x": x}, "label": label}), {},
    ),
    "batches that are named tuples": (brought.NamedTuples, lambda: Made(Point), {}),
    "a collate function that draws": (Brought, points, {"collate": noisy_collate}),
    "gradient checkpointing": (brought.Checkpointed, points, {}),
    "bf16-mixed": (Brought, points, {"precision": "bf16-mixed"}),
    "tied weights": (brought.Tied, words, {}),
    "dropout and noise": (brought.Dropout, points, {}),
    "clipped gradients": (Brought, points, {"clip": 0.01}),
    "accumulated gradients": (Brought, points, {"accumulate": 2}),
    "groups of parameters": (brought.Groups, points, {}),
    "LBFGS": (brought.Lbfgs, points, {}),
    "an average of the weights by hand": (Brought, points, {"callbacks": lambda: [Averaged()]}),
    "a recurrent net": (brought.Recurrent, points, {}),
    "torch's transformer": (brought.Encoder, words, {}),
    "a transformers model": (brought.Transformers, words, {}),
    "own clipping, steps and warm-up": (brought.ClipsByItself, points, {}),
    "batches without a loss": (brought.SkipsSteps, points, {}),
    "layers of configure_model": (brought.Configured, points, {}),
    "whatever a Trainer and a logger know": (Asks, points, {}),
}  # fmt: skip
WITHOUT_ADAPTER = {"a recurrent net", "tied weights"}
"""Kinds without a linear layer besides the head, or whose head isn't a layer of its own."""


@pytest.mark.parametrize("method", [WHOLE_MODEL, ADAPTER], ids=["fedavg", "fedit"])
@pytest.mark.parametrize("name", KINDS)
def test_one_client_and_one_round_are_a_plain_fit_bit_for_bit(name: str, method: tuple[str, ...]) -> None:
    if method is ADAPTER and name in WITHOUT_ADAPTER:
        method = WHOLE_MODEL
    make, data, settings = KINDS[name]
    federated, plain, result = federated_and_plain(make, data(), method, **settings)
    assert federated.keys() == plain.keys()
    for key, value in plain.items():
        assert torch.equal(federated[key], value), key
    torch.manual_seed(0)
    start = dict(make().named_parameters())
    if method is WHOLE_MODEL and start:
        assert not all(torch.equal(start[key], value) for key, value in plain.items())
    assert "round/val_loss" in result.metrics or name == "torchmetrics of all kinds"
