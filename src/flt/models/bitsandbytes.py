"""Quantisation of the frozen linear layers to 8 or 4 bits per weight, by bitsandbytes. Adapters stay in float32."""

from __future__ import annotations

import importlib.util

import torch
import transformers

from flt.core.errors import InputError
from flt.models.layer_names import HEADS

BITS = ("8bit", "4bit")
NOT_QUANTISED = [*HEADS, "pooler.dense", "lm_head", "embed_out"]
"""Names of the layers near the logits. They are not quantised.

Heads and randomly initialised poolers are trained. The last layer of a causal model is frozen, but rounding this layer
would cost the most accuracy.
"""


def quantisation(bits: str) -> transformers.BitsAndBytesConfig:
    """Returns the settings that make transformers quantise the linear layers of a model while the model is loaded.

    8 bits: LLM.int8() (arXiv 2208.07339). 4 bits: QLoRA's NormalFloat (arXiv 2305.14314). With 4 bits, the scales of
    the quantised weights are quantised too (double quantisation), and matrix products are computed in bf16.

    Args:
        bits: One of BITS.

    Raises:
        InputError: bits isn't in BITS, there is no CUDA device, or bitsandbytes isn't installed.
    """
    if bits not in BITS:
        raise InputError.of("model.quantise", bits, [*BITS, "null"])
    if not torch.cuda.is_available():
        raise InputError.of("model.quantise", bits, "null", "it takes a CUDA device")
    if importlib.util.find_spec("bitsandbytes") is None:
        raise InputError.of("model.quantise", bits, "null", "it takes bitsandbytes: pip install 'flt[quantised]'")
    if bits == "8bit":
        return transformers.BitsAndBytesConfig(load_in_8bit=True, llm_int8_skip_modules=NOT_QUANTISED)
    return transformers.BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.bfloat16, llm_int8_skip_modules=NOT_QUANTISED,
    )  # fmt: skip
