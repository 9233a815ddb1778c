"""Settings of the adapter C2A."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from flt.core.errors import InputError

SOURCES = ("batch", "client")
HISTOGRAMS = ("own", "uniform", "wrong", "batch")
"""Label distributions with which a model can be evaluated (see ``C2ASettings.histogram``)."""


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
        histogram: Label distribution with which a model is evaluated, whatever it was trained with (ours). ``own``: the
            labels of the client's training examples. ``uniform``: equal shares. ``wrong``: the client's shares, moved
            to other classes (see :func:`misplaced`), which shows whether the distribution has an effect. ``batch``: the
            labels of the evaluated batch, an upper bound, since no deployed model knows them. If None, evaluation uses
            the distribution that ``label_source`` describes. Without a client, ``own`` and ``wrong`` are uniform.
            Without labels, as in a prediction, ``batch`` is uniform.
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
    histogram: str | None = None
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
        if self.histogram not in (None, *HISTOGRAMS):
            raise InputError.of("adapter.histogram", self.histogram, (*HISTOGRAMS, "null"))
        if not (self.use_label or self.use_context or self.use_layer):
            why = "nothing is left to generate an adapter from"
            raise InputError.of("adapter.use_layer", False, "true for one of use_label, use_context, use_layer", why)


def uses_client_counts(settings: Mapping[str, Any]) -> bool:
    """Returns whether a model with these settings of its adapter computes with the label counts of its client.

    Example:
        >>> uses_client_counts({"label_source": "batch"}), uses_client_counts({"histogram": "own"})
        (False, True)
    """
    at_test = settings.get("histogram") in ("own", "wrong")
    return bool(settings.get("use_label", True)) and (settings.get("label_source") == "client" or at_test)


def is_tested_with_counts(settings: Mapping[str, Any]) -> bool:
    """Returns whether a model with these settings of C2A is evaluated with the label counts of its client as they are.

    Example:
        >>> is_tested_with_counts({"label_source": "client"})
        True
        >>> is_tested_with_counts({"label_source": "client", "histogram": "uniform"})
        False
    """
    at_test = settings.get("histogram") or {"client": "own"}.get(settings.get("label_source", ""))
    return bool(settings.get("use_label", True)) and at_test == "own"
