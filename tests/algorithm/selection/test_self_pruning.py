"""HetLoRA: weights by the norm of the product, the penalty on a client's last pairs, and how these go."""

from __future__ import annotations

import itertools
import re
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
import torch
from filled import fill_b
from methods import FEDIT, METHODS, clients_of, job_seed
from torch import Tensor
from toys import Toy, assert_same, toy_batches, toy_federator, toy_module, updates_of, weights_of

from flt.algorithm.compression.methods import Quantised
from flt.algorithm.plan import AdapterPlan, Alternating, Stages
from flt.algorithm.recipe import Recipe
from flt.algorithm.rule.mean import Mean
from flt.algorithm.rule.stacking import Stacking
from flt.algorithm.selection.self_pruning import SelfPruning
from flt.algorithm.selection.truncate import Truncate
from flt.algorithm.server_optimizer import Momentum
from flt.core.errors import InputError
from flt.protocol.messages import encode
from flt.server.federator import Federator

A, B = "fc2.lora_A.default.weight", "fc2.lora_B.default.weight"
SGD: dict[str, Any] = {"optimizer": "sgd", "lr": 0.1, "weight_decay": 0.0}


def pruning(gamma: float = 0.5, penalty: float = 0.0, rule: Mean | None = None, **given: Any) -> Federator:
    recipe = Recipe(rule or Mean(pad="parameter"), selection=SelfPruning(gamma, penalty))
    return toy_federator(recipe, clients_of(3, ranks=[1, 2, 4]), **{"rounds": 3, **SGD, **given})


# ---------------------------------------------------------------------------------------------- weights


def by_hand(federator: Federator, name: str, a: str, b: str) -> np.ndarray:
    """sum_k |B_k A_k| w_k / sum_k |B_k A_k|, with zeros for the pairs that a client lacks, in NumPy."""
    sent = [{key: value.double().numpy() for key, value in update.tensors.items()} for update in updates_of(federator)]
    norms = [np.linalg.norm(tensors[b] @ tensors[a]) for tensors in sent]
    shape = federator.server.layout.entries[name].shape
    padded = [np.pad(t[name], [(0, most - least) for most, least in zip(shape, t[name].shape)]) for t in sent]  # noqa: B905  # both have two axes
    return sum(norm * tensor for norm, tensor in zip(norms, padded, strict=True)) / sum(norms)


def test_pairs_are_padded_with_zeros_and_weighed_by_the_norm_of_their_layers_product() -> None:
    federator = pruning(rule=Mean("norm", pad="parameter"), gamma=1.0, lr=0.5)
    while federator.state.rounds < 3:
        federator._round()
        for layer in federator.server.layout.layers.values():
            for name in (layer.a, layer.b):
                expected = by_hand(federator, name, layer.a, layer.b)
                np.testing.assert_allclose(weights_of(federator)[name], expected, rtol=1e-3, atol=1e-6)


def test_the_norms_of_two_layers_are_told_apart() -> None:
    """By one norm for the whole client, the weights of a layer would be others."""
    federator = pruning(rule=Mean("norm", pad="parameter"), gamma=1.0, lr=0.5, rounds=1)
    federator.fit()
    first, second = federator.server.layout.layers.values()
    crossed = by_hand(federator, second.b, first.a, first.b)
    assert np.abs(weights_of(federator)[second.b].numpy() - crossed).max() > 1e-4


def test_the_head_is_averaged_by_examples_all_the_same() -> None:
    federator, fedit = pruning(rule=Mean("norm", pad="parameter"), rounds=1), pruning(rounds=1)
    federator.fit()
    fedit.fit()
    for name in ("head.weight", "head.bias"):
        assert torch.equal(weights_of(federator)[name], weights_of(fedit)[name])


def test_a_client_whose_product_is_zero_counts_for_next_to_nothing_and_alone_for_all() -> None:
    federator = toy_federator(Recipe(Mean("norm")), clients_of(2), rounds=1, **{**SGD, "lr": 0.5})
    federator.fit()
    zero, learnt = updates_of(federator)
    for name in (name for name in zero.tensors if "lora_B" in name):
        zero.tensors[name].zero_()
    view = federator.server.view(toy_federator(Recipe(Mean("norm")), clients_of(2)).state)
    both = Mean("norm").combine(view, 0, [zero, learnt]).new
    torch.testing.assert_close(both[B], learnt.tensors[B], rtol=1e-3, atol=0)
    assert torch.equal(Mean("norm").combine(view, 0, [zero]).new[A], zero.tensors[A])


def test_one_client_is_unchanged_whatever_its_norm() -> None:
    federator = toy_federator(Recipe(Mean("norm")), clients_of(1), rounds=3, lr=0.3)
    federator.fit()
    assert_same(weights_of(federator), dict(updates_of(federator)[0].tensors))


