"""Scores by leave-one-out: losses of dense models without a component, computed by hand."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from stacks import assignments_of, batched, federator_of
from torch import Tensor
from torch.nn import functional as F
from toys import Toy, toy_clients, toy_federator, updates_of

from flt.algorithm.importance import Ablation
from flt.algorithm.recipe import Recipe
from flt.algorithm.rule.mean import Mean
from flt.algorithm.selection.freeze import Freeze
from flt.algorithm.selection.truncate import Truncate
from flt.core.errors import InputError
from flt.data.clients import JobData
from flt.data.stores import IGNORED
from flt.engines.batched.engine import BatchedEngine
from flt.models.module import Optimizer
from flt.protocol.messages import Payload, Update
from flt.server.federator import Federator


def dense_loss(toy: Toy, weights: dict[str, Tensor], products: dict[str, Tensor], data: JobData, most: int) -> float:
    """The toy's loss on evenly spaced held-out examples, with W0 + 2 B A as one matrix, in float64."""
    rows = data.held_out[np.linspace(0, len(data.held_out) - 1, min(most, len(data.held_out))).astype(int)]
    x, y = data.dataset[rows]
    full = dict(toy.named_parameters())
    hidden = x.double()
    for layer in ("fc1", "fc2"):
        w = full[f"{layer}.base_layer.weight"].double() + 2 * products[layer]
        hidden = torch.relu(hidden @ w.T + full[f"{layer}.base_layer.bias"].double())
    logits = hidden @ weights["head.weight"].double().T + weights["head.bias"].double()
    return float(F.cross_entropy(logits, y))


@pytest.mark.parametrize("selection", [Freeze(), Truncate()], ids=["freeze", "truncate"])
def test_a_score_is_the_rise_of_the_loss_of_a_dense_model_without_the_component(selection: Freeze | Truncate) -> None:
    clients = toy_clients(2, ranks=[2, 3])
    recipe = Recipe(Mean(), selection=selection, importance=Ablation(examples=4))
    federator = toy_federator(recipe, clients, rounds=2, steps=4, lr=0.1)
    for _ in range(2):
        before = federator.state.groups[0].weights
        federator._round()
        toy: Any = federator.engine.local_trainer.module
        for update in updates_of(federator):
            data = clients[update.job[0]].data[0]
            held = {n: tuple(range(4)) if isinstance(selection, Freeze) else ids for n, ids in update.kept.items()}
            layout = federator.server.layout
            full = {n: layout.put(n, before[n], update.kept, update.tensors[n]) for n in before}
            a = {n: full[f"{n}.lora_A.default.weight"].double() for n in held}
            b = {n: full[f"{n}.lora_B.default.weight"].double() for n in held}
            products = {n: sum(torch.outer(b[n][:, i], a[n][i]) for i in held[n]) for n in held}
            whole = dense_loss(toy, full, products, data, 4)
            for n, ids in held.items():
                assert update.scores[n][0] == ids
                for i, score in zip(ids, update.scores[n][1].tolist(), strict=True):
                    less = {**products, n: products[n] - torch.outer(b[n][:, i], a[n][i])}
                    assert score == pytest.approx(dense_loss(toy, full, less, data, 4) - whole, abs=2e-6)
            assert update.scores["fc1"][1].abs().max() > 1e-3


def federation(kind: str = "bert", causal: bool = False, selection: str = "freeze", **settings: Any) -> Federator:
    """A federation of tiny encoders with a high learning rate, so that components have effects far above rounding."""
    return federator_of(
        "hafl", "importance=ablation", "importance.examples=3", f"selection={selection}", kind=kind, causal=causal,
        held_out=5, ranks=[2, 3], optimizer=Optimizer("adamw", lr=0.1), **settings,
    )  # fmt: skip


def alone(federator: Federator, payload: Payload, update: Update) -> dict[str, list[float]]:
    """Rises of the loss, with one example at a time and with the component's row of A and column of B removed."""
    trainer, layout = federator.engine.local_trainer, federator.server.layout
    module: Any = trainer.module.eval()
    data = federator.clients[update.job[0]].data[0].validation_set(3)
    full = {n: payload.tensors[n] for n in payload.tensors}
    for n, tensor in update.tensors.items():
        ids, held = layout.ids(n, update.kept), layout.ids(n, payload.held)
        if ids is None or held is None:
            full[n] = tensor
        else:
            at = torch.tensor([held.index(i) for i in ids])
            full[n] = full[n].index_copy(layout.axis(n), at, tensor)

    @torch.no_grad()
    def loss(without: tuple[str, int] | None = None) -> float:
        tensors = dict(full)
        if without is not None:
            layer = layout.layers[without[0]]
            rest = torch.tensor([i for i in range(len(payload.held[without[0]])) if i != without[1]])
            tensors |= {layer.a: full[layer.a][rest], layer.b: full[layer.b][:, rest]}
        trainer.put(tensors)
        total, count = 0.0, 0
        for i in range(len(data)):
            batch = trainer.collate([data[i]])
            labels = batch.pop("labels")
            logits = module(**batch)
            if labels.dim() == 2:
                labels, logits = labels[:, 1:], logits[:, :-1]
            total += float(F.cross_entropy(logits.flatten(0, -2), labels.flatten(), reduction="sum"))
            count += int((labels != IGNORED).sum())
        return total / count

    whole = loss()
    rises = {n: [loss((n, i)) - whole for i in range(len(ids))] for n, ids in payload.held.items()}
    module.train()
    return rises


