"""Batches: which examples come together, in which order."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.data import Subset, TensorDataset

from flt.client.loader import loader
from flt.client.settings import LocalSettings
from flt.core.errors import InputError
from flt.data.examples import Examples
from flt.data.samplers import Shuffled, SimilarLengths, lengths_of
from flt.data.stores import TextStore


def padding(lengths: np.ndarray, batches: list[list[int]]) -> int:
    """Tokens that are nothing but padding."""
    return sum(int(lengths[batch].max() * len(batch) - lengths[batch].sum()) for batch in batches)


@given(st.lists(st.integers(1, 64), min_size=1, max_size=90), st.integers(1, 9), st.integers(1, 5), st.integers(0, 3))
def test_every_example_comes_once_a_pass_and_batches_are_full_but_one_a_window(
    lengths: list[int], size: int, window: int, seed: int
) -> None:
    batches = list(sampler := SimilarLengths(np.array(lengths), size, window, seed))
    assert sorted(i for batch in batches for i in batch) == list(range(len(lengths)))
    assert len(batches) == len(sampler)
    assert sum(len(batch) < size for batch in batches) == (len(lengths) % size > 0)


@given(st.integers(0, 50))
def test_a_window_of_one_batch_has_the_batches_of_a_plain_shuffle(seed: int) -> None:
    lengths = np.arange(10)
    plain = torch.tensor(list(Shuffled(10, seed))).split(4)
    found = list(SimilarLengths(lengths, 4, 1, seed))
    assert sorted(map(sorted, found)) == sorted(sorted(batch.tolist()) for batch in plain)


def test_batches_of_a_window_hold_similar_lengths_and_come_in_any_order() -> None:
    lengths = np.random.default_rng(0).integers(1, 65, 512)
    sorted_ones = list(SimilarLengths(lengths, 16, 8, 0))
    plain = [batch.tolist() for batch in torch.tensor(list(Shuffled(512, 0))).split(16)]
    assert padding(lengths, sorted_ones) < 0.25 * padding(lengths, plain)
    firsts = [np.argmin([lengths[batch].mean() for batch in sorted_ones[i : i + 8]]) for i in range(0, 32, 8)]
    assert len(set(firsts)) > 1


def test_each_pass_is_another_and_a_seed_gives_the_same_passes() -> None:
    sampler = SimilarLengths(np.arange(20), 4, 2, seed=3)
    first, second = list(sampler), list(sampler)
    again = SimilarLengths(np.arange(20), 4, 2, seed=3)
    assert first != second
    assert [list(again), list(again)] == [first, second]


@pytest.mark.parametrize(("size", "least"), [(33, 2), (17, 2), (5, 2), (35, 4), (21, 6)])
@pytest.mark.parametrize("by_length", [False, True])
def test_small_batches_are_joined_and_no_example_is_lost(size: int, least: int, by_length: bool) -> None:
    settings, lengths = LocalSettings(batch_size=least + 2), np.arange(size) % 7
    data = TensorDataset(torch.arange(size))
    if by_length:
        store = TextStore({"input_ids": np.zeros(lengths.sum(), dtype=np.int32)}, np.append(0, lengths.cumsum()))
        data = Examples(store, [0] * size)  # type: ignore[assignment]  # as an encoded text data set
    for seed in range(8):
        made = loader(data, settings, lambda items: items, seed, "norm", least)
        batches = [list(batch) for batch in made.batch_sampler]  # type: ignore[union-attr]  # the sampler of lists
        assert len(batches) == len(made)
        assert sorted(sum(batches, [])) == list(range(size))
        assert all(len(batch) >= least for batch in batches)


def test_lengths_are_found_through_subsets_and_nowhere_else() -> None:
    class WithLengths(TensorDataset):
        lengths = np.array([3, 1, 2])

    store = TextStore({"input_ids": np.zeros(6, dtype=np.int32)}, np.array([0, 3, 4, 6]))
    examples = Examples(store, [0, 1, 0])
    assert lengths_of(examples).tolist() == [3, 1, 2]
    assert lengths_of(Subset(Subset(examples.view([1, 2]), [1, 0]), [0])).tolist() == [2]
    assert lengths_of(WithLengths(torch.zeros(3))) is None


@pytest.mark.parametrize("key", ["batch_size", "length_window", "eval_batch_size"])
def test_nothing_below_one_is_a_number_of_examples(key: str) -> None:
    with pytest.raises(InputError, match=f"^{key}=0"):
        LocalSettings(**{key: 0})
