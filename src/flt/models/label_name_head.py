"""The label-name head: frozen embeddings of the classes' names score them, so that every gain is the adapter's."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers.modeling_outputs import SequenceClassifierOutput

from flt.core.errors import InputError


class LabelNameClassifier(nn.Module):
    """Scores a class by the cosine between a text's embedding and that of the class's name.

        z = mean of the last hidden states over the tokens, divided by its norm          (batch, d)
        logits = scale * z E^T,   E: the same of the names, by the encoder as it was given    (classes, d)

    Sentence encoders are trained and compared this way (Sentence-BERT, arXiv 1908.10084). No part of the head trains.

    Args:
        encoder: A model of transformers whose output has `last_hidden_state` (batch, tokens, d).
        names: E, rows of norm 1 (classes, d).
        scale: Inverse temperature of the softmax.
        texts: What E was made of, for the export.
    """

    names: Tensor

    def __init__(self, encoder: nn.Module, names: Tensor, scale: float, texts: Sequence[str] = ()) -> None:
        super().__init__()
        self.encoder, self.scale, self.texts = encoder, scale, list(texts)
        self.config: Any = encoder.config
        self.register_buffer("names", names, persistent=False)

    @property
    def base_model(self) -> nn.Module:
        """The encoder, under the name that transformers has for it."""
        return self.encoder

    def forward(self, labels: Tensor | None = None, **inputs: Tensor) -> SequenceClassifierOutput:
        """Logits (batch, classes) and, with labels (batch,), the loss ()."""
        embeddings = embed(self.encoder, inputs)
        with torch.autocast(embeddings.device.type, enabled=False):  # bf16 has 8 bits: too few for a cosine times 20
            logits = self.scale * embeddings @ self.names.T
        loss = None if labels is None else F.cross_entropy(logits, labels)
        return SequenceClassifierOutput(loss=loss, logits=logits)


def embed(encoder: nn.Module, inputs: Mapping[str, Tensor]) -> Tensor:
    """Mean-pooled embeddings of norm 1, float32 (batch, d).

    Args:
        encoder: A model of transformers.
        inputs: input_ids and attention_mask (batch, tokens), and what else the model takes.
    """
    hidden = encoder(**inputs).last_hidden_state.float()
    mask = inputs["attention_mask"].unsqueeze(-1).to(hidden.dtype)
    return F.normalize((hidden * mask).sum(1) / mask.sum(1), dim=-1)


def label_name_classifier(
    encoder: nn.Module, tokenizer: Any, texts: Sequence[str], scale: float, max_length: int
) -> LabelNameClassifier:
    """Embeds the names by the encoder as it is, and makes a classifier of both.

    Args:
        encoder: In eval mode.
        tokenizer: Its tokenizer.
        texts: What stands for each class.
        scale: Inverse temperature.
        max_length: Longest text, in tokens.
    """
    inputs = tokenizer(list(texts), truncation=True, max_length=max_length, padding=True, return_tensors="pt")
    inputs = inputs.to(next(encoder.parameters()).device)
    with torch.no_grad():
        names = embed(encoder, inputs)
    return LabelNameClassifier(encoder, names, scale, texts)


def label_texts(names: Sequence[str], given: Mapping[str, str]) -> list[str]:
    """What stands for each class: the text given for it, else its name with spaces for punctuation.

    Raises:
        InputError: A text is given for no class, or a class has nothing but a number for a name.

    Example:
        >>> label_texts(["sci.space", "rec.autos"], {"rec.autos": "cars"})
        ['sci space', 'cars']
    """
    if unknown := sorted(set(given) - set(names)):
        raise InputError.of("data.label_texts", unknown[0], names, "no class has this name")
    texts = [given.get(name) or re.sub(r"[\W_]+", " ", name).strip() for name in names]
    for name, text in zip(names, texts, strict=True):
        if not any(letter.isalpha() for letter in text):
            allowed = "data.label_texts={name: text} with a word for each class, or model.head=linear"
            raise InputError.of("data.label_texts", name, allowed, "this class has no name to embed")
    return texts
