"""Bottleneck adapters: how many parameters, how they begin, which of them travel."""

from __future__ import annotations

import pytest
import tiny
import torch
import transformers
from bottlenecks import batch_of
from hypothesis import given, settings
from hypothesis import strategies as st

from flt.core.errors import InputError
from flt.models.adapters.houlsby import Bottleneck, HoulsbySettings, attach


def test_distilbert_has_304320_parameters_of_plain_adapters() -> None:
    with torch.device("meta"):
        model = transformers.DistilBertForSequenceClassification(transformers.DistilBertConfig(num_labels=10))
        layout = attach(model, HoulsbySettings(rank=16), 0)
    assert sum(torch.Size(layout.entries[name].shape).numel() for name in layout.names(["adapter"])) == 304_320


@settings(max_examples=20)
@given(width=st.integers(1, 40), rank=st.integers(1, 20))
def test_an_adapter_has_the_parameters_of_its_two_layers(width: int, rank: int) -> None:
    assert sum(p.numel() for p in Bottleneck(width, rank).parameters()) == 2 * width * rank + rank + width


def test_it_begins_near_the_identity_and_cut_at_two_deviations() -> None:
    model = tiny.classifier("bert")
    before = model(**batch_of("bert")).logits
    layout = attach(model, HoulsbySettings(), 0)
    after = model(**batch_of("bert")).logits
    torch.testing.assert_close(after, before, rtol=0, atol=0.05)
    assert not torch.equal(after, before)
    weights = dict(model.named_parameters())
    drawn = torch.cat([weights[name].flatten() for name in layout.names(["adapter"]) if name.endswith((".u", ".d"))])
    assert drawn.abs().max() <= 0.02
    assert 0.008 < drawn.std() < 0.01  # a normal distribution that is cut at two deviations has 0.88 of its deviation


def test_the_seed_alone_draws_the_weights_and_the_global_generator_stays() -> None:
    drawn = []
    for seed in (3, 3, 4):
        model, state = tiny.classifier("bert"), torch.get_rng_state()
        attach(model, HoulsbySettings(), seed)
        assert torch.equal(torch.get_rng_state(), state)
        drawn.append(dict(model.named_parameters())["bert.encoder.layer.1.houlsby_feed_forward.d"])
    assert torch.equal(drawn[0], drawn[1])
    assert not torch.equal(drawn[0], drawn[2])


def test_a_width_below_one_is_refused() -> None:
    with pytest.raises(InputError, match="^adapter.rank=0: allowed is an integer >= 1$"):
        HoulsbySettings(rank=0)
