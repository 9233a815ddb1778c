"""C2A: a hypernetwork generates every adapter from labels and activations (arXiv 2411.00311)."""

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
from flt.models.adapters.sublayers import bottleneck, prepare
from flt.protocol.layout import Layout

STD = 0.01
"""Of the factors' initial values."""
EPSILON = 1e-12
SOURCES = ("batch", "client")


@dataclasses.dataclass
class C2ASettings:
    """One hypernetwork for all blocks and both places in a block; the description is ours, after the authors' code.

    t r c + c H + L t + (K + 1) t + (H + 1) t + r H + r + H parameters: 48,032 for (H, L, r, t, c, K) = (768, 6, 16, 8,
    32, 10).

    Attributes:
        name: Always ``c2a``.
        rank: r, the width of the generated bottlenecks.
        embedding: t, the size of a client's embedding.
        factor: c, the inner size of the factors.
        label_source: ``batch``: the histogram of the mini-batch while training, as in the authors' code. ``client``: of
            the client's training examples, also where its model is evaluated on what it holds out (our reading of the
            paper's figure). Else all classes of the head weigh the same.
        mask_padding: Leave padding out of the context; the authors' code counts it in.
        use_label: Ablation: the label's part of the embedding.
        use_context: Ablation: the activations' part of it.
        use_layer: Ablation: the block's part of it.
        factorise: Ablation: two factors, F and S, instead of one matrix (t, r H).
        normalise: Ablation: divide the rows of that matrix by their norms.
        head: Name of the module that is trained whole; None: the classifier, and the layers before it that the
            checkpoint lacks (DistilBERT's, a pooler); ``none``: no head.
    """

    name: str = "c2a"
    rank: int = 16
    embedding: int = 8
    factor: int = 32
    label_source: str = "batch"
    mask_padding: bool = True
    use_label: bool = True
    use_context: bool = True
    use_layer: bool = True
    factorise: bool = True
    normalise: bool = True
    head: str | None = None

    def __post_init__(self) -> None:
        for key in ("rank", "embedding", "factor"):
            if getattr(self, key) < 1:
                raise InputError.of(f"adapter.{key}", getattr(self, key), "an integer >= 1")
        if self.label_source not in SOURCES:
            raise InputError.of("adapter.label_source", self.label_source, SOURCES)
        if not (self.use_label or self.use_context or self.use_layer):
            why = "nothing is left to generate an adapter from"
            raise InputError.of("adapter.use_layer", False, "true for one of use_label, use_context, use_layer", why)


def histogram(labels: Tensor, classes: int) -> Tensor:
    """p (K,): the share of each class among labels (batch,)."""
    return F.one_hot(labels, classes).float().mean(0)


def context(hidden: Tensor, mask: Tensor | None = None) -> Tensor:
    """g (H,): the mean over the batch of s_b, the mean over time of Z_b divided by its norm.

    Args:
        hidden: Z (batch, time, H).
        mask: 1 where there is a token, 0 where there is padding (batch, time); None: tokens everywhere. A row of
            padding alone counts as zero.
    """
    weights = torch.ones_like(hidden[..., :1]) if mask is None else mask.unsqueeze(-1).to(hidden.dtype)
    mean = (hidden * weights).sum(1) / weights.sum(1).clamp(min=1)
    return F.normalize(mean, dim=-1).mean(0)


def generating(matrix: Tensor, bias: Tensor, normalise: bool = True) -> Tensor:
    """M (t, r H): the bias in every row, then each row divided by its norm.

    Args:
        matrix: F S viewed as (t, r H).
        bias: W_bias (1, r H).
        normalise: Whether to divide.
    """
    rows = matrix + bias
    return rows / (torch.linalg.vector_norm(rows, dim=1, keepdim=True) + EPSILON) if normalise else rows


def generate(embedding: Tensor, rows: Tensor, width: int) -> tuple[Tensor, Tensor]:
    """(U, D): w = e M viewed as (H, r) and, the same entries in the same order, as (r, H).

    Args:
        embedding: e (t,).
        rows: M (t, r H).
        width: H.
    """
    w = embedding @ rows
    return w.view(width, -1), w.view(-1, width)


