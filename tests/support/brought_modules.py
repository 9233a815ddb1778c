"""LightningModules of many kinds, as people bring them. Each learns which of three classes a point or sequence has."""

from __future__ import annotations

import copy
from collections import namedtuple
from typing import Any

import lightning.pytorch as pl
import torch
import torchmetrics
import transformers
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import lr_scheduler
from torch.utils.checkpoint import checkpoint
from toys import CLASSES, FEATURES

WORDS, LENGTH = 12, 5
Point = namedtuple("Point", ["x", "label"])


class Brought(pl.LightningModule):
    """The plainest one; the others change one thing each."""

    def __init__(self) -> None:
        super().__init__()
        self.body: Any = nn.Sequential(nn.Linear(FEATURES, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU())
        self.head: Any = nn.Linear(8, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x))

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        loss = F.cross_entropy(self(batch[0]), batch[1])
        self.log("train_loss", loss)
        return loss

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("val_loss", F.cross_entropy(self(batch[0]), batch[1]), prog_bar=True)

    def configure_optimizers(self) -> Any:
        return torch.optim.AdamW([p for p in self.parameters() if p.requires_grad], lr=1e-2)


class Metrics(Brought):
    """Metrics of torchmetrics: updated in place and logged, called, in a collection, for training and by hand."""

    def __init__(self) -> None:
        super().__init__()
        kind: dict[str, Any] = {"task": "multiclass", "num_classes": CLASSES}
        self.train_acc, self.val_f1 = torchmetrics.Accuracy(**kind), torchmetrics.F1Score(**kind)
        self.others = torchmetrics.MetricCollection({"precision": torchmetrics.Precision(**kind)}, prefix="val_")
        self.squared, self.confusion = torchmetrics.MeanSquaredError(), torchmetrics.ConfusionMatrix(**kind)

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        logits = self(batch[0])
        self.train_acc(logits, batch[1])
        self.log("train_acc", self.train_acc, on_step=True, on_epoch=True)
        return F.cross_entropy(logits, batch[1])

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        logits = self(batch[0])
        self.squared.update(logits[:, 0].contiguous(), batch[1].float())
        self.val_f1(logits, batch[1])
        self.others.update(logits, batch[1])
        self.confusion.update(logits, batch[1])
        self.log("val_mse", self.squared)
        self.log("val_f1", self.val_f1)

    def on_validation_epoch_end(self) -> None:
        self.log_dict(self.others.compute())
        self.others.reset()
        self.log("val_examples", float(self.confusion.compute().sum()))  # never reset


class Scheduled(Brought):
    """A schedule after each step: warm-up, then a cosine."""

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.SGD([p for p in self.parameters() if p.requires_grad], lr=0.1, momentum=0.9)
        parts = [lr_scheduler.LinearLR(optimizer, 0.1, total_iters=2), lr_scheduler.CosineAnnealingLR(optimizer, 4)]
        schedule = lr_scheduler.SequentialLR(optimizer, parts, [2])
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


class OneCycle(Brought):
    """A schedule that asks the Trainer for the number of steps, and changes the momentum, too."""

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.SGD([p for p in self.parameters() if p.requires_grad], lr=0.1, momentum=0.9)
        steps = int(self.trainer.estimated_stepping_batches)
        return [optimizer], [{"scheduler": lr_scheduler.OneCycleLR(optimizer, 0.1, steps + 1), "interval": "step"}]


class Plateau(Brought):
    """A schedule that wants a metric of validation."""

    def configure_optimizers(self) -> Any:
        optimizer: Any = super().configure_optimizers()
        schedule = lr_scheduler.ReduceLROnPlateau(optimizer, patience=0, threshold=10.0)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "monitor": "val_loss"}}


class Manual(Brought):
    """Optimises by itself, and steps its schedule by itself."""

    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        optimizer: Any = self.optimizers()
        optimizer.zero_grad()
        self.manual_backward(F.cross_entropy(self(batch[0]), batch[1]))
        self.clip_gradients(optimizer, 0.5, "norm")
        optimizer.step()
        self.lr_schedulers().step()  # type: ignore[union-attr]  # one schedule

    def configure_optimizers(self) -> Any:
        optimizer: Any = super().configure_optimizers()
        return [optimizer], [lr_scheduler.ExponentialLR(optimizer, 0.9)]


class TwoOptimisers(Brought):
    """Takes turns, like a GAN: one optimiser for the body, one for the head."""

    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False

    def training_step(self, batch: Any, batch_idx: int) -> None:
        for optimizer in self.optimizers():  # type: ignore[union-attr]  # two
            self.toggle_optimizer(optimizer)
            loss = F.cross_entropy(self(batch[0]), batch[1])
            optimizer.zero_grad()
            self.manual_backward(loss)
            optimizer.step()
            self.untoggle_optimizer(optimizer)

    def configure_optimizers(self) -> Any:
        parts = [[p for p in part.parameters() if p.requires_grad] for part in (self.body, self.head)]
        return [torch.optim.Adam(parts[0], 1e-2), torch.optim.SGD(parts[1], 0.1)]


