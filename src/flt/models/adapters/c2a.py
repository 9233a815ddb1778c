"""C2A: one hypernetwork computes the weights of all bottleneck adapters (arXiv 2411.00311).

The inputs of the hypernetwork are labels, activations and the index of the block.
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from flt.core.errors import InputError
from flt.data.clients import JobData
from flt.models.adapters.c2a_settings import C2ASettings, uses_client_counts
from flt.models.adapters.sublayers import bottleneck, prepare
from flt.protocol.layout import Layout

STD = 0.01
"""Standard deviation of the initial values of F and S (see C2ASettings), or of the single matrix that replaces both."""
EPSILON = 1e-12


def misplaced(shares: Tensor) -> Tensor:
    """Returns the shares (K,) moved by half of the classes: class k gets the share of class k + K // 2, modulo K.

    The result is as unequal as the shares. It differs from them unless they repeat after K // 2 classes.

    Example:
        >>> misplaced(torch.tensor([0.75, 0.25, 0.0, 0.0]))
        tensor([0.0000, 0.0000, 0.7500, 0.2500])
    """
    return shares.roll(-(len(shares) // 2))


def histogram(labels: Tensor, classes: int) -> Tensor:
    """Returns p (K,), the share of each class among the labels (batch,)."""
    return F.one_hot(labels, classes).float().mean(0)


def context(hidden: Tensor, mask: Tensor | None = None) -> Tensor:
    """Returns g (H,), the context of a batch.

    For each example b, the activations Z_b are averaged over time, and their mean is divided by its norm. g is the
    average of these normalised means.

    Args:
        hidden: Z (batch, time, H), the activations.
        mask: Mask (batch, time): 1 for a token, 0 for padding. An example that contains only padding counts as the zero
            vector. If None, there is no padding.
    """
    weights = torch.ones_like(hidden[..., :1]) if mask is None else mask.unsqueeze(-1).to(hidden.dtype)
    mean = (hidden * weights).sum(1) / weights.sum(1).clamp(min=1)
    return F.normalize(mean, dim=-1).mean(0)


def generating(matrix: Tensor, bias: Tensor, normalise: bool = True) -> Tensor:
    """Returns M (t, r H), the generating matrix.

    The bias is added to each row of the matrix. If ``normalise`` is true, each row of the sum is divided by its norm.

    Args:
        matrix: F S viewed as (t, r H).
        bias: W_bias (1, r H).
        normalise: Whether to divide each row by its norm.
    """
    rows = matrix + bias
    return rows / (torch.linalg.vector_norm(rows, dim=1, keepdim=True) + EPSILON) if normalise else rows


def generate(embedding: Tensor, rows: Tensor, width: int) -> tuple[Tensor, Tensor]:
    """Returns the adapter weights U (H, r) and D (r, H). Both are views of the same vector w = e M.

    Args:
        embedding: e (t,).
        rows: M (t, r H).
        width: H, the size of the activations.
    """
    w = embedding @ rows
    return w.view(width, -1), w.view(-1, width)


class HyperNetwork(nn.Module):
    """The hypernetwork. It also stores the current label counts, labels and padding mask.

    Args:
        settings: Sizes and switches.
        width: H, the size of the activations.
        layers: L, the number of adapted blocks.
        classes: K, the number of classes.
        output: The layer that returns the logits. Its weight has one row for each class of the current job. If None,
            every job has all K classes.
    """

    def __init__(
        self, settings: C2ASettings, width: int, layers: int, classes: int, output: nn.Linear | None = None
    ) -> None:
        super().__init__()
        self.settings, self.width, self.classes = settings, width, classes
        self.output = (output,)  # in a tuple, so that PyTorch doesn't register the layer as a submodule
        r, t, c = settings.rank, settings.embedding, settings.factor
        if settings.factorise:
            self.f, self.s = nn.Parameter(STD * torch.randn(t * r, c)), nn.Parameter(STD * torch.randn(c, width))
        else:
            self.m = nn.Parameter(STD * torch.randn(t, r * width))
        self.w_bias = nn.Parameter(torch.zeros(1, r * width))
        if settings.use_layer:
            self.e_layer = nn.Parameter(torch.randn(layers, t))
        if settings.use_label:
            self.label = nn.Linear(classes, t)
        if settings.use_context:
            self.context = nn.Linear(width, t)
        self.b1, self.b2 = nn.Parameter(torch.zeros(r)), nn.Parameter(torch.zeros(width))
        self.batch: Tensor | None = None
        self.labels: Tensor | None = None
        self.mask: Tensor | None = None
        self.counts: tuple[int, ...] = ()
        self.numbers: tuple[int, ...] = ()

    def enter_client(self, data: JobData) -> None:
        """Stores the label counts of a job, before the job's model is evaluated and trained.

        Raises:
            InputError: The label counts are needed, but the data has no counts, or more classes than the model.
        """
        if uses_client_counts(dataclasses.asdict(self.settings)):
            from_labels = self.settings.label_source == "client"
            key, value = ("label_source", "client") if from_labels else ("histogram", self.settings.histogram)
            others = "batch" if from_labels else "uniform"
            if not sum(data.label_counts):
                why = "a client's data has no label_counts"
                raise InputError.of(f"adapter.{key}", value, f"{others}, or data of flt.partition(label=)", why)
            if len(data.label_counts) > self.classes:
                why = f"the model has {self.classes} classes, and a client's data {len(data.label_counts)}"
                raise InputError.of(f"adapter.{key}", value, f"{others}, or labels that are its classes", why)
        self.counts, self.numbers = data.label_counts, data.class_numbers

    def enter_batch(self, batch: Any) -> None:
        """Stores a batch's labels (batch,) before a training step or an evaluation step.

        The labels are the entry ``labels`` of a mapping, or the last element of a sequence. If this entry isn't a
        vector of integers, no labels are stored.
        """
        last = batch[-1] if isinstance(batch, Sequence) and len(batch) else None
        labels = batch.get("labels") if isinstance(batch, Mapping) else last
        self.batch = (
            labels if isinstance(labels, Tensor) and labels.dim() == 1 and not labels.is_floating_point() else None
        )
        if self.batch is not None and self.numbers:  # outputs of a joint head -> numbers of the classes of all tasks
            self.batch = self.batch.new_tensor(self.numbers)[self.batch]

    def leave_client(self) -> None:
        """Clears the label counts and the labels after a job."""
        self.counts, self.numbers, self.batch = (), (), None

    def before_forward(
        self, names: Sequence[str], root: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]
    ) -> None:
        """Stores the padding mask (batch, time) and the labels of the batch. Pre-forward hook of the root model.

        Mask and labels stay stored until the next batch, because gradient checkpointing runs the blocks again in the
        backward pass.

        Args:
            names: Names of the arguments of the root model's forward.
            root: The root model.
            args: Positional arguments of the call.
            kwargs: Keyword arguments of the call.
        """
        arguments = {**dict(zip(names, args, strict=False)), **kwargs}
        self.labels, mask = arguments.get("labels", self.batch), arguments.get("attention_mask")
        self.mask = mask if self.settings.mask_padding else None

    def forward_hook(self, layer: int, place: nn.Module, inputs: Any, output: Tensor) -> Tensor:
        """Replaces the output Z (batch, time, H) of a sub-layer by A(Z), the output of its adapter. Forward hook."""
        with torch.autocast(output.device.type, enabled=False):  # bf16's 8 bits of precision are too few here
            u, d = generate(self.embedding(layer, output), self.rows(), self.width)
        return bottleneck(output, u, d, self.b1, self.b2)

    def embedding(self, layer: int, hidden: Tensor) -> Tensor:
        """Returns e (t,), the sum of the terms for the labels, the block and the activations."""
        e = self.b1.new_zeros(self.settings.embedding)
        if self.settings.use_label:
            e = e + self.label(self.distribution())
        if self.settings.use_layer:
            e = e + self.e_layer[layer]
        if self.settings.use_context:
            e = e + self.context(context(hidden.to(self.b1.dtype), self.mask))
        return e

    def distribution(self) -> Tensor:
        """Returns p (K,), the current label distribution.

        Raises:
            InputError: The distribution has to be computed from a training batch that has no labels.
        """
        uniform, source = self._uniform(), self.settings.label_source
        if not self.training:
            source = self.settings.histogram or ("client" if source == "client" else "uniform")
        if source in ("client", "own", "wrong") and self.counts:
            counts = uniform.new_tensor([*self.counts, *[0] * (self.classes - len(self.counts))])
            mine = int((uniform > 0).sum())  # the classes of the job's head
            counts = torch.cat([misplaced(counts[:mine]), counts[mine:]]) if source == "wrong" else counts
            return counts / counts.sum()
        if source == "batch" and self.labels is not None:
            return histogram(self.labels, self.classes).to(uniform.dtype)
        if source == "batch" and self.training:
            allowed = "client, or batches with labels; or adapter.use_label=false"
            raise InputError.of("adapter.label_source", "batch", allowed, "there are no labels")
        return uniform

    def _uniform(self) -> Tensor:
        """Returns p (K,), uniform over the classes of the current head. Classes that this head lacks get 0."""
        (output,) = self.output
        job_classes = self.classes if output is None else len(output.weight)
        p = self.b1.new_zeros(self.classes)
        p[:job_classes] = 1 / job_classes
        return p

    def rows(self) -> Tensor:
        """Returns M (t, r H), the generating matrix."""
        matrix = (self.f @ self.s).view(self.settings.embedding, -1) if self.settings.factorise else self.m
        return generating(matrix, self.w_bias, self.settings.normalise)


def attach(module: nn.Module, settings: C2ASettings, seed: int, layers: str = "all") -> Layout:
    """Freezes a module and attaches one hypernetwork that adapts its blocks. Returns the module's layout.

    The hypernetwork is registered in the lowest adapted block. The blocks below that block therefore have
    only frozen weights, and their activations can be cached.

    Args:
        module: The module, changed in place.
        settings: Sizes, switches and name of the head.
        seed: Seed of the adapter's initial weights. The global random generators aren't changed.
        layers: With ``all``, all blocks are adapted; with ``top<k>``, only the k uppermost blocks.

    Raises:
        InputError: The model's type isn't supported, the configured head or blocks don't exist, or the histogram of a
            batch is wanted where jobs have several tasks.
    """
    if settings.histogram == "batch" and getattr(module, "several_tasks", False):
        why = "jobs have several tasks, and the labels of one task's test don't tell their classes among those of all"
        raise InputError.of("adapter.histogram", "batch", "own, uniform, wrong, null; or jobs=per_task", why)
    host = prepare(module, settings.name, settings.head, layers)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        # With several tasks in a job, all jobs number the classes of all tasks alike, whatever rows their heads have.
        output = None if getattr(module, "several_tasks", False) else host.output
        network = HyperNetwork(settings, host.width, len(host.blocks), host.classes, output)
    host.blocks[0].add_module("c2a", network)
    names = tuple(inspect.signature(host.root.forward).parameters)
    host.root.register_forward_pre_hook(functools.partial(network.before_forward, names), with_kwargs=True)
    for layer, places in enumerate(host.places):
        for place in places:
            place.register_forward_hook(functools.partial(network.forward_hook, layer))
    return Layout.of(module, host.head)
