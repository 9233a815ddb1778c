"""Helpers of the partitioners: seeded generators, Dirichlet shares, stratified orders, and checks."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from flt.core.errors import InputError

Positions = NDArray[np.int64]
Seed = int | Sequence[int]

MAX_ALPHA = 1e6
"""Largest allowed alpha. With far larger values, the draws would overflow.

With this alpha, the clients' shares already agree to three digits.
"""
DRAWS = 100
"""Largest number of Dirichlet draws. If none of them meets the requirements, an error is raised."""


def generator(stream: str, seed: Seed) -> np.random.Generator:
    """Creates a random generator from a seed and a name. Generators with different names are independent.

    Args:
        stream: Name of the purpose for which the generator is used.
        seed: One integer >= 0 or several, such as (seed, client).

    Raises:
        InputError: The seed is negative or empty.

    Example:
        >>> [int(generator(use, 0).integers(100)) for use in ("iid", "iid", "shards")]
        [25, 25, 60]
    """
    seeds = [seed] if isinstance(seed, int | np.integer) else list(seed)
    if min(seeds, default=-1) < 0:
        raise InputError.of("seed", seed, "integers >= 0")
    return np.random.default_rng([zlib.crc32(stream.encode()), *map(int, seeds)])


def stratified_order(labels: ArrayLike, seed: Seed) -> Positions:
    """Orders positions so that the first k examples, for any k, have nearly the same class proportions as all examples.

    The examples of each class are shuffled. In a class with m examples, example j (0 <= j < m) gets the place
    (j + 1/2) / m. All examples are sorted by place. Examples with equal places are in random order.

    Args:
        labels: Class of each example, shape (n,).
        seed: One integer, or several.

    Returns:
        A permutation of 0..n-1.

    Example:
        >>> labels = np.array([0, 0, 0, 0, 1, 1])
        >>> sorted(labels[stratified_order(labels, seed=0)[:3]].tolist())
        [0, 0, 1]
    """
    labels = np.asarray(labels)
    rng = generator("stratified_order", seed)
    place = np.empty(len(labels))
    for label in np.unique(labels):
        members = rng.permutation(np.flatnonzero(labels == label))
        place[members] = (np.arange(len(members)) + 0.5) / len(members)
    return np.lexsort((rng.random(len(labels)), place))


def redraw(draw: Callable[[], NDArray], accept: Callable[[NDArray], bool], error: InputError) -> NDArray:
    """Calls `draw` until `accept` accepts the result, and returns this result. Raises the error after `DRAWS` calls."""
    for _ in range(DRAWS):
        if accept(drawn := draw()):
            return drawn
    raise error


def drop_small(shares: NDArray, smallest: float) -> NDArray:
    """Sets shares below ``smallest`` to 0 and scales the other shares up to a sum of 1.

    If all shares are below ``smallest``, returns zeros.

    Example:
        >>> drop_small(np.array([0.05, 0.35, 0.6]), 0.1).round(3).tolist()
        [0.0, 0.368, 0.632]
    """
    kept = np.where(shares < smallest, 0.0, shares)
    return kept / kept.sum() if kept.any() else kept


def counts(shares: NDArray, examples: int) -> NDArray[np.int64]:
    """Turns shares, shape (clients,), into integers whose sum is ``examples``, by rounding the cumulative shares.

    Example:
        >>> counts(np.array([0.5, 0.25, 0.25]), 10).tolist()
        [5, 3, 2]
    """
    cuts = np.floor(np.cumsum(shares)[:-1] * examples + 0.5).astype(np.int64)
    return np.diff(np.concatenate([[0], np.minimum(cuts, examples), [examples]]))


def deal(order: Positions, sizes: NDArray[np.int64]) -> list[Positions]:
    """Cuts a sequence of positions into consecutive parts of the given sizes."""
    return np.split(order, np.cumsum(sizes)[:-1])


def check_clients(clients: int | None, examples: int) -> None:
    """Raises InputError unless clients is an integer >= 1 and at most the number of examples."""
    if isinstance(clients, bool) or not isinstance(clients, int | np.integer) or clients < 1:
        raise InputError.of("clients", clients, "an integer >= 1")
    if clients > examples:
        raise InputError.of("clients", clients, f"at most {examples}, one example for each")


def check_alpha(alpha: float) -> None:
    """Raises InputError unless alpha is in (0, 1e6]."""
    if not 0 < alpha <= MAX_ALPHA:  # nan fails this too
        raise InputError.of("partition.alpha", alpha, "a number in (0, 1e6]")


def no_draw_error(alpha: float, clients: int, wanted: str) -> InputError:
    """Builds the error that is raised if no draw of a Dirichlet partition meets the requirements in ``wanted``."""
    why = f"no draw out of {DRAWS} over clients={clients} gave {wanted}"
    return InputError.of("partition.alpha", alpha, "a larger alpha or fewer clients", why)


def groups(values: NDArray) -> list[Positions]:
    """Returns one array of positions for each distinct value, in the sorted order of the values.

    Raises:
        InputError: A value is missing.
    """
    missing = [i for i, value in enumerate(values.tolist()) if value is None or value != value]
    if missing:
        raise InputError.of("data.column", values[missing[0]], "a value in every example", f"example {missing[0]}")
    _, codes = np.unique(values, return_inverse=True)
    return [np.flatnonzero(codes == k) for k in range(codes.max(initial=-1) + 1)]


def clients_per_value(sizes: NDArray[np.int64], clients: int) -> NDArray[np.int64]:
    """Returns the number of clients for each value. The numbers are as equal as possible.

    If the clients can't be divided equally, the values with the most examples get one client more.

    Args:
        sizes: Number of examples of each value.
        clients: Total number of clients.

    Raises:
        InputError: A value would have more clients than examples.
    """
    each, spare = divmod(clients, len(sizes))
    clients_per_value = np.full(len(sizes), each)
    clients_per_value[np.argsort(-sizes, kind="stable")[:spare]] += 1
    if (clients_per_value > sizes).any():
        worst = int(np.argmax(clients_per_value - sizes))
        allowed = f"fewer: a value with {sizes[worst]} examples would have {clients_per_value[worst]} clients"
        raise InputError.of("clients", clients, allowed)
    return clients_per_value
