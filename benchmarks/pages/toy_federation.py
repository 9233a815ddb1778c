"""Federations of tiny models with a few examples, one for each type of task, on which combinations are built."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import transformers
from torch import Tensor

from flt.data.clients import ClientSpec, JobData
from flt.models.causal import CausalModule
from flt.models.module import ClientModule, Optimizer
from flt.run.federation import Federation

CLIENTS, EXAMPLES, CLASSES = 2, 8, 3
TASKS = {"per_client": ("all",), "per_task": ("first", "second")}
"""Value of ``jobs`` -> names of the tasks of a client's jobs."""
SIZES = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 16}
TOKENS = {"vocab_size": 12, "bos_token_id": 3, "eos_token_id": 3, "pad_token_id": 0}


def image() -> ClientModule:
    """Returns a ViT that classifies images."""
    config = transformers.ViTConfig(**SIZES, image_size=8, patch_size=4, num_channels=1, num_labels=CLASSES)
    return ClientModule(transformers.ViTForImageClassification(config), CLASSES, Optimizer())


def text() -> ClientModule:
    """Returns a BERT that classifies texts."""
    config = transformers.BertConfig(**SIZES, **TOKENS, num_labels=CLASSES)
    return ClientModule(transformers.BertForSequenceClassification(config), CLASSES, Optimizer())


def causal() -> CausalModule:
    """Returns a GPT-2 that predicts tokens."""
    config = transformers.GPT2Config(n_positions=8, n_embd=16, n_layer=2, n_head=2, **TOKENS)
    return CausalModule(transformers.GPT2LMHeadModel(config), Optimizer())


MODULES: dict[str, Callable[[], ClientModule]] = {"image": image, "text": text, "causal": causal}
"""Type of task -> function that makes its module."""


def examples(kind: str) -> list[dict[str, Any]]:
    """Returns the examples of a type of task, which are divided among the clients."""
    generator = torch.Generator().manual_seed(1)

    def drawn(*shape: int) -> Tensor:
        return torch.randint(4, 12, shape, generator=generator)

    if kind == "image":
        return [{"pixel_values": torch.rand(1, 8, 8, generator=generator), "labels": i % CLASSES}
                for i in range(EXAMPLES)]  # fmt: skip
    ids = [drawn(6) for _ in range(EXAMPLES)]
    labels = [row if kind == "causal" else i % CLASSES for i, row in enumerate(ids)]
    return [{"input_ids": row, "attention_mask": torch.ones_like(row), "labels": label}
            for row, label in zip(ids, labels, strict=True)]  # fmt: skip


def toy(kind: str, jobs: str) -> Federation:
    """Returns a federation with two clients for a type of task. No examples are held out.

    All examples are validation examples, too.

    Args:
        kind: ``image``, ``text`` or ``causal``.
        jobs: ``per_client``: one job for each client. ``per_task``: two jobs for each client.
    """
    with torch.random.fork_rng():
        torch.manual_seed(0)
        module = MODULES[kind]()
    rows: Any = examples(kind)
    share, nothing = np.arange(EXAMPLES), np.arange(0)
    data = [tuple(JobData(rows, share[client::CLIENTS], nothing, task) for task in TASKS[jobs])
            for client in range(CLIENTS)]  # fmt: skip
    return Federation(
        module, [ClientSpec(number, own) for number, own in enumerate(data)], dict.fromkeys(TASKS[jobs], rows), {}
    )