def test_a_server_optimiser_steps_along_the_change_under_the_weights_of_what_arrived() -> None:
    """Half a step from the padded mean of what was sent, by the norms of the updates, in NumPy."""
    recipe = Recipe(
        Mean("norm", pad="parameter"), selection=Truncate("first"), server_optimizer=Momentum(lr=0.5, beta=0.0)
    )
    federator = toy_federator(recipe, clients_of(3, ranks=[1, 2, 4]), rounds=3, **{**SGD, "lr": 0.5})
    while federator.state.rounds < 3:
        before = {name: tensor.double().numpy() for name, tensor in weights_of(federator).items()}
        federator._round()
        for layer in federator.server.layout.layers.values():
            new = by_hand(federator, layer.a, layer.a, layer.b)
            norms = [np.linalg.norm((u.tensors[layer.b] @ u.tensors[layer.a]).numpy()) for u in updates_of(federator)]
            held = np.array([[pair < rank for pair in range(4)] for rank in (1, 2, 4)])
            start = (np.array(norms) @ held / sum(norms))[:, None] * before[layer.a]
            found = weights_of(federator)[layer.a]
            np.testing.assert_allclose(found, start + 0.5 * (new - start), rtol=1e-3, atol=1e-6)


def test_norms_of_products_that_the_server_lacks_are_refused() -> None:
    with pytest.raises(InputError, match=r"rule\.weights=norm: .*keeps B at the clients.*allowed is examples, uniform"):
        Recipe(Mean("norm"), plan=AdapterPlan(private=["B", "head"]))
    Recipe(Mean("norm"), plan=AdapterPlan(train=["B", "head"], private=["A"]))  # an A that nobody trains, it has


def test_weights_by_norm_without_pairs_are_refused() -> None:
    federator = toy_federator()
    bare = type(federator.server.layout)(
        {name: entry for name, entry in federator.server.layout.entries.items() if entry.axis is None}, {}
    )
    with pytest.raises(InputError, match="rule=Mean: .*no A and no B"):
        Recipe(Mean("norm")).check(bare)


def test_a_round_without_the_clients_of_high_rank_leaves_their_pairs_as_they_are() -> None:
    federator = pruning(rule=Mean("norm", pad="sent"), gamma=1.0)
    federator._round()
    before = weights_of(federator)[A].clone()
    federator.sampler = lambda *_: [0, 1]
    federator._round()
    assert torch.equal(weights_of(federator)[A][2:], before[2:])
    assert not torch.equal(weights_of(federator)[A][:2], before[:2])


# ---------------------------------------------------------------------------------------------- the penalty


def tails(tensors: Mapping[str, Tensor], keep: int, most: int | None = None) -> list[tuple[Tensor, Tensor]]:
    b, a = (lambda layer, part=part: tensors[f"{layer}.lora_{part}.default.weight"] for part in "BA")
    return [(b(layer)[:, keep:most], a(layer)[keep:most]) for layer in ("fc1", "fc2")]


def penalised(module: Toy, batches: Any, keep: int, penalty: float) -> None:
    """The tail's norm in the loss, by autograd."""
    named = dict(module.named_parameters())
    optimizer = module.configure_optimizers()
    for batch in batches:
        optimizer.zero_grad()
        extra = sum(b.norm() * a.norm() for b, a in tails(named, keep))
        (module.training_step(batch, 0) + penalty * extra).backward()
        optimizer.step()


