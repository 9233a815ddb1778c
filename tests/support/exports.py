"""Runs whose exports are tried: what they are made of, and how a folder's logits are compared with the run's own."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import tiny
import torch
from torch import Tensor, nn

import flt
from flt.export.final_models import Model, final_models
from flt.models import embedded
from flt.models.adapters.client_context import at_client
from flt.run.schema import TrainConfig
from flt.server.federator import Federator


@dataclasses.dataclass
class Made:
    """A run that is over: its configuration, its federation, its folders and a batch to try them on."""

    cfg: TrainConfig
    federator: Federator
    exported: Path
    base: Path
    batch: dict[str, Tensor]
    auto: str

    @torch.no_grad()
    def logits(self, model: Model) -> Tensor:
        """What the resident module computes with one of the models that the run made, where its clients compute."""
        local_trainer = self.federator.engine.local_trainer
        self.federator.engine.local_trainer.load(self.federator.state, model.gid, model.head)
        local_trainer.put(model.tensors)
        module: Any = local_trainer.module.eval()
        with contextlib.ExitStack() as stack:
            if model.folder.startswith("client_"):
                client, _, job = model.folder.removeprefix("client_").partition("/job_")
                data = self.federator.clients[int(client)].data[int(job or 0)]
                stack.enter_context(at_client(local_trainer.client_aware, data))
            return module.model(**self.batch).logits


def images(folder: Path) -> tuple[Path, list[str]]:
    return embedded.embedded(), []


def texts(folder: Path) -> tuple[Path, list[str]]:
    model, data = tiny.save_bert(folder / "bert"), tiny.save_reviews(folder / "reviews.csv", classes=4)
    return model, [f"model={model}", f"data={data}", "model.max_length=16", "batch_size=4"]


def decoder(folder: Path) -> tuple[Path, list[str]]:
    model = tiny.save_decoder(folder / "gpt2", n_positions=256)  # room for answers that never end
    tiny.save_instructions(folder / "rows.parquet", rows=60)
    return model, ["data=dolly", "data.local=rows.parquet", f"model={model}", "model.max_length=16", "batch_size=4"]


SOURCES = {"images": images, "texts": texts, "decoder": decoder}
AUTO = {"images": "ImageClassification", "texts": "SequenceClassification", "decoder": "CausalLM"}


def pixels() -> dict[str, Tensor]:
    return {"pixel_values": torch.rand(6, 1, 8, 8, generator=torch.Generator().manual_seed(0))}


def words() -> dict[str, Tensor]:
    ids = torch.randint(5, len(tiny.WORDS), (4, 6), generator=torch.Generator().manual_seed(0))
    mask = (torch.arange(6) < torch.tensor([[6], [3], [4], [2]])).long()
    return {"input_ids": ids * mask, "attention_mask": mask}


@torch.no_grad()
def logits(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
    assert not any(sub.training for sub in model.modules())
    return model(**batch).logits


Ask = Callable[[Made, Path, int], Tensor]


def check(made: Made, ask: Ask | None) -> list[Tensor]:
    """Every folder has the logits of its model, by flt.load and, where asked for, without flt: these logits."""
    models = final_models(made.federator)
    files = {path.parent for path in made.exported.rglob("*model.safetensors")}
    files |= {path.parent for path in made.exported.rglob("flt_adapter.safetensors")}
    assert files == {made.exported / model.folder for model in models}
    found = [made.logits(model) for model in models]
    for model, expected in zip(models, found, strict=True):
        folder = made.exported / model.folder
        close(made, logits(flt.load(folder), made.batch), expected)
        if ask is not None:
            close(made, ask(made, folder, expected.shape[1]), expected)
    return found


def close(made: Made, found: Tensor, expected: Tensor) -> None:
    """Equal bits, except where W0 and products were added in another order: then up to rounding."""
    rounds = bool(made.federator.state.base.version) and bool(made.federator.server.layout.layers)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5 if rounds else 0)