@pytest.mark.parametrize(("kind", "causal"), [("bert", False), ("distilbert", False), ("llama", True)])
@pytest.mark.parametrize("selection", ["freeze", "truncate"])
def test_masks_have_the_effect_of_a_model_without_the_component(kind: str, causal: bool, selection: str) -> None:
    federator = federation(kind, causal, selection, eval_batch_size=7)
    assignments = assignments_of(federator)
    for assignment, (update, _) in zip(assignments, federator.engine.run(assignments), strict=True):
        expected = alone(federator, assignment.payload, update)
        for layer, (ids, scores) in update.scores.items():
            assert ids == assignment.payload.held[layer]
            np.testing.assert_allclose(scores.numpy(), expected[layer], atol=3e-6)
        assert max(abs(value) for values in expected.values() for value in values) > 1e-3


def test_stacked_jobs_measure_what_single_ones_measure() -> None:
    federator = federation()
    assignments = assignments_of(federator)
    expected = list(federator.engine.run(assignments))
    engine: BatchedEngine = batched(federator)
    assert engine.fallback_reason(assignments[0]) is None
    for (update, _), (other, _) in zip(engine.run(assignments), expected, strict=True):
        for layer, (ids, scores) in update.scores.items():
            assert ids == other.scores[layer][0]
            torch.testing.assert_close(scores, other.scores[layer][1], atol=1e-5, rtol=1e-3)
        assert max(float(scores.abs().max()) for _, scores in update.scores.values()) > 1e-3


def test_measuring_changes_nothing_else() -> None:
    plain = federator_of("hafl", "importance=none", held_out=5, ranks=[2, 3])
    federator = federator_of("hafl", "importance=ablation", held_out=5, ranks=[2, 3])
    found, expected = (list(f.engine.run(assignments_of(f, 0))) for f in (federator, plain))
    for (update, _), (other, _) in zip(found, expected, strict=True):
        assert update.scores
        assert not other.scores
        for name, tensor in update.tensors.items():
            assert torch.equal(tensor, other.tensors[name])


def test_a_model_that_masks_do_not_reach_is_measured_one_component_after_another() -> None:
    """The outputs of A pass through a model in which tokens come first, so that copies of a batch lie elsewhere."""
    federator = federation()
    assignments = assignments_of(federator)
    expected = list(federator.engine.run(assignments))
    module: Any = federator.engine.local_trainer.module
    hooks = [
        sub.register_forward_hook(lambda m, i, out: out.flip(0), prepend=True)
        for name, sub in module.named_modules()
        if name.endswith("lora_A.default")
    ] + [
        sub.register_forward_pre_hook(lambda m, i: (i[0].flip(0),))
        for name, sub in module.named_modules()
        if name.endswith("lora_B.default")
    ]
    found = list(federator.engine.run(assignments))
    for hook in hooks:
        hook.remove()
    for (update, _), (other, _) in zip(found, expected, strict=True):
        for layer, (_, scores) in update.scores.items():
            torch.testing.assert_close(scores, other.scores[layer][1], atol=1e-6, rtol=1e-3)


def test_a_job_without_held_out_examples_is_measured_on_its_training_examples() -> None:
    scores = []
    for held_out, source in ((0, "held_out"), (0, "train")):
        federator = federator_of(
            "hafl", "importance=ablation", f"importance.data={source}", held_out=held_out, ranks=[2]
        )
        assignments = assignments_of(federator)
        (update, _), *_ = federator.engine.run(assignments)
        scores.append(torch.cat([values for _, values in update.scores.values()]))
    assert torch.equal(*scores)
    assert bool(scores[0].any())


def test_clients_measure_in_every_third_round_and_scores_stay_in_between() -> None:
    recipe = Recipe(Mean(), selection=Freeze(), importance=Ablation(every=3))
    federator = toy_federator(recipe, toy_clients(2, ranks=[2, 3]), rounds=5, lr=0.1)
    sent, scores = [], []
    for _ in range(5):
        federator._round()
        sent.append(bool(updates_of(federator)[0].scores))
        scores.append(federator.state.groups[0].scores["fc1"].clone())
    assert sent == [True, False, False, True, False]
    assert torch.equal(scores[0], scores[2])
    assert not torch.equal(scores[2], scores[3])


def test_scores_below_zero_pass_the_servers_checks_and_are_averaged_by_examples() -> None:
    clients = toy_clients(2, ranks=[2, 3])
    federator = toy_federator(Recipe(Mean(), selection=Freeze(), importance=Ablation()), clients, steps=4, lr=0.1)
    federator.fit()
    updates = updates_of(federator)
    assert any(bool((values < 0).any()) for update in updates for _, values in update.scores.values())
    share = np.array([update.examples for update in updates]) / sum(update.examples for update in updates)
    for layer, found in federator.state.groups[0].scores.items():
        measured = np.stack([update.scores[layer][1].double().numpy() for update in updates])
        np.testing.assert_allclose(found.numpy(), share @ measured, rtol=1e-12)


@pytest.mark.parametrize(("key", "value"), [("data", "test"), ("examples", 0), ("every", 0), ("beta1", 1.0)])
def test_settings_out_of_range_are_refused_by_name(key: str, value: Any) -> None:
    with pytest.raises(InputError, match=f"importance.{key}={value}"):
        Ablation(**{key: value})


def test_a_module_that_logs_no_loss_is_refused_in_a_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Toy, "validation_step", lambda self, batch, i: self.log("val_acc", torch.tensor(0.5)))
    federator = toy_federator(Recipe(Mean(), selection=Freeze(), importance=Ablation()))
    with pytest.raises(InputError, match="validation_step=.*loss"):
        federator.fit()
