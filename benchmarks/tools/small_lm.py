"""A small causal language model for trying flt's recipes on instructions offline; `make small-lm` trains it, once.

    FLT_DATA=<folder of data sets> .venv/bin/python -m benchmarks.tools.small_lm      prints its folder, for MODEL=

It is the project's own: a Llama of 4 M parameters and its tokenizer, trained on posts, encyclopaedia sentences and
questions for minutes on a laptop. It knows how English looks and little else, so it is no language model worth using;
it is a pre-trained one, whose loss on Dolly an adapter lowers, and that is what recipes are compared by. No text of
Dolly is among what it has read. It lies in flt's cache, beside the embedded backbone.
"""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import json
import math
import os
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import torch
import transformers
from numpy.typing import NDArray
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor
from torch.nn import functional as F

from flt.core import cache
from flt.core.errors import InputError
from flt.core.quiet import quiet_transformers

SOURCES = {
    "newsgroups20": ("text_stripped",),
    "glue_qnli": ("sentence1", "sentence2"),
    "glue_qqp": ("sentence1", "sentence2"),
}
"""File -> columns of its train split."""
HELD_OUT = 50
"""Each 50th text is read only to be measured on."""
END = "<|endoftext|>"


@dataclasses.dataclass(frozen=True)
class Settings:
    """How the model comes about; another value of any field is another model."""

    steps: int = 800
    vocabulary: int = 4096
    layers: int = 4
    width: int = 256
    heads: int = 4
    context: int = 256
    batch: int = 16
    """Stretches of `context` tokens per step."""
    lr: float = 2e-3
    warmup: float = 0.05
    """Share of the steps in which the learning rate rises; then it falls as a cosine."""
    weight_decay: float = 0.1
    clip: float = 1.0
    seed: int = 0
    code: int = 1
    """Version of the code below: count it up whenever another model comes out."""


def small_lm(settings: Settings, data: Path) -> Path:
    """Folder of the model, which the first call trains; the next ones find it.

    Args:
        settings: How it comes about.
        data: Folder with the files of `SOURCES`.

    Raises:
        InputError: A file isn't there.
    """
    for name in SOURCES:
        if not (data / f"{name}.parquet").is_file():
            raise InputError.of("FLT_DATA", data, f"a folder with {', '.join(f'{n}.parquet' for n in SOURCES)}")
    depends_on = [dataclasses.asdict(settings), SOURCES, torch.__version__, transformers.__version__]
    digest = hashlib.sha256(json.dumps(depends_on, sort_keys=True).encode()).hexdigest()[:12]
    folder = cache.folder() / f"embedded-lm-{digest}"
    if not folder.is_dir():
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".writing-") as scratch:
            _make(settings, data, Path(scratch) / "model")
            cache.move_into_place(Path(scratch) / "model", folder)
    return folder


def texts(data: Path, held_out: bool) -> Iterator[str]:
    """The texts that are read, or those that are measured on."""
    for name, columns in SOURCES.items():
        table = pq.read_table(data / f"{name}.parquet", columns=[*columns, "split"], filters=[("split", "=", "train")])
        for column in columns:
            for i, text in enumerate(table[column].to_pylist()):
                if text and text.strip() and (i % HELD_OUT == HELD_OUT - 1) == held_out:
                    yield text.strip()


def train_tokenizer(settings: Settings, data: Path) -> transformers.PreTrainedTokenizerFast:
    """Byte-level BPE, as GPT-2's, of the texts that are read."""
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer, backend.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    letters = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=settings.vocabulary, special_tokens=[END], initial_alphabet=letters, show_progress=False
    )
    backend.train_from_iterator(texts(data, held_out=False), trainer)
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=backend, eos_token=END, bos_token=END, model_max_length=settings.context
    )


def packed(tokenizer: transformers.PreTrainedTokenizerFast, found: Iterator[str], context: int) -> NDArray[np.int64]:
    """Texts one after the other, an end behind each, cut in stretches (n, context); the rest is left out."""
    rows = tokenizer(list(found), return_attention_mask=False, verbose=False)["input_ids"]
    flat = np.fromiter((token for row in rows for token in (*row, tokenizer.eos_token_id)), dtype=np.int64)
    return flat[: len(flat) // context * context].reshape(-1, context)


def architecture(settings: Settings, tokenizer: transformers.PreTrainedTokenizerFast) -> transformers.LlamaConfig:
    """A Llama whose embedding turns hidden states into tokens too."""
    return transformers.LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=settings.width, num_hidden_layers=settings.layers,
        num_attention_heads=settings.heads, intermediate_size=settings.width * 8 // 3 // 16 * 16,
        max_position_embeddings=settings.context, tie_word_embeddings=True,
        bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id, pad_token_id=None,
    )  # fmt: skip


