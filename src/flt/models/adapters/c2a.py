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
from flt.models.adapters.sublayers import bottleneck, prepare
from flt.protocol.layout import Layout

STD = 0.01
"""Standard deviation of the initial values of F and S (see C2ASettings), or of the single matrix that replaces both."""
EPSILON = 1e-12
SOURCES = ("batch", "client")


@dataclasses.dataclass
class C2ASettings:
    """Settings of C2A. One hypernetwork serves all blocks and both adapter positions in each block.

    Our reconstruction of C2A follows the authors' code. For activations of size H, L adapted blocks and K classes, the
    hypernetwork has t r c + c H + L t + (K + 1) t + (H + 1) t + r H + r + H parameters. The attributes below explain
    r, t and c. For (H, L, r, t, c, K) = (768, 6, 16, 8, 32, 10), the number is 48,032.

    Attributes:
        name: Always ``c2a``.
        rank: r, the width of the generated bottlenecks.
        embedding: t, the size of the embedding from which the adapters are generated.
        factor: c, the inner size of the product F S. The shape of F is (t r, c), and the shape of S is (c, H).
        label_source: Source of the label distribution. With ``batch``, training uses the labels of the mini-batch, as
            in the authors' code, and evaluation uses the uniform distribution. With ``client``, training and evaluation
            use the labels of the client's training examples (our reading of the diagram in the paper). A global model
            has no client, so its evaluation uses the uniform distribution.
        mask_padding: If true, padding is left out of the mean of the activations. The authors' code includes padding.
        use_label: If true, the embedding includes a term for the labels. False is an ablation.
        use_context: If true, the embedding includes a term for the activations. False is an ablation.
        use_layer: If true, the embedding includes a term for the block. False is an ablation.
        factorise: If true, the adapters are generated from the product F S. If false, a single matrix replaces F S.
            False is an ablation.
        normalise: If true, each row of the generating matrix (t, r H) is divided by its norm. False is an ablation.
        head: Name of the module whose weights are all trained. The string ``"none"`` means no module. If None, the
            classifier and all layers before it that have no pre-trained weights are trained. Such a layer may be a
            pooler or DistilBERT's ``pre_classifier``.
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
        if self.settings.use_label and self.settings.label_source == "client":
            if not sum(data.label_counts):
                why = "a client's data has no label_counts"
                raise InputError.of("adapter.label_source", "client", "batch, or data of flt.partition(label=)", why)
            if len(data.label_counts) > self.classes:
                why = f"the model has {self.classes} classes, and a client's data {len(data.label_counts)}"
                raise InputError.of("adapter.label_source", "client", "batch, or labels that are its classes", why)
        self.counts, self.numbers = data.label_counts, data.class_numbers

    def enter_batch(self, batch: Any) -> None:
        """Stores a batch's labels (batch,) before a training step.

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
        InputError: The model's type isn't supported, or the configured head or blocks don't exist.
    """
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
