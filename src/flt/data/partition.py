"""Seeded partitioners that divide the positions 0..n-1 among clients, written in NumPy alone.

Every partitioner returns one array of positions per client (int64, sorted). The arrays are disjoint and together cover
all examples. A seed is one integer or several, such as (seed, client). Each partitioner draws from its own generator,
never from the global one.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable

import numpy as np
from numpy.typing import ArrayLike

from flt.core.errors import InputError
from flt.data import random_splits as draws
from flt.data.random_splits import Positions, Seed


def iid(examples: int, clients: int, seed: Seed) -> list[Positions]:
    """Shuffles the examples and deals them out in parts whose sizes differ by at most one.

    Raises:
        InputError: There are no clients, or more clients than examples.

    Example:
        >>> [len(part) for part in iid(10, clients=3, seed=0)]
        [4, 3, 3]
    """
    draws.check_clients(clients, examples)
    return _sorted(np.array_split(draws.generator("iid", seed).permutation(examples), clients))


def dirichlet(labels: ArrayLike, clients: int, alpha: float, seed: Seed, min_examples: int = 1) -> list[Positions]:
    """Skews the labels: a Dirichlet(alpha) draw over the clients divides the examples of each class.

    With a small alpha, a client has few classes; with a large one, all clients have nearly the same mixture.

    Args:
        labels: Class of each example, (n,).
        clients: Number of clients.
        alpha: Concentration, in (0, 1e6].
        seed: Seed of the draws.
        min_examples: Smallest number of examples of a client; the whole partition is drawn again until all have it.

    Raises:
        InputError: All of 100 draws leave a client with fewer than min_examples, or an argument is out of range.

    Example:
        >>> [part.tolist() for part in dirichlet([0, 0, 0, 1, 1, 1], clients=2, alpha=0.5, seed=0)]
        [[2, 3], [0, 1, 4, 5]]
    """
    _, codes, sizes = np.unique(np.asarray(labels), return_inverse=True, return_counts=True)
    draws.check_clients(clients, len(codes))
    draws.check_alpha(alpha)
    if not 0 <= min_examples <= len(codes) // clients:
        allowed = f"0 to {len(codes) // clients} with {clients} clients and {len(codes)} examples"
        raise InputError.of("partition.min_examples", min_examples, allowed)
    rng = draws.generator("dirichlet", seed)
    table = draws.redraw(
        lambda: np.stack([draws.counts(rng.dirichlet(np.full(clients, alpha)), size) for size in sizes]),
        lambda drawn: bool(drawn.sum(axis=0).min() >= min_examples),
        draws.no_draw_error(alpha, clients, f"each of them {min_examples} or more examples"),
    )
    dealt = [draws.deal(rng.permutation(np.flatnonzero(codes == k)), row) for k, row in enumerate(table)]
    return _sorted(np.concatenate(parts) for parts in zip(*dealt, strict=True))


def quantity(examples: int, clients: int, alpha: float, seed: Seed, min_share: float = 0.0) -> list[Positions]:
    """Skews the sizes: one Dirichlet(alpha) draw decides the share of each client, regardless of labels.

    FL-TAC partitions every task in this way, with alpha 0.5 and min_share 0.01.

    Args:
        examples: Number of examples.
        clients: Number of clients.
        alpha: Concentration, in (0, 1e6].
        seed: Seed of the draws.
        min_share: Smallest share. Clients with a smaller one get an empty array, and the other shares are scaled up to
            a sum of 1. With 0, the sizes are drawn again until every client has an example.

    Raises:
        InputError: None of 100 draws succeeds, or an argument is out of range.

    Example:
        >>> [len(part) for part in quantity(1000, clients=4, alpha=0.5, seed=1, min_share=0.01)]
        [687, 286, 0, 27]
    """
    draws.check_clients(clients, examples)
    draws.check_alpha(alpha)
    if not 0 <= min_share < 1:
        raise InputError.of("partition.min_share", min_share, "a number in [0, 1)")
    rng = draws.generator("quantity", seed)
    shares = draws.redraw(
        lambda: draws.drop_small(rng.dirichlet(np.full(clients, alpha)), min_share),
        lambda drawn: bool(drawn.any() if min_share else draws.counts(drawn, examples).all()),
        draws.no_draw_error(alpha, clients, f"any a share of {min_share}" if min_share else "each of them an example"),
    )
    return _sorted(draws.deal(rng.permutation(examples), draws.counts(shares, examples)))


def shards(labels: ArrayLike, clients: int, shards_per_client: int, seed: Seed) -> list[Positions]:
    """Sorts the examples by label, cuts them into equal shards, and deals each client the same number of shards.

    The method is that of McMahan et al. 2017.

    Raises:
        InputError: There are more shards than examples.

    Example:
        >>> [part.tolist() for part in shards([0, 1, 0, 1], clients=2, shards_per_client=1, seed=0)]
        [[0, 2], [1, 3]]
    """
    labels = np.asarray(labels)
    draws.check_clients(clients, len(labels))
    if not 1 <= shards_per_client <= len(labels) // clients:
        allowed = f"1 to {len(labels) // clients} with {clients} clients and {len(labels)} examples"
        raise InputError.of("partition.shards_per_client", shards_per_client, allowed)
    rng = draws.generator("shards", seed)
    shuffled = rng.permutation(len(labels))  # so that cuts inside a class are random
    pieces = np.array_split(shuffled[np.argsort(labels[shuffled], kind="stable")], clients * shards_per_client)
    hands = rng.permutation(len(pieces)).reshape(clients, shards_per_client)
    return _sorted(np.concatenate([pieces[i] for i in hand]) for hand in hands)


def by_column(values: ArrayLike, clients: int | None, seed: Seed) -> list[Positions]:
    """Divides the examples by the values of a column, such as language, author or task.

    Args:
        values: Value of the column for each example, (n,), none missing.
        clients: Number of clients; None: one per value, in sorted order of the values. If there are more clients than
            values, the values with most examples get the additional clients, and each value's examples are dealt out
            iid among its clients. If there are fewer, the shuffled values are dealt to the clients in turn.
        seed: Seed of the draws.

    Raises:
        InputError: A value is missing, or a value has fewer examples than clients.

    Example:
        >>> [part.tolist() for part in by_column(["de", "en", "de", "fr"], clients=None, seed=0)]
        [[0, 2], [1], [3]]
    """
    of_value = draws.groups(np.asarray(values))
    clients = len(of_value) if clients is None else clients
    draws.check_clients(clients, np.size(values))
    rng = draws.generator("by_column", seed)
    if clients < len(of_value):
        order = rng.permutation(len(of_value))
        return _sorted(np.concatenate([of_value[k] for k in order[c::clients]]) for c in range(clients))
    per_value = draws.clients_per_value(np.array([len(group) for group in of_value]), clients)
    parts = [np.array_split(rng.permutation(group), n) for group, n in zip(of_value, per_value, strict=True)]
    return _sorted(part for of_one in parts for part in of_one)


PARTITIONERS: dict[str, Callable[..., list[Positions]]] = {
    function.__name__: function for function in (iid, dirichlet, quantity, shards, by_column)
}


def settings(kind: str) -> dict[str, bool]:
    """Returns the names of a partitioner's settings, and for each whether it is required.

    Raises:
        InputError: There is no such partitioner.

    Example:
        >>> settings("dirichlet")
        {'alpha': True, 'min_examples': False}
    """
    if kind not in PARTITIONERS:
        raise InputError.of("partition.kind", kind, PARTITIONERS)
    shared = {"examples", "labels", "values", "clients", "seed"}
    parameters = inspect.signature(PARTITIONERS[kind]).parameters.values()
    return {p.name: p.default is p.empty for p in parameters if p.name not in shared}


def partition(
    kind: str,
    *,
    labels: ArrayLike,
    column: ArrayLike | None = None,
    clients: int | None,
    seed: Seed,
    **given: float | None,
) -> list[Positions]:
    """Divides the examples with the partitioner of the given name.

    Args:
        kind: One of `PARTITIONERS`.
        labels: Class of each example, (n,); iid and quantity use only their number.
        column: Value of the column for each example, (n,); required by by_column.
        clients: Number of clients; may be None only for by_column.
        seed: Seed of the draws.
        **given: Settings of the partitioner, see `settings`; None counts as not given.

    Raises:
        InputError: The name, a setting or the number of clients is wrong, or a required argument is missing.

    Example:
        >>> [part.tolist() for part in partition("iid", labels=[0, 1, 0], clients=1, seed=0)]
        [[0, 1, 2]]
    """
    known = settings(kind)
    given = {name: value for name, value in given.items() if value is not None}
    if wrong := sorted(set(given) - set(known)):
        raise InputError.of(f"partition.{wrong[0]}", given[wrong[0]], known or "none", f"no setting of {kind}")
    if missing := [name for name, needed in known.items() if needed and name not in given]:
        raise InputError.of(f"partition.{missing[0]}", None, "a number", f"{kind} needs it")
    if kind == "by_column" and column is None:
        raise InputError.of("data.column", None, "the column that tells the clients apart", "by_column needs it")
    examples = {"by_column": column, "iid": np.size(labels), "quantity": np.size(labels)}.get(kind, labels)
    return PARTITIONERS[kind](examples, clients=clients, seed=seed, **given)


def split(positions: ArrayLike, labels: ArrayLike, fraction: float, seed: Seed) -> tuple[Positions, Positions]:
    """Holds out a stratified share of a client's examples.

    Args:
        positions: Positions of the client's examples.
        labels: Class of every example of the data set, (n,), indexed by the positions.
        fraction: Share to hold out, in [0, 1).
        seed: Seed of the draws, such as (seed, client).

    Returns:
        (train, held_out), both sorted. train is empty only if positions is. held_out has at least one example if there
        are at least two examples and fraction > 0.

    Raises:
        InputError: fraction is not in [0, 1).

    Example:
        >>> train, held_out = split([2, 3, 4, 5], labels=[0, 0, 0, 0, 1, 1], fraction=0.5, seed=0)
        >>> [[0, 0, 0, 0, 1, 1][i] for i in held_out]
        [0, 1]
    """
    check_fraction(fraction)
    positions = np.asarray(positions, dtype=np.int64)
    order = positions[draws.stratified_order(np.asarray(labels)[positions], seed)]
    size = held_out_size(len(order), fraction)
    return np.sort(order[size:]), np.sort(order[:size])


def held_out_size(size: int, fraction: float) -> int:
    """Returns the number of held-out examples out of ``size`` examples."""
    return min(max(round(fraction * size), 1), size - 1) if fraction and size else 0


def check_fraction(fraction: float) -> None:
    """Raises InputError unless the fraction is in [0, 1)."""
    if not 0 <= fraction < 1:
        raise InputError.of("partition.held_out", fraction, "a number in [0, 1)")


def _sorted(parts: Iterable[Positions]) -> list[Positions]:
    return [np.sort(part).astype(np.int64) for part in parts]
