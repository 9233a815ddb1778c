"""The label-name head, which compares a text with frozen embeddings of the classes' names.

No weight of the head is trained, so every gain in accuracy comes from the adapter.
"""

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
    """Classifier whose score for a class is the cosine between the text's embedding and the class name's embedding.

        z = mean of the last hidden states over the tokens, divided by its norm          (batch, d)
        logits = scale * z E^T,   E: embeddings of the names, computed before training    (classes, d)

    Sentence-BERT compares sentences by this cosine (arXiv 1908.10084). No weight of the head is trained.

    Args:
        encoder: A transformers model whose output has `last_hidden_state` (batch, tokens, d).
        names: E (classes, d), the embeddings of the classes' names. Each row has norm 1.
        scale: Factor on the cosines before the softmax (inverse temperature).
        texts: Texts whose embeddings are the rows of E. An export contains these texts.
    """

    names: Tensor

    def __init__(self, encoder: nn.Module, names: Tensor, scale: float, texts: Sequence[str] = ()) -> None:
        super().__init__()
        self.encoder, self.scale, self.texts = encoder, scale, list(texts)
        self.config: Any = encoder.config
        self.register_buffer("names", names, persistent=False)

    @property
    def base_model(self) -> nn.Module:
        """The encoder. transformers uses the attribute name ``base_model`` for the model without its head."""
        return self.encoder

    def forward(self, labels: Tensor | None = None, **inputs: Tensor) -> SequenceClassifierOutput:
        """Returns the logits (batch, classes). If labels (batch,) are given, also returns the loss, a scalar."""
        embeddings = embed(self.encoder, inputs)
        with torch.autocast(embeddings.device.type, enabled=False):  # bf16's 8 bits of precision are too few here
            logits = self.scale * embeddings @ self.names.T
        loss = None if labels is None else F.cross_entropy(logits, labels)
        return SequenceClassifierOutput(loss=loss, logits=logits)


def embed(encoder: nn.Module, inputs: Mapping[str, Tensor]) -> Tensor:
    """Returns mean-pooled embeddings, shape (batch, d), in float32. Each embedding is divided by its norm.

    Args:
        encoder: A transformers model.
        inputs: input_ids and attention_mask (batch, tokens), and any other input of the model.
    """
    hidden = encoder(**inputs).last_hidden_state.float()
    mask = inputs["attention_mask"].unsqueeze(-1).to(hidden.dtype)
    return F.normalize((hidden * mask).sum(1) / mask.sum(1), dim=-1)


def label_name_classifier(
    encoder: nn.Module, tokenizer: Any, texts: Sequence[str], scale: float, max_length: int
) -> LabelNameClassifier:
    """Embeds the classes' texts and returns a classifier that consists of the encoder and these embeddings.

    Args:
        encoder: The encoder, in eval mode.
        tokenizer: The encoder's tokenizer.
        texts: One text for each class.
        scale: Factor on the cosines before the softmax (inverse temperature).
        max_length: Largest number of tokens of a text. Longer texts are cut.
    """
    inputs = tokenizer(list(texts), truncation=True, max_length=max_length, padding=True, return_tensors="pt")
    inputs = inputs.to(next(encoder.parameters()).device)
    with torch.no_grad():
        names = embed(encoder, inputs)
    return LabelNameClassifier(encoder, names, scale, texts)


def label_texts(names: Sequence[str], given: Mapping[str, str]) -> list[str]:
    """Returns a text for each class: the given text if there is one, else the class's name without punctuation.

    Args:
        names: Names of the classes.
        given: Name of a class -> text that replaces the name.

    Raises:
        InputError: A given text belongs to no class, or the text of a class has no letters, such as "42".

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
