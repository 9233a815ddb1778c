"""Partitioners, which divide the positions 0..n-1 of a data set's examples among clients. They need only NumPy.

Every partitioner returns one array of positions per client (int64, sorted). Every position is in exactly one array. A
seed is one integer or several integers, such as (seed, client). Each partitioner creates a random generator from
the seed and doesn't use NumPy's global generator.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from flt.core.errors import InputError
from flt.data import random_splits as draws
from flt.data.random_splits import Positions, Seed


def iid(examples: int, clients: int, seed: Seed) -> list[Positions]:
    """Shuffles the examples and divides them among the clients. The clients' numbers of examples differ by at most one.

    Raises:
        InputError: The number of clients is below 1 or larger than the number of examples.

    Example:
        >>> [len(part) for part in iid(10, clients=3, seed=0)]
        [4, 3, 3]
    """
    draws.check_clients(clients, examples)
    return _sorted(np.array_split(draws.generator("iid", seed).permutation(examples), clients))


def dirichlet(labels: ArrayLike, clients: int, alpha: float, seed: Seed, min_examples: int = 1) -> list[Positions]:
    """Divides the examples of each class among the clients. The clients' shares are drawn from Dirichlet(alpha).

    With a small alpha, most of a client's examples belong to a few classes. With a large alpha, the classes have nearly
    the same proportions on all clients.

    Args:
        labels: Class of each example, shape (n,).
        clients: Number of clients.
        alpha: Concentration, in (0, 1e6].
        seed: Seed of the draws.
        min_examples: Smallest number of examples of a client. The whole partition is drawn again until every client has
            at least this number.

    Raises:
        InputError: In each of 100 draws a client has fewer than min_examples examples, or an argument is out of range.

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
    """Divides the shuffled examples among the clients, regardless of labels. Shares are drawn from Dirichlet(alpha).

    FL-TAC partitions every task in this way, with alpha 0.5 and min_share 0.01.

    Args:
        examples: Number of examples.
        clients: Number of clients.
        alpha: Concentration, in (0, 1e6].
        seed: Seed of the draws.
        min_share: Smallest share. A client with a smaller share gets an empty array, and the other shares are scaled up
            to a sum of 1. If min_share is 0, the shares are drawn again until every client has an example.

    Raises:
        InputError: None of 100 draws is valid, or an argument is out of range.

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
    """Sorts the examples by label, cuts them into equal shards, and gives each client the same number of random shards.

    This is the method of McMahan et al. 2017.

    Raises:
        InputError: There are more shards than examples, or an argument is below 1.

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
    shuffled = rng.permutation(len(labels))  # so that the examples of one class are in random order
    pieces = np.array_split(shuffled[np.argsort(labels[shuffled], kind="stable")], clients * shards_per_client)
    hands = rng.permutation(len(pieces)).reshape(clients, shards_per_client)
    return _sorted(np.concatenate([pieces[i] for i in hand]) for hand in hands)


