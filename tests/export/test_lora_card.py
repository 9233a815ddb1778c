"""Cards of LoRA: what they say about a base's layers becomes peft's configuration, made only of the base's names."""

from __future__ import annotations

import re
from typing import Any

import pytest
from peft import PeftModel, get_peft_model
from torch import nn

from flt.core.errors import InputError
from flt.export.lora_card import PREFIX, checked_config, lora_config
from flt.export.weights import Header


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.query, self.key = nn.Linear(4, 6), nn.Linear(4, 6, bias=False)


class Head(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.query = nn.Linear(4, 3)


class Base(nn.Module):
    """Two blocks of two linear layers, an embedding, and a head that has a linear layer with a block's name."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.blocks = nn.Embedding(5, 4), nn.ModuleList([Block(), Block()])
        self.head = Head()


QUERIES, KEYS = (tuple(f"blocks.{i}.{name}" for i in range(2)) for name in ("query", "key"))
HEAD = {"head.query.weight": (3, 4), "head.query.bias": (3,)}
CARD = {"target_modules": ["query"], "modules_to_save": ["head"], "r": 2, "lora_alpha": 4}


def header(ranks: dict[str, int], extra: dict[str, tuple[int, ...]] | None = None) -> Header:
    """Header of a file with these layers."""
    shapes = {}
    for name, rank in ranks.items():
        shapes[f"{PREFIX}{name}.lora_A.weight"] = (rank, 4)
        shapes[f"{PREFIX}{name}.lora_B.weight"] = (6, rank)
    shapes |= {PREFIX + name: shape for name, shape in (HEAD if extra is None else extra).items()}
    return Header((), shapes, dict.fromkeys(shapes, "F32"))


def adapted(card: dict[str, Any], held: Header) -> dict[str, tuple[int, float]]:
    """Layer -> (rank, scale), after peft has applied the configuration that was made of a card."""
    config = checked_config({**CARD, **card}, held, "folder", Base())
    model: Any = get_peft_model(Base(), config)  # type: ignore[arg-type]  # any module will do
    assert isinstance(model, PeftModel)
    layers = {name.removeprefix(PREFIX): sub for name, sub in model.named_modules() if hasattr(sub, "lora_A")}
    return {name: (sub.r["default"], sub.scaling["default"]) for name, sub in layers.items()}


def all_of(names: tuple[str, ...], rank: int = 2, scale: float = 2.0) -> dict[str, tuple[int, float]]:
    return dict.fromkeys(names, (rank, scale))


SLOW = "([a-z0-9_.]+)+!"
FULL = "|".join(map(re.escape, QUERIES))
READ: dict[str, tuple[dict[str, Any], dict[str, int], dict[str, tuple[int, float]]]] = {
    "a list of last names": ({}, dict.fromkeys(QUERIES, 2), all_of(QUERIES)),
    "names of other models": ({"target_modules": ["query", "q_proj"]}, dict.fromkeys(QUERIES, 2), all_of(QUERIES)),
    "flt's own names": ({"target_modules": FULL}, dict.fromkeys(QUERIES, 2), all_of(QUERIES)),
    "a pattern": ({"target_modules": ".*key"}, dict.fromkeys(KEYS, 2), all_of(KEYS)),
    "a pattern that takes for ever": ({"target_modules": SLOW}, dict.fromkeys(KEYS, 2), all_of(KEYS)),
    "some blocks": ({"layers_to_transform": [1]}, {QUERIES[1]: 2}, all_of(QUERIES[1:])),
    "no choice of blocks": ({"layers_to_transform": []}, dict.fromkeys(QUERIES, 2), all_of(QUERIES)),
    "rank-stabilised": ({"use_rslora": True, "r": 4}, dict.fromkeys(QUERIES, 4), all_of(QUERIES, 4, 2.0)),
    "a rank by a last name": ({"rank_pattern": {"query": 4}}, dict.fromkeys(QUERIES, 4), all_of(QUERIES, 4, 1.0)),
    "ranks by full names": (
        {"rank_pattern": {"^blocks.0.query": 4, r"^blocks\.1\.query": 8}},
        {QUERIES[0]: 4, QUERIES[1]: 8},
        {QUERIES[0]: (4, 1.0), QUERIES[1]: (8, 0.5)},
    ),
    "the first alpha that matches": (
        {"alpha_pattern": {"0.query": 6, "query": 2, "v_proj": 9}},
        dict.fromkeys(QUERIES, 2),
        {QUERIES[0]: (2, 3.0), QUERIES[1]: (2, 1.0)},
    ),
    "a head that the base lacks": ({"modules_to_save": ["head", "score"]}, dict.fromkeys(QUERIES, 2), all_of(QUERIES)),
    "a task": ({"task_type": "TOKEN_CLS"}, dict.fromkeys(QUERIES, 2), all_of(QUERIES)),
}


@pytest.mark.parametrize("case", READ)
def test_a_card_becomes_ranks_and_scales_of_layers(case: str) -> None:
    card, ranks, expected = READ[case]
    assert adapted(card, header(ranks)) == expected


REFUSED: dict[str, tuple[dict[str, Any], Header, str]] = {
    "a slow pattern in a list": ({"target_modules": [SLOW]}, header({}), "target_modules="),
    "a slow pattern of ranks": ({"rank_pattern": {SLOW: 2}}, header({}), "rank_pattern=.*by peft itself"),
    "a slow pattern of modules": ({"modules_to_save": [SLOW]}, header({}), "modules_to_save="),
    "every module": ({"modules_to_save": [""]}, header({}), "modules_to_save="),
    "too many names": ({"modules_to_save": ["a"] * 1001}, header({}), "modules_to_save=1001 names"),
    "blocks beside a pattern": (
        {"target_modules": ".*", "layers_to_transform": 1},
        header({}),
        "layers_to_transform=1",
    ),
    "EVA's settings without EVA": ({"eva_config": {"rho": 2.0}}, header({}), "eva_config="),
    "an embedding": ({"target_modules": ["words"]}, header({}), "words: it is Embedding, .*by peft itself"),
    "an embedding's factors": (
        {"target_modules": ".*"},
        header({}, {"words.lora_embedding_A": (2, 5)}),
        "words.lora_embedding_A is none; such an adapter can be loaded by peft",
    ),
    "a layer without factors": ({}, header({QUERIES[0]: 2}), "blocks.1.query.lora_A.weight is missing"),
    "factors without a layer": ({}, header(dict.fromkeys(QUERIES + KEYS, 2)), "blocks.0.key.lora_A.weight is none"),
    "a pattern's factors of no layer": (
        {"target_modules": ".*"},
        header({"strange": 2}),
        "strange.lora_A.weight is none",
    ),
    "factors in the head": ({"target_modules": ".*"}, header({"head.query": 2}), "head.query.lora_A.weight is none"),
    "no head": ({}, header(dict.fromkeys(QUERIES, 2), {}), "head.query.(weight|bias) is missing"),
    "a head that the base lacks": (
        {"modules_to_save": ["head", "score"]},
        header(dict.fromkeys(QUERIES, 2), {**HEAD, "score.weight": (3, 4)}),
        "score.weight is none",
    ),
    "another rank": ({}, header(dict.fromkeys(QUERIES, 3)), "size mismatch for "),
    "another rank beside a pattern": ({"target_modules": ".*"}, header({QUERIES[0]: 3}), "size mismatch for "),
    "no biases": ({"bias": "lora_only"}, header(dict.fromkeys(QUERIES, 2)), "query.base_layer.bias is missing"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_card_that_the_header_or_the_base_contradicts_is_refused(case: str) -> None:
    card, held, why = REFUSED[case]
    with pytest.raises(InputError, match=why):
        checked_config({**CARD, **card}, held, "folder", Base())


def test_only_layers_that_have_a_bias_need_one_in_the_file() -> None:
    ranks = {**dict.fromkeys(QUERIES, 2), **dict.fromkeys(KEYS, 2)}
    biases = {f"{name}.base_layer.bias": (6,) for name in QUERIES}
    card = {**CARD, "target_modules": ["query", "key"], "bias": "lora_only"}
    assert checked_config(card, header(ranks, {**HEAD, **biases}), "folder", Base()).bias == "lora_only"


def test_peft_gets_no_text_of_a_card_but_names_of_modules() -> None:
    card = {
        "target_modules": SLOW, "task_type": "SEQ_CLS", "revision": "evil", "auto_mapping": {"parent_library": "evil"},
        "init_lora_weights": "eva", "modules_to_save": ["head", "evil"], "peft_version": "evil",
    }  # fmt: skip
    config = checked_config({**CARD, **card}, header(dict.fromkeys(QUERIES, 2)), "folder", Base())
    assert "evil" not in str(config.to_dict())
    assert config.target_modules == FULL
    assert config.init_lora_weights is True


def test_what_is_written_is_read_again() -> None:
    written = lora_config(dict(zip(QUERIES, (2, 5), strict=True)), dict.fromkeys(QUERIES, 3.0), ["head"], False, "")
    card = {key: value for key, value in written.to_dict().items() if value is not None}
    read = checked_config(card, header(dict(zip(QUERIES, (2, 5), strict=True))), "folder", Base())
    for key in ("rank_pattern", "alpha_pattern", "target_modules", "modules_to_save", "r"):
        assert getattr(read, key) == getattr(written, key)