@pytest.mark.parametrize("gamma", [0.75, 0.5])
def test_the_penalty_is_what_autograd_makes_of_the_norms_of_the_last_pairs(
    gamma: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From a B that isn't zero, where the norm has a gradient."""
    federator = toy_federator(Recipe(Mean(), selection=SelfPruning(gamma, 0.7)), clients_of(1), rounds=2, **SGD)
    module, _ = toy_module(**SGD)
    monkeypatch.setattr(Toy, "log", lambda *_: None)
    for tensors in (weights_of(federator), dict(module.named_parameters())):
        fill_b(tensors)
    federator._round()
    batches = itertools.islice(toy_batches(federator.clients[0].data[0], job_seed(0, 0)), 3)
    penalised(module, batches, int(4 * gamma), 0.7)
    kept = updates_of(federator)[0].kept["fc2"]
    found, named = updates_of(federator)[0].tensors, dict(module.named_parameters())
    torch.testing.assert_close(found[A], named[A].detach()[list(kept)], rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(found[B], named[B].detach()[:, list(kept)], rtol=1e-5, atol=1e-6)
    assert len(kept) == int(4 * gamma)  # under such a penalty the tail fades


def test_where_b_is_zero_the_penalty_adds_nothing_that_is_not_a_number() -> None:
    federator = pruning(penalty=5.0, rounds=1)
    federator.fit()
    assert all(torch.isfinite(tensor).all() for tensor in weights_of(federator).values())


# ---------------------------------------------------------------------------------------------- the ranks


def sizes(federator: Federator, job: int) -> int:
    update = next(update for update in updates_of(federator) if update.job == (job, 0))
    assert {len(ids) for ids in update.kept.values()} == {update.tensors[A].shape[0]}
    assert update.tensors[B].shape[1] == update.tensors[A].shape[0]
    return len(update.kept["fc2"])


def test_a_rank_falls_in_the_round_in_which_the_tail_is_smaller_than_what_was_sent_and_stays_down() -> None:
    federator = pruning(gamma=0.75, penalty=3.0, lr=0.05, rounds=5)
    found, rank = [], 4
    while federator.state.rounds < 5:
        sent = {name: tensor.clone() for name, tensor in weights_of(federator).items()}
        keep = max(1, rank * 3 // 4)
        federator._round()
        now = sizes(federator, 2)
        fell = now < rank
        assert now in (rank, keep)
        assert federator.state.ranks.get((2, 0), 4) == now
        if fell:
            assert "rank" in updates_of(federator)[2].scalars
            # never in round 1, where B is zero
            assert sum(float(b.norm() * a.norm()) for b, a in tails(sent, keep, rank)) > 0
        rank = now
        found.append(now)
    assert found[0] == 4
    assert found == sorted(found, reverse=True)
    assert found[-1] < 3
    assert sizes(federator, 0) == 1


def test_without_a_penalty_or_a_tail_no_rank_falls() -> None:
    federator = pruning(gamma=1.0, penalty=3.0, lr=0.05, rounds=4)
    federator.fit()
    assert not federator.state.ranks
    assert [sizes(federator, job) for job in range(3)] == [1, 2, 4]


def test_what_was_given_up_is_neither_sent_nor_averaged_in_that_round() -> None:
    """With ``pad=none``, the pairs that the only client of rank 4 gives up stay as they were."""
    federator = pruning(gamma=0.5, penalty=1.0, lr=0.05, rule=Mean())
    fill_b(weights_of(federator))
    before = weights_of(federator)[A].clone()
    federator._round()
    assert sizes(federator, 2) == 2
    assert torch.equal(weights_of(federator)[A][2:], before[2:])
    assert not torch.equal(weights_of(federator)[A][:2], before[:2])


def test_without_pruning_it_is_truncation_to_the_first_pairs_bit_for_bit() -> None:
    federator = pruning(gamma=1.0)
    truncated = toy_federator(
        Recipe(Mean(pad="parameter"), selection=Truncate("first")), clients_of(3, ranks=[1, 2, 4]), rounds=3, **SGD
    )
    for found in (federator, truncated):
        found.fit()
    assert encode(federator.state) == encode(truncated.state)


def test_a_client_that_keeps_its_pairs_to_itself_gives_them_up_too() -> None:
    recipe = Recipe(Mean(), plan=AdapterPlan(private=["B", "head"]), selection=SelfPruning(0.5, 5.0))
    federator = toy_federator(recipe, clients_of(2), rounds=3, **SGD)
    federator.fit()
    assert federator.state.ranks
    assert updates_of(federator)[0].tensors[A].shape[0] == federator.state.ranks[0, 0]


def test_stages_of_the_whole_model_leave_the_ranks_alone() -> None:
    recipe = Recipe(Mean(), plan=Stages(1, rounds=3), selection=SelfPruning(0.5, 5.0))
    federator = toy_federator(recipe, clients_of(2), rounds=3, lr=0.05)
    federator._round()
    assert not federator.state.ranks
    federator.fit()
    assert federator.state.ranks


def test_a_plan_that_never_trains_both_factors_is_refused() -> None:
    line = "selection SelfPruning with plan Alternating: no round trains A and B together; allowed is one that does"
    with pytest.raises(InputError, match=re.escape(line)):
        Recipe(Mean(), plan=Alternating(), selection=SelfPruning())
    with pytest.raises(InputError, match="no round trains A and B together"):
        Recipe(Mean(), plan=AdapterPlan(train=["B", "head"], private=["A"]), selection=SelfPruning())


def test_what_makes_fading_meaningless_is_refused() -> None:
    with pytest.raises(InputError, match="selection SelfPruning with rule Stacking: .*no component of it fades"):
        Recipe(Stacking(), selection=SelfPruning())
    with pytest.raises(InputError, match=r"compression\.down=true: a client takes the comp.*selection SelfPruning"):
        Recipe(Mean(), selection=SelfPruning(), compression=Quantised(down=True))


@pytest.mark.parametrize(
    ("given", "line"),
    [
        ({"gamma": 0.0}, "selection.gamma=0.0"), ({"gamma": 1.1}, "selection.gamma=1.1"),
        ({"penalty": -1.0}, "selection.penalty=-1.0"), ({"penalty": float("nan")}, "selection.penalty=nan"),
    ],
)  # fmt: skip
def test_settings_out_of_range_are_refused(given: dict[str, float], line: str) -> None:
    with pytest.raises(InputError, match=re.escape(line)):
        SelfPruning(**given)


def test_hetlora_is_none_of_its_parts_alone() -> None:
    given = {"clients": clients_of(3, ranks=[1, 2, 4]), "rounds": 3}
    found = [toy_federator(recipe, **given) for recipe in (METHODS["hetlora"][0], METHODS["zero-pad"][0], FEDIT)]
    for federator in found:
        federator.fit()
    assert len({encode(federator.state) for federator in found}) == 3