def fit(settings: Settings, model: transformers.PreTrainedModel, stretches: NDArray[np.int64]) -> None:
    """AdamW on batches drawn by the seed, in bf16 autocast: each stretch comes before any comes again."""
    decays = [parameter for parameter in model.parameters() if parameter.dim() > 1]
    others = [parameter for parameter in model.parameters() if parameter.dim() == 1]
    groups = [{"params": decays, "weight_decay": settings.weight_decay}, {"params": others, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=settings.lr, betas=(0.9, 0.95), fused=True)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: _rate(step, settings))
    generator, began = np.random.default_rng(settings.seed), time.perf_counter()
    order: NDArray[np.int64] = np.zeros(0, dtype=np.int64)
    for step in range(settings.steps):
        if len(order) < settings.batch:
            order = generator.permutation(len(stretches))
        batch, order = torch.from_numpy(stretches[order[: settings.batch]]), order[settings.batch :]
        loss = _nll(model, batch).mean()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), settings.clip)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        if step % 20 == 0 or step == settings.steps - 1:
            seconds = time.perf_counter() - began
            print(f"step {step + 1}/{settings.steps}  loss {loss.item():.3f}  {seconds:.0f} s", file=sys.stderr)


@torch.no_grad()
def perplexity(model: transformers.PreTrainedModel, stretches: NDArray[np.int64]) -> float:
    """Of the next token, over all tokens but each stretch's first."""
    parts = [_nll(model, torch.from_numpy(stretches[i : i + 16])).double() for i in range(0, len(stretches), 16)]
    return math.exp(torch.cat(parts).mean().item())


def _nll(model: transformers.PreTrainedModel, batch: Tensor) -> Tensor:
    """Negative log-likelihood of each token but the first of each stretch (batch * (context - 1),)."""
    with torch.autocast("cpu", torch.bfloat16):
        logits = model(input_ids=batch, use_cache=False).logits
    return F.cross_entropy(logits[:, :-1].flatten(0, 1).float(), batch[:, 1:].flatten(), reduction="none")


def _rate(step: int, settings: Settings) -> float:
    """Share of the learning rate: up in a line, down as a cosine to a tenth."""
    warmup = max(1, round(settings.warmup * settings.steps))
    if step < warmup:
        return (step + 1) / warmup
    return 0.1 + 0.45 * (1 + math.cos(math.pi * (step - warmup) / max(1, settings.steps - warmup)))


def _make(settings: Settings, data: Path, folder: Path) -> None:
    began = time.perf_counter()
    tokenizer = train_tokenizer(settings, data)
    read, measured = (packed(tokenizer, texts(data, held_out), settings.context) for held_out in (False, True))
    torch.manual_seed(settings.seed)
    # eager: the fused kernel's backward pass takes several times as long in bf16 on a CPU
    model = transformers.AutoModelForCausalLM.from_config(
        architecture(settings, tokenizer), attn_implementation="eager"
    )
    count = sum(parameter.numel() for parameter in model.parameters())
    print(
        f"{count:,} parameters, {read.size:,} tokens, {settings.steps} steps of {settings.batch} x {settings.context}",
        file=sys.stderr,
    )
    fit(settings, model.train(), read)
    about = {
        **dataclasses.asdict(settings), "parameters": count, "tokens": read.size, "sources": list(SOURCES),
        "held_out_tokens": measured.size, "held_out_perplexity": round(perplexity(model.eval(), measured), 2),
        "seconds": round(time.perf_counter() - began), "cpu_seconds": round(time.process_time()),
    }  # fmt: skip
    with quiet_transformers():
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
    (folder / "training.json").write_text(json.dumps(about, indent=1))


def main() -> None:
    """Prints the folder, and how well the model does on standard error."""
    parser = argparse.ArgumentParser(prog="small_lm", description="Train the small causal language model, once.")
    parser.add_argument(
        "--steps", type=int, default=Settings.steps, help="optimiser steps; another number, another model"
    )
    steps = parser.parse_args().steps
    try:
        folder = small_lm(Settings(steps=steps), Path(os.environ.get("FLT_DATA", "FLT_DATA isn't set")))
    except InputError as error:
        sys.exit(str(error))
    about = json.loads((folder / "training.json").read_text())
    took = f"{about['seconds']} s, {about['cpu_seconds']} s of CPU"
    print(f"held-out perplexity {about['held_out_perplexity']}, trained in {took}", file=sys.stderr)
    print(folder)


if __name__ == "__main__":
    main()