class Norms(Brought):
    """Layer, group and instance norms."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Linear(FEATURES, 8), nn.LayerNorm(8), nn.ReLU(), nn.Linear(8, 8), nn.GroupNorm(2, 8), nn.ReLU()
        )


class Dicts(Brought):
    """Batches that are dicts with a nested part."""

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        return F.cross_entropy(self(batch["inputs"]["x"]), batch["label"])

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("val_loss", self.training_step(batch, batch_idx), batch_size=len(batch["label"]))


class NamedTuples(Brought):
    """Batches that are named tuples."""

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        return {"loss": F.cross_entropy(self(batch.x), batch.label), "more": 1}

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("val_loss", F.cross_entropy(self(batch.x), batch.label))


class Checkpointed(Brought):
    """Gradient checkpointing."""

    def forward(self, x: Tensor) -> Tensor:
        return self.head(checkpoint(self.body, x, use_reentrant=False))


class Tied(Brought):
    """The output layer has the weights of the embedding."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(WORDS, 8)
        self.body, self.head = nn.Linear(8, 8), nn.Linear(8, WORDS, bias=False)
        self.head.weight = self.embedding.weight

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        words = batch[0]
        logits = self.head(torch.relu(self.body(self.embedding(words[:, :-1]))))
        return F.cross_entropy(logits.flatten(0, 1), words[:, 1:].flatten())

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("val_loss", self.training_step(batch, batch_idx))


class Dropout(Brought):
    """Dropout, and noise of its own."""

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        noisy = F.dropout(batch[0] + 0.1 * torch.randn_like(batch[0]), 0.2, self.training)
        return F.cross_entropy(self(noisy), batch[1])


class Groups(Brought):
    """Weight decay for matrices only, and another rate for the head."""

    def configure_optimizers(self) -> Any:
        body = [p for p in self.body.parameters() if p.requires_grad]
        matrices, biases = [p for p in body if p.dim() > 1], [p for p in body if p.dim() < 2]
        return torch.optim.AdamW(
            [
                {"params": matrices, "weight_decay": 0.1},
                {"params": biases, "weight_decay": 0.0},
                {"params": self.head.parameters(), "lr": 0.1},
            ],
            lr=1e-2,
        )


class Lbfgs(Brought):
    """An optimiser that computes the loss several times in a step."""

    def configure_optimizers(self) -> Any:
        return torch.optim.LBFGS([p for p in self.parameters() if p.requires_grad], lr=0.1, max_iter=4)


class Recurrent(Brought):
    """A recurrent net."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.GRU(FEATURES, 8, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(torch.stack([x, -x], 1))[0][:, -1])


class Encoder(Brought):
    """torch's transformer layers over embedded words."""

    def __init__(self) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.1, batch_first=True)
        self.embedding, self.body = nn.Embedding(WORDS, 8), nn.TransformerEncoder(layer, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(self.embedding(x)).mean(1))


class Transformers(Brought):
    """A model of transformers with its own loss, and transformers' schedule."""

    def __init__(self) -> None:
        pl.LightningModule.__init__(self)
        config = transformers.BertConfig(
            vocab_size=WORDS, hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8,
            max_position_embeddings=LENGTH, num_labels=CLASSES,
        )  # fmt: skip
        self.model = transformers.BertForSequenceClassification(config)

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        return self.model(input_ids=batch[0], labels=batch[1]).loss

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("val_loss", self.training_step(batch, batch_idx))

    def configure_optimizers(self) -> Any:
        optimizer: Any = super().configure_optimizers()
        schedule = transformers.get_linear_schedule_with_warmup(optimizer, 2, 5)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


class Regression(Brought):
    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(8, 1)

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        return F.mse_loss(self(batch[0]), batch[1])

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("val_loss", self.training_step(batch, batch_idx))


class MultiLabel(Regression):
    """Each example may belong to several classes."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(8, CLASSES)

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        return F.binary_cross_entropy_with_logits(self(batch[0]), batch[1])


class Tokens(Transformers):
    """Each token has a class, or none."""

    def __init__(self) -> None:
        super().__init__()
        self.model = transformers.BertForTokenClassification(self.model.config)


class ClipsByItself(Brought):
    """Overrides how gradients are clipped, how a step is taken, and warms up by hand."""

    def configure_gradient_clipping(self, optimizer: Any, *_: Any, **__: Any) -> None:
        self.clip_gradients(optimizer, gradient_clip_val=0.05, gradient_clip_algorithm="value")

    def optimizer_step(self, epoch: int, batch_idx: int, optimizer: Any, optimizer_closure: Any = None) -> None:
        for group in optimizer.param_groups:
            group["lr"] = 1e-2 * min(1.0, (self.global_step + 1) / 3)
        optimizer.step(closure=optimizer_closure)


class SkipsSteps(Brought):
    """Returns no loss for every third batch."""

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        return None if batch_idx % 3 == 2 else super().training_step(batch, batch_idx)


class Configured(Brought):
    """Makes its layers where Lightning's documentation says for sharded models."""

    def __init__(self) -> None:
        pl.LightningModule.__init__(self)
        self.body = None

    def configure_model(self) -> None:
        if self.body is None:
            made = Brought()
            self.body, self.head = made.body, made.head


class Averaged(pl.Callback):
    """An average over the steps that replaces the weights in the end, written by hand."""

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.mean = copy.deepcopy(dict(pl_module.named_parameters()))

    @torch.no_grad()
    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *_: Any) -> None:
        for name, parameter in pl_module.named_parameters():
            self.mean[name].lerp_(parameter, 0.3)

    @torch.no_grad()
    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        for name, parameter in pl_module.named_parameters():
            parameter.copy_(self.mean[name])
