"""C2A: every formula against NumPy, what it reads of batch and client, and its switches."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
import transformers
from bottlenecks import SMALL, SUBLAYERS, Array, adapted, adapted_sums, array, batch_of, by_hand, logits, normal
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from flt.models.adapters.c2a import C2ASettings, HyperNetwork, attach, context, generate, generating, histogram

SWITCHES = ("use_label", "use_context", "use_layer", "factorise", "normalise")


# ---------------------------------------------------------------------------------------------- NumPy's


def context_by_hand(z: Array, mask: Array | None = None) -> Array:
    kept = [z[b] if mask is None else z[b][mask[b].astype(bool)] for b in range(len(z))]
    means = [rows.mean(0) for rows in kept]
    return np.mean([mean / np.sqrt((mean**2).sum()) for mean in means], axis=0)


def embedding_by_hand(weights: dict[str, Array], p: Array, g: Array, layer: int, without: str = "") -> Array:
    terms = {
        "use_label": lambda: weights["label.weight"] @ p + weights["label.bias"],
        "use_layer": lambda: weights["e_layer"][layer],
        "use_context": lambda: weights["context.weight"] @ g + weights["context.bias"],
    }
    return sum(term() for switch, term in terms.items() if switch != without)


def pair_by_hand(
    weights: dict[str, Array], e: Array, normalise: bool = True, factorise: bool = True
) -> tuple[Array, Array]:
    t, width = len(e), len(weights["b2"])
    matrix = weights["f"] @ weights["s"] if factorise else weights["m"]
    m = matrix.reshape(t, -1) + weights["w_bias"]
    if normalise:
        m = m / (np.sqrt((m**2).sum(1, keepdims=True)) + 1e-12)
    w = e @ m
    return w.reshape(width, -1), w.reshape(-1, width)


# ---------------------------------------------------------------------------------------------- formulas


def test_a_row_of_padding_alone_is_zero_in_the_context() -> None:
    z, mask = normal(2, 3, 5), torch.tensor([[1, 1, 0], [0, 0, 0]])
    np.testing.assert_allclose(context(z, mask), context(z[:1], mask[:1]) / 2, rtol=1e-6)


@pytest.mark.parametrize("masked", [True, False])
def test_the_context_is_the_mean_of_normed_means_over_the_tokens(masked: bool) -> None:
    z = normal(4, 6, 5)
    mask = batch_of("bert")["attention_mask"] if masked else None
    expected = context_by_hand(array(z), None if mask is None else mask.numpy())
    np.testing.assert_allclose(array(context(z, mask)), expected, rtol=1e-5, atol=1e-6)


def test_a_histogram_has_a_share_for_every_class() -> None:
    assert histogram(torch.tensor([0, 1, 1, 3]), 5).tolist() == [0.25, 0.5, 0, 0.25, 0]


@settings(max_examples=15)
@given(t=st.integers(1, 4), r=st.integers(1, 4), width=st.integers(1, 7), seed=st.integers(0, 99))
def test_u_and_d_hold_the_same_entries_in_the_same_order(t: int, r: int, width: int, seed: int) -> None:
    rows = generating(normal(t, r * width, seed=seed), normal(1, r * width, seed=seed + 1))
    torch.testing.assert_close(rows.norm(dim=1), torch.ones(t))
    u, d = generate(normal(t, seed=seed), rows, width)
    assert (tuple(u.shape), tuple(d.shape)) == ((width, r), (r, width))
    assert torch.equal(u.flatten(), d.flatten())


def test_tied_by_reshape_is_not_tied_by_transposition() -> None:
    u, d = generate(torch.ones(1), torch.arange(6.0)[None], 3)
    assert u.tolist() == [[0, 1], [2, 3], [4, 5]]
    assert d.tolist() == [[0, 1, 2], [3, 4, 5]]


def network(chosen: C2ASettings = SMALL, width: int = 5, layers: int = 3, classes: int = 4) -> HyperNetwork:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return HyperNetwork(chosen, width, layers, classes)


@pytest.mark.parametrize("normalise", [True, False])
def test_the_scale_of_the_factors_is_no_matter_without_a_bias_where_rows_are_normed(normalise: bool) -> None:
    made = network(dataclasses.replace(SMALL, normalise=normalise))
    rows = made.rows()
    made.f.data *= 7
    assert torch.allclose(made.rows(), rows, atol=1e-6) == normalise
    made.w_bias.data += 1
    assert not torch.allclose(made.rows(), rows, atol=1e-2)


def formula(chosen: C2ASettings, width: int, layers: int, classes: int) -> int:
    r, t, c = chosen.rank, chosen.embedding, chosen.factor
    count = t * r * c + c * width if chosen.factorise else t * r * width
    count += layers * t * chosen.use_layer + (classes + 1) * t * chosen.use_label + (width + 1) * t * chosen.use_context
    return count + r * width + r + width


@settings(max_examples=30)
@given(
    width=st.integers(1, 30), layers=st.integers(1, 8), classes=st.integers(1, 12),
    r=st.integers(1, 9), t=st.integers(1, 9), c=st.integers(1, 9),
    off=st.sets(st.sampled_from(SWITCHES), max_size=2),
)  # fmt: skip
def test_the_parameters_are_those_of_the_formula(
    width: int, layers: int, classes: int, r: int, t: int, c: int, off: set[str]
) -> None:
    chosen = C2ASettings(rank=r, embedding=t, factor=c, **dict.fromkeys(off, False))  # type: ignore[arg-type]  # switches
    made = network(chosen, width, layers, classes)
    assert sum(p.numel() for p in made.parameters()) == formula(chosen, width, layers, classes)


def test_distilbert_has_48032_parameters() -> None:
    with torch.device("meta"):
        model = transformers.DistilBertForSequenceClassification(transformers.DistilBertConfig(num_labels=10))
        layout = attach(model, C2ASettings(), 0)
    assert sum(torch.Size(layout.entries[name].shape).numel() for name in layout.names(["adapter"])) == 48_032
    assert formula(C2ASettings(), 768, 6, 10) == 48_032


def test_the_initial_values_are_those_of_the_table() -> None:
    made = network(C2ASettings(), width=64, layers=200)
    assert made.f.detach().std().item() == pytest.approx(0.01, rel=0.05)
    assert made.s.detach().std().item() == pytest.approx(0.01, rel=0.05)
    assert made.e_layer.detach().std().item() == pytest.approx(1, rel=0.1)
    assert not torch.cat([made.w_bias.flatten(), made.b1, made.b2]).any()


# ---------------------------------------------------------------------------------------------- in a model


@pytest.mark.parametrize(
    ("kind", "block", "without"),
    [*((kind, block, "") for kind in SUBLAYERS for block in (0, 2)), *(("bert", 2, switch) for switch in SWITCHES)],
)
def test_one_network_adapts_both_places_of_every_block(kind: str, block: int, without: str) -> None:
    batch, own = batch_of(kind), []
    chosen = dataclasses.replace(SMALL, **{without: False} if without else {})
    sums = adapted_sums(kind, lambda model: own.append((model, attach(model, chosen, 0))), block)
    ((model, layout),) = own
    weights = {
        n.rpartition(".c2a.")[2]: array(p) for n, p in model.named_parameters() if n in layout.names(["adapter"])
    }
    assert sum(".c2a." in name for name, _ in model.named_parameters()) == len(weights)
    mask = array(batch["attention_mask"]) if kind != "vit" else None
    p = np.array([0.25, 0.5, 0.25])  # the network is new, so it trains: the batch's histogram
    for z, found, _ in sums:
        e = embedding_by_hand(weights, p, context_by_hand(z, mask), block, without)
        pair = pair_by_hand(weights, e, without != "normalise", without != "factorise")
        expected = by_hand(z, *pair, weights["b1"], weights["b2"])
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)
        assert not np.allclose(found, z, atol=0.1)


def part(batch: dict[str, Tensor], rows: list[int]) -> dict[str, Tensor]:
    return {name: value[rows] for name, value in batch.items()}


def test_a_permuted_batch_has_permuted_outputs_and_another_batch_has_others() -> None:
    model, batch = adapted().eval(), batch_of("bert")
    found = logits(model, batch)
    torch.testing.assert_close(logits(model, part(batch, [2, 0, 3, 1])), found[[2, 0, 3, 1]], rtol=1e-4, atol=1e-4)
    assert not torch.allclose(logits(model, part(batch, [0, 1])), found[:2], atol=1e-3)


@pytest.mark.parametrize("use_context", [True, False])
def test_gradients_flow_from_one_example_to_another_through_the_context_alone(use_context: bool) -> None:
    model = adapted(use_context=use_context).eval()
    batch = batch_of("bert")
    inputs = model.get_input_embeddings()(batch.pop("input_ids")).detach().requires_grad_(True)
    model(inputs_embeds=inputs, **batch).logits[0].sum().backward()
    assert inputs.grad is not None
    assert bool(inputs.grad[0].any())
    assert bool(inputs.grad[1:].any()) == use_context


@pytest.mark.parametrize("mask_padding", [True, False])
def test_more_padding_changes_nothing_unless_it_counts(mask_padding: bool) -> None:
    model, batch = adapted(mask_padding=mask_padding).eval(), batch_of("bert")
    longer = {n: nn.functional.pad(v, (0, 3)) if v.dim() == 2 else v for n, v in batch.items()}
    assert torch.allclose(logits(model, longer), logits(model, batch), atol=1e-4) == mask_padding


def test_a_mask_that_is_given_by_position_counts_too() -> None:
    model, batch = adapted().eval(), batch_of("bert")
    with torch.no_grad():
        found = model(batch["input_ids"], batch["attention_mask"]).logits
    assert torch.equal(found, logits(model, batch))


@pytest.mark.parametrize("kind", ["bert", "vit"])
def test_bf16_yields_numbers_near_those_of_float32(kind: str) -> None:
    model, batch = adapted(kind), batch_of(kind)
    expected = logits(model, batch)
    with torch.autocast("cpu", torch.bfloat16):
        loss = model(**batch).loss
        found = logits(model, batch)
    loss.backward()
    network = next(sub for sub in model.modules() if isinstance(sub, HyperNetwork))
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in network.parameters())
    assert float((found - expected).norm() / expected.norm()) < 0.15


def test_with_gradient_checkpointing_the_gradients_are_the_same() -> None:
    grads = []
    for enabled in (False, True):
        model = adapted().train()
        if enabled:
            # Versions of transformers before 5.23 have only the old name.
            enable = getattr(model, "activation_checkpointing_enable", model.gradient_checkpointing_enable)
            enable({"use_reentrant": False})
        model(**batch_of("bert")).loss.backward()
        grads.append({n: p.grad for n, p in model.named_parameters() if p.grad is not None})
    assert grads[0].keys() == grads[1].keys()
    for name, grad in grads[0].items():
        torch.testing.assert_close(grads[1][name], grad)
