"""Division of any map-style data set among clients (``flt.partition``)."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from flt.core.errors import InputError
from flt.data import partition as partitioners
from flt.data.arguments import check_dataset, check_integer, check_number, check_text
from flt.data.clients import ClientSpec
from flt.data.job_data import job_data
from flt.data.label_values import class_names, column_values

MOST_CLASSES = 10_000
"""Limit of class numbers. A column that contains an integer >= this limit is treated as ids, not as classes."""


def partition(
    dataset: Any,
    by: str | None = "label",
    alpha: float | None = None,
    clients: int | None = 10,
    *,
    shards: int | None = None,
    held_out: float = 0.2,
    min_examples: int = 2,
    seed: int = 0,
    label: str | None = "label",
    within: str | None = None,
) -> list[ClientSpec]:
    """Divides a data set among clients.

    The main arguments choose the method:

    - ``by="label", alpha=0.5``: the examples of each label are divided by Dirichlet shares
    - ``by="label", shards=2``: sorted by label and cut into shards, two shards per client
    - ``by="label", alpha=0.5, within="language"``: each client has one language, and Dirichlet shares of its labels
    - ``by=None, alpha=0.5``: random examples; the sizes are Dirichlet shares
    - ``by=None``: random examples, equal sizes (iid)
    - ``by="author"``: by the column's values; with ``clients=None``, one client per value

    Args:
        dataset: A ``datasets.Dataset``, or any map-style data set whose items are (input, label), dicts, named tuples
            or instances of a dataclass. The classes keep their names if the labels are a ``datasets.ClassLabel`` or the
            data set has a list ``classes``.
        by: Column whose values decide the division. If None, no column is used. If items are (input, label), the value
            ``"label"`` stands for their second element. A column is read as it is stored, whatever the format or
            transform of a ``datasets.Dataset`` is.
        alpha: Concentration of the Dirichlet distribution. The smaller alpha is, the more unequal are the clients.
            If None, no Dirichlet distribution is used.
        clients: Number of clients. If None, there is one client for each value of the column, and neither alpha nor
            shards can be given.
        shards: Number of shards per client. If None, the data set isn't cut into shards.
        held_out: Share of a client's examples that is held out. The client's model is evaluated on these examples.
        min_examples: Smallest number of examples of a client if labels are divided by Dirichlet shares.
        seed: Seed of the partition.
        label: Column of the labels; None if there is none. For items (input, label), the label is the second element.
            Labels are used to count each client's examples of each class. Nothing is counted if (a) the column doesn't
            exist, (b) its values aren't class numbers from 0 on, or (c) the data set has no columns and ``by`` differs
            from ``label``. In case (c), all examples would have to be read for the count.
        within: Column by whose values the clients are divided first. The division by ``by`` and ``alpha`` then takes
            place within each value. If None, there is only one division.

    Raises:
        InputError: There are too few examples for the clients, the column doesn't exist or holds something other than
            single values of one type, or an argument has a wrong type.

    Example:
        >>> clients = partition([(float(i), i % 2) for i in range(20)], by="label", alpha=1.0, clients=2)
        >>> sum(len(client.data[0].train) + len(client.data[0].held_out) for client in clients)
        20
    """
    given = {"by": by, "alpha": alpha, "clients": clients, "shards": shards, "held_out": held_out, "label": label}
    _check_arguments(dataset, **given, within=within, min_examples=min_examples, seed=seed)
    size = len(dataset)
    values = np.zeros(size, dtype=np.int64) if by is None else column_values(dataset, by)
    codes = np.unique(values, return_inverse=True)[1]
    if clients is None or (by is not None and alpha is None and shards is None):
        parts = partitioners.by_column(values, clients, seed)
    elif shards is not None:
        parts = partitioners.shards(codes, clients, shards, seed)
    elif alpha is not None and by is None:
        parts = partitioners.quantity(size, clients, alpha, seed)
    elif alpha is not None and within is not None:
        column = column_values(dataset, within, "within")
        parts = partitioners.by_column_dirichlet(codes, column, clients, alpha, seed, min_examples)
    elif alpha is not None:
        parts = partitioners.dirichlet(codes, clients, alpha, seed, min_examples)
    else:
        parts = partitioners.iid(size, clients, seed)
    labels = _labels(dataset, by, values, label)
    names = class_names(dataset, label)
    if labels is not None and labels.dtype == bool:
        names = names or ("False", "True")
    classes = None if labels is None else labels.astype(np.int64)
    jobs = [job_data(dataset, codes, classes, share, held_out, seed, names=names) for share in parts]
    return [ClientSpec(i, (job,)) for i, job in enumerate(jobs)]


def _check_arguments(dataset: Any, **given: Any) -> None:
    """Checks the types of the arguments of :func:`partition`, and that they go together."""
    check_dataset("dataset", dataset)
    for key, least in (("clients", 1), ("shards", 1), ("min_examples", 0), ("seed", 0)):
        if given[key] is not None or key in ("min_examples", "seed"):
            check_integer(key, given[key], least)
    for key in ("by", "label", "within"):
        if given[key] is not None:
            check_text(key, given[key], "the name of a column, or None")
    for key in ("alpha", "held_out"):
        if given[key] is not None or key == "held_out":
            check_number(key, given[key])
    if given["within"] is not None and (given["shards"] is not None or None in (given["by"], given["alpha"])):
        raise InputError.of("within", given["within"], "None, or a column beside by= and alpha=, without shards=")
    if given["clients"] is None and (given["by"] is None or given["alpha"] is not None or given["shards"] is not None):
        why = "only a column, without alpha and shards, says how many clients there are"
        raise InputError.of("clients", None, "an integer >= 1", why)


def _labels(dataset: Any, by: str | None, values: NDArray, label: str | None) -> NDArray | None:
    """Returns the class of each example, integers or booleans of shape (n,).

    Returns None if the classes aren't known, or if every example would have to be read only to find the classes.
    """
    if label is None:
        return None
    if by != label:
        if label not in (getattr(dataset, "column_names", None) or ()):
            return None
        try:
            values = column_values(dataset, label)
        except InputError:
            return None
    whole = values.dtype.kind in "biu" and 0 <= values.min() <= values.max() < MOST_CLASSES
    return values if whole else None
