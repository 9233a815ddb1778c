"""Configurations of models from a stranger: plain values of known keys, and no size that the weights don't justify."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
import transformers

from flt.core.errors import InputError
from flt.export.model_config import architecture, check_size, config_of, generation_config_of, most_labels
from flt.export.weights import Header

SMALL: dict[str, Any] = {
    "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 16, "vocab_size": 12,
}  # fmt: skip


def header_of(kind: Any, **card: Any) -> Header:
    """Header of the weights of a model of this configuration, which takes no memory."""
    with torch.device("meta"):
        model = kind(kind.config_class(**{**SMALL, **card}))
    shapes = {name: tuple(value.shape) for name, value in model.state_dict().items()}
    return Header((), shapes, dict.fromkeys(shapes, "F32"))


LLAMA, BERT = transformers.LlamaForCausalLM, transformers.BertForSequenceClassification
WEIGHTS = {kind: header_of(kind) for kind in (LLAMA, BERT)}


@pytest.mark.parametrize("name", ["BertModel", "ViTForImageClassification", "LlamaForCausalLM"])
def test_a_class_that_flt_can_train_is_found(name: str) -> None:
    assert architecture(name) is getattr(transformers, name)


@pytest.mark.parametrize("name", ["pipelines", "BertConfig", "os.system", "", "TimmWrapperModel", "__version__"])
def test_no_other_name_is_looked_up(name: str) -> None:
    with pytest.raises(InputError, match="a model class of transformers"):
        architecture(name)


@pytest.mark.parametrize("frequency", [10_000, 100_000_000, 10**15, 1e8])
@pytest.mark.parametrize(
    "card", [lambda f: {"rope_theta": f}, lambda f: {"rope_parameters": {"rope_type": "default", "rope_theta": f}}]
)
def test_a_frequency_is_no_size(card: Any, frequency: float) -> None:
    config = config_of({**SMALL, **card(frequency)}, LLAMA, WEIGHTS[LLAMA])
    assert config.rope_parameters["rope_theta"] == frequency
    check_size(LLAMA, config, WEIGHTS[LLAMA])


def test_a_frequency_has_63_bits() -> None:
    with pytest.raises(InputError, match="rope_theta=1000.*: allowed is an integer up to 9223372036854775808"):
        config_of({"rope_theta": 10**400}, LLAMA, WEIGHTS[LLAMA])


TOO_LARGE: dict[str, Any] = {
    "hidden_size": 10**8, "intermediate_size": 2**24 + 1, "vocab_size": 10**9, "max_position_embeddings": 10**8,
    "num_attention_heads": -(10**9), "num_hidden_layers": 1001, "num_labels": 2**16 + 1, "type_vocab_size": 10**12,
    "unknown_size": 10**12,
}  # fmt: skip


@pytest.mark.parametrize("key", TOO_LARGE)
def test_a_size_that_the_weights_do_not_justify_is_refused(key: str) -> None:
    with pytest.raises(InputError, match=f"config.json: {key}={TOO_LARGE[key]}: allowed is an integer up to"):
        config_of({key: TOO_LARGE[key]}, BERT, WEIGHTS[BERT])


@pytest.mark.parametrize(("key", "value"), [("hidden_size", 8_000), ("vocab_size", 2**24), ("num_hidden_layers", 900)])
def test_a_model_that_is_larger_than_its_weights_is_never_built(key: str, value: int) -> None:
    config = config_of({**SMALL, key: value}, BERT, WEIGHTS[BERT])
    with pytest.raises(InputError, match="weights are smaller"):
        check_size(BERT, config, WEIGHTS[BERT])


def test_a_model_of_the_size_of_its_weights_is_accepted() -> None:
    config = config_of({**SMALL, "num_labels": 2}, BERT, WEIGHTS[BERT])
    assert "position_ids" in check_size(BERT, config, WEIGHTS[BERT])


@pytest.mark.parametrize(
    ("card", "why"),
    [
        ({"model_type": "vit"}, "model_type=vit: allowed is bert"),
        ({"quantization_config": {"bits": 4}}, "weights that aren't quantised"),
        ({"hidden_act": "x" * 1001}, "hidden_act="),
        ({"id2label": {"0": {"a": {"b": {"c": {"d": {}}}}}}}, "numbers, and texts that are short"),
    ],
)
def test_what_is_not_plain_or_of_another_model_is_refused(card: dict[str, Any], why: str) -> None:
    with pytest.raises(InputError, match=why):
        config_of(card, BERT, WEIGHTS[BERT])


def test_names_of_classes_may_be_names_of_settings() -> None:
    names = ["_private", "num_hidden_layers", "dtype", "a layer"]
    card = {"id2label": dict(enumerate(names)), "label2id": dict.fromkeys(names, 5000)}
    config = config_of({**SMALL, **json.loads(json.dumps(card))}, BERT, WEIGHTS[BERT])
    assert config.id2label == dict(enumerate(names))
    assert config.label2id == {name: number for number, name in enumerate(names)}


def test_names_of_code_and_unknown_texts_are_left_out() -> None:
    card = {"auto_map": {"AutoConfig": "evil.A"}, "attn_implementation": "evil", "custom": "evil", "_private": 1}
    config = config_of({**SMALL, **card}, BERT, WEIGHTS[BERT])
    assert "evil" not in str(config.to_dict())


def test_settings_of_generation_are_numbers_and_lists_of_integers() -> None:
    card = {"max_length": 7, "eos_token_id": [1, 2], "cache_implementation": "evil", "bad_words_ids": [["evil"]]}
    made = generation_config_of({**card, "strange": 1})
    assert (made.max_length, made.eos_token_id) == (7, [1, 2])
    assert "evil" not in str(made.to_dict())
    assert not hasattr(made, "strange")


@pytest.mark.parametrize(("rows", "most"), [((), 2**16), ((5,), 2**16), ((5, 2**17), 2**17)])
def test_there_are_at_most_as_many_labels_as_a_tensor_has_rows(rows: tuple[int, ...], most: int) -> None:
    shapes = {str(i): (size, 2) for i, size in enumerate(rows)} | {"scalar": ()}
    assert most_labels(None, Header((), shapes, {})) == most