def by_column(values: ArrayLike, clients: int | None, seed: Seed) -> list[Positions]:
    """Divides the examples by the values of a column, such as language, author or task.

    If there are at least as many clients as values, every value gets the same number of clients. Each of the most
    frequent values gets one more client if clients are left over. The examples of a value are divided at random among
    the clients of the value. If there are fewer clients than values, the shuffled values are given to the clients in
    turn.

    Args:
        values: Value of the column for each example, shape (n,). No value may be missing.
        clients: Number of clients. If None, there is one client per value, in sorted order of the values.
        seed: Seed of the draws.

    Raises:
        InputError: A value is missing, or a value would have more clients than examples.

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


def by_task(values: ArrayLike, clients: int | None, seed: Seed) -> list[Positions]:
    """Divides the examples by their tasks, so that the clients' data differ in kind. It is `by_column` with the tasks.

    With at least as many clients as tasks, each client has the examples of one task.

    Args:
        values: Name of the task of each example, shape (n,).
        clients: Number of clients. If None, there is one client per task.
        seed: Seed of the draws.

    Raises:
        InputError: A task would have more clients than examples.
    """
    return by_column(values, clients, seed)


def by_column_dirichlet(
    labels: ArrayLike, values: ArrayLike, clients: int, alpha: float, seed: Seed, min_examples: int = 1
) -> list[Positions]:
    """Divides the examples by two keys: by the values of a column, and within each value by Dirichlet shares of labels.

    Every client has examples of one value, such as one language. The values get equally many clients, in sorted order;
    each of the most frequent values gets one more client if clients are left over. The examples of a value are divided
    among its clients as in :func:`dirichlet`. C2A's authors divide their news texts in this way: 20 clients for each of
    five languages, and Dirichlet(0.5) over the classes within a language.

    Args:
        labels: Class of each example, shape (n,).
        values: Value of the column for each example, shape (n,). No value may be missing.
        clients: Number of clients, at least one for each value.
        alpha: Concentration, in (0, 1e6].
        seed: Seed of the draws.
        min_examples: Smallest number of examples of a client.

    Raises:
        InputError: A value is missing, there are fewer clients than values or too few examples for the clients, or an
            argument is out of range.

    Example:
        >>> parts = by_column_dirichlet([0, 1, 0, 1], ["de", "de", "fr", "fr"], clients=2, alpha=0.5, seed=0)
        >>> [part.tolist() for part in parts]
        [[0, 1], [2, 3]]
    """
    labels, of_value = np.asarray(labels), draws.groups(np.asarray(values))
    draws.check_clients(clients, len(labels))
    if clients < len(of_value):
        raise InputError.of("clients", clients, f"at least {len(of_value)}, one client for each value of data.column")
    per_value = draws.clients_per_value(np.array([len(group) for group in of_value]), clients)
    seeds = [seed] if isinstance(seed, int | np.integer) else list(seed)
    return [
        group[part]
        for number, (group, n) in enumerate(zip(of_value, per_value.tolist(), strict=True))
        for part in dirichlet(labels[group], n, alpha, [*seeds, number], min_examples)
    ]


PARTITIONERS: dict[str, Callable[..., list[Positions]]] = {
    function.__name__: function
    for function in (iid, dirichlet, quantity, shards, by_column, by_column_dirichlet, by_task)
}
BY_COLUMN = ("by_column", "by_column_dirichlet")
"""Partitioners that use the values of a column."""


def settings(kind: str) -> dict[str, bool]:
    """Returns the names of a partitioner's settings. Each name is mapped to True if the setting is required.

    Raises:
        InputError: There is no partitioner of this name.

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
    **given: Any,
) -> list[Positions]:
    """Divides the examples with the partitioner of the given name.

    Args:
        kind: Name of the partitioner, a key of `PARTITIONERS`.
        labels: Class of each example, shape (n,). The partitioners iid and quantity use only n.
        column: Value of a column for each example, shape (n,), or its task with by_task. Only by_task and the
            partitioners in BY_COLUMN use these values.
        clients: Number of clients. None is allowed only for by_column.
        seed: Seed of the draws.
        **given: Settings of the partitioner, see `settings`. A setting that is None counts as not given.

    Raises:
        InputError: An argument is wrong, or a required argument is missing.

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
    if kind in BY_COLUMN and column is None:
        raise InputError.of("data.column", None, "the column that tells the clients apart", f"{kind} needs it")
    if kind == "by_task" and column is None:
        raise InputError.of("data.tasks", "{}", "task: [classes], or several data.sets", "by_task needs them")
    if kind == "by_column_dirichlet":
        given["values"] = column
    sizes = np.size(labels)
    examples = {"by_column": column, "by_task": column, "iid": sizes, "quantity": sizes}.get(kind, labels)
    return PARTITIONERS[kind](examples, clients=clients, seed=seed, **given)


def _sorted(parts: Iterable[Positions]) -> list[Positions]:
    return [np.sort(part).astype(np.int64) for part in parts]