class HyperNetwork(nn.Module):
    """The weights of the hypernetwork, and what it knows of the batch and of the client.

    Args:
        settings: Sizes and switches.
        width: H.
        layers: L, the number of adapted blocks.
        classes: K.
        output: The layer that yields the logits: its rows are the classes of the job at hand; None: all K.
    """

    def __init__(
        self, settings: C2ASettings, width: int, layers: int, classes: int, output: nn.Linear | None = None
    ) -> None:
        super().__init__()
        self.settings, self.width, self.classes = settings, width, classes
        self.output = (output,)  # in a tuple, so as not to become a part of this module
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

    def enter_client(self, data: JobData) -> None:
        """Called before a job's model is evaluated, trained and evaluated again.

        Raises:
            InputError: The histogram is wanted, and nobody counted the labels, or they are no classes of the model.
        """
        if self.settings.use_label and self.settings.label_source == "client":
            if not sum(data.label_counts):
                why = "a client's data has no label_counts"
                raise InputError.of("adapter.label_source", "client", "batch, or data of flt.partition(label=)", why)
            if len(data.label_counts) > self.classes:
                why = f"the model has {self.classes} classes, and a client's data {len(data.label_counts)}"
                raise InputError.of("adapter.label_source", "client", "batch, or labels that are its classes", why)
        self.counts = data.label_counts

    def enter_batch(self, batch: Any) -> None:
        """Called before each training step: a batch is a mapping with ``labels`` (batch,), or ends in them."""
        last = batch[-1] if isinstance(batch, Sequence) and len(batch) else None
        named = batch.get("labels") if isinstance(batch, Mapping) else last
        self.batch = named if isinstance(named, Tensor) and named.dim() == 1 and not named.is_floating_point() else None

    def leave_client(self) -> None:
        """Called after a job."""
        self.counts, self.batch = (), None

    def take(self, names: Sequence[str], root: nn.Module, args: tuple[Any, ...], given: Mapping[str, Any]) -> None:
        """The root's hook before its forward: keeps the mask (batch, time) of the batch, and its labels where given.

        ``names`` are those of its arguments. What is kept stays until the next batch: with gradient checkpointing,
        blocks run again in the backward pass.
        """
        named = {**dict(zip(names, args, strict=False)), **given}
        self.labels, mask = named.get("labels", self.batch), named.get("attention_mask")
        self.mask = mask if self.settings.mask_padding else None

    def after(self, layer: int, place: nn.Module, inputs: Any, output: Tensor) -> Tensor:
        """The forward hook of a sub-layer in the ``layer``-th adapted block: Z (batch, time, H) -> A(Z)."""
        with torch.autocast(output.device.type, enabled=False):  # norms and means want more than the 8 bits of bf16
            u, d = generate(self.embedding(layer, output), self.rows(), self.width)
        return bottleneck(output, u, d, self.b1, self.b2)

    def embedding(self, layer: int, hidden: Tensor) -> Tensor:
        """e (t,): the sum of what labels, block and activations say."""
        e = self.b1.new_zeros(self.settings.embedding)
        if self.settings.use_label:
            e = e + self.label(self.distribution())
        if self.settings.use_layer:
            e = e + self.e_layer[layer]
        if self.settings.use_context:
            e = e + self.context(context(hidden.to(self.b1.dtype), self.mask))
        return e

    def distribution(self) -> Tensor:
        """p (K,).

        Raises:
            InputError: It is the batch's, and the model wasn't given the labels.
        """
        uniform = self._uniform()
        if self.settings.label_source == "client":
            counts = uniform.new_tensor([*self.counts, *[0] * (self.classes - len(self.counts))])
            return counts / counts.sum() if self.counts else uniform
        if not self.training:
            return uniform
        if self.labels is None:
            allowed = "client, or batches with labels; or adapter.use_label=false"
            raise InputError.of("adapter.label_source", "batch", allowed, "there are no labels")
        return histogram(self.labels, self.classes).to(uniform.dtype)

    def _uniform(self) -> Tensor:
        """p (K,) without any labels: jobs may have heads of several widths, and one is installed."""
        (output,) = self.output
        own = self.classes if output is None else len(output.weight)
        p = self.b1.new_zeros(self.classes)
        p[:own] = 1 / own
        return p

    def rows(self) -> Tensor:
        """M (t, r H)."""
        matrix = (self.f @ self.s).view(self.settings.embedding, -1) if self.settings.factorise else self.m
        return generating(matrix, self.w_bias, self.settings.normalise)


def attach(module: nn.Module, settings: C2ASettings, seed: int, layers: str = "all") -> Layout:
    """Freezes a module, lets one hypernetwork adapt its blocks and says which tensor has which role.

    The hypernetwork is a part of the lowest block that it adapts, so what lies below is known to stay as it is.

    Args:
        module: Changed in place.
        settings: Sizes, switches, head.
        seed: Of the initial weights; the global generator is left as it was.
        layers: ``all``, or ``top<k>``: only the k uppermost blocks are adapted.

    Raises:
        InputError: The model is of another type, or has no such head or blocks.
    """
    host = prepare(module, settings.name, settings.head, layers)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        network = HyperNetwork(settings, host.width, len(host.blocks), host.classes, host.output)
    host.blocks[0].add_module("c2a", network)
    names = tuple(inspect.signature(host.root.forward).parameters)
    host.root.register_forward_pre_hook(functools.partial(network.take, names), with_kwargs=True)
    for layer, places in enumerate(host.places):
        for place in places:
            place.register_forward_hook(functools.partial(network.after, layer))
    return Layout.of(module, host.head)
