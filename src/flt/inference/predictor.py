"""A loaded model that predicts the classes of rows."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import torch
from torch.nn import functional as F

from flt.core.quiet import without_fast_path
from flt.data import encode, stores
from flt.data.columns import check_text
from flt.data.dataset_sources import RawData
from flt.data.examples import Examples
from flt.data.images import with_places
from flt.inference.metrics import checked
from flt.inference.models import Loaded
from flt.models.label_name_head import LabelNameClassifier
from flt.models.model_files import check_ids

_LABEL = "flt.label"
"""Column of labels that is added to images, because an encoded example has a label."""


@dataclasses.dataclass
class Predictor:
    """A loaded model that predicts the classes of rows.

    Attributes:
        loaded: The model.
        batch_size: Number of examples in a batch.
        task: Task whose classes are predicted. None: all outputs of the model.
    """

    loaded: Loaded
    batch_size: int = 64
    task: str | None = None

    @property
    def names(self) -> list[str]:
        """Name of each class that may be predicted."""
        names = self.loaded.exported.names(self.task)
        further = range(len(names), self.loaded.outputs) if self.task is None or not names else ()
        return [*names, *(f"LABEL_{number}" for number in further)]

    def log_probabilities(self, table: pa.Table, inputs: Sequence[str]) -> torch.Tensor:
        """Returns the logarithms of the classes' probabilities for some rows, shape (n, classes), float64.

        Raises:
            InputError: A column holds something else than the model reads, or a logit isn't finite.
        """
        examples = encoded(self.loaded, table, inputs)
        lengths = examples.lengths
        order = np.arange(len(examples)) if lengths is None else np.argsort(lengths, kind="stable")
        found = torch.empty(len(examples), len(self.names), dtype=torch.float64)
        device, precision = self.loaded.device, self.loaded.exported.inputs.precision
        mixed = torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16-mixed")
        with torch.inference_mode(), without_fast_path(), mixed:
            for start in range(0, len(order), self.batch_size):
                rows = order[start : start + self.batch_size]
                batch = self.loaded.collate([examples[int(i)] for i in rows])
                moved = {name: value.to(device) for name, value in batch.items() if name != "labels"}
                logits = checked(self.loaded.module(**moved))[:, : len(self.names)]
                found[torch.from_numpy(rows)] = F.log_softmax(logits.double().cpu(), dim=-1)
        return found


def encoded(loaded: Loaded, table: pa.Table, inputs: Sequence[str]) -> Examples:
    """Encodes rows without labels, in memory.

    Args:
        loaded: The model with its tokenizer or image processor.
        table: The rows.
        inputs: Names of the columns that the model reads.

    Raises:
        InputError: A column holds something else than the model reads.
    """
    backbone, exported = loaded.backbone, loaded.exported
    nothing = np.zeros(table.num_rows, dtype=np.int64)
    if exported.kind == "image":
        rows = datasets.Dataset(table.select(list(inputs)).append_column(_LABEL, pa.array(nothing)))
        labelled = with_places(rows, inputs[0], "the data")
        raw = RawData({"train": labelled}, "image", tuple(inputs), _LABEL, ())
        return encode.encode_images(labelled, raw, backbone.image_size, backbone.channels, backbone.prepare)
    features = datasets.Features.from_arrow_schema(table.schema)
    texts = []
    for name in inputs:
        if not pa.types.is_null(table[name].type):
            check_text("text", name, features)
        texts.append([text or "" for text in table[name].to_pylist()])
    assert backbone.tokenizer is not None, "a text backbone has one"
    tokens = stores.tokenize(texts, backbone.tokenizer, exported.inputs.max_length)
    flat = {name: stores.flatten(rows) for name, rows in tokens.items()}
    model: Any = backbone.model.encoder if isinstance(backbone.model, LabelNameClassifier) else backbone.model
    check_ids(model, exported.called, flat)
    offsets = np.concatenate([[0], np.cumsum([len(row) for row in tokens["input_ids"]], dtype=np.int64)])
    return Examples(stores.TextStore(flat, offsets), nothing)
