"""A quantised base: the frozen weights in 8 or 4 bits, by bitsandbytes, and adapters in float32 above them."""

from __future__ import annotations

import importlib.util

import torch
import transformers

from flt.core.errors import InputError
from flt.models.layer_names import HEADS

BITS = ("8bit", "4bit")
KEPT = [*HEADS, "pooler.dense", "lm_head", "embed_out"]
"""Layers that turn features into logits: heads train, a new pooler too, and rounding the last layer costs the most."""


def quantisation(bits: str) -> transformers.BitsAndBytesConfig:
    """How transformers quantises the linear layers of a model that it loads.

    8 bits are LLM.int8() (arXiv 2208.07339), 4 bits QLoRA's (arXiv 2305.14314): normal floats, their scales quantised
    once more, matrix products in bf16.

    Args:
        bits: One of BITS.

    Raises:
        InputError: There is no CUDA device, or no bitsandbytes.
    """
    if bits not in BITS:
        raise InputError.of("model.quantise", bits, [*BITS, "null"])
    if not torch.cuda.is_available():
        raise InputError.of("model.quantise", bits, "null", "it takes a CUDA device")
    if importlib.util.find_spec("bitsandbytes") is None:
        raise InputError.of("model.quantise", bits, "null", "it takes bitsandbytes: pip install 'flt[quantised]'")
    if bits == "8bit":
        return transformers.BitsAndBytesConfig(load_in_8bit=True, llm_int8_skip_modules=KEPT)
    return transformers.BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.bfloat16, llm_int8_skip_modules=KEPT,
    )  # fmt: skip
