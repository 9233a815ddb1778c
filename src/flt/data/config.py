"""Settings of data sets and of their division among the clients."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Any


@dataclass
class DataConfig:
    """Settings of a data set. `data=name` on the command line chooses the file conf/data/name.yaml, which sets them.

    Attributes:
        name: Name of the data set. With ``digits`` and no path, the data are the handwritten digits in scikit-learn.
        path: Hub id such as org/name, or a file: .parquet, .csv, .tsv, .jsonl, .json or .npz.
        subset: Name of a subset of the hub data set, such as sst2; None: the hub's default.
        local: Name of a file that contains a copy of the data. If the folder in the environment variable FLT_DATA
            contains this file, it is read instead of path.
        text: Column of the text; None: the first column with a usual name.
        text_pair: Column of the second text if inputs are pairs of texts; None: a pair of usual names, or no pairs.
        response: Column of the text that a causal model learns to write; None: the model is a classifier.
        prompts: Templates of the prompt, which is the text before the response. Names of columns are in braces. A row
            gets the first template whose columns all contain text. Empty: default templates with the columns text and
            text_pair.
        image: Column of the image; None: a column with a usual name, if there is one and no text is given.
        label: Column of the label; None: the first column with a usual name. Not needed with a response.
        label_name: Column with the class names if labels are integers; None: a usual name, if there is such a column.
        column: Column such as the language. ``partition.kind=by_column`` divides the examples by its values, and
            ``eval.by_column`` evaluates each value separately. None: no such column.
        where: Column -> allowed values, such as some languages. Rows with other values are left out.
        classes: Label values to keep, which are renumbered to 0.. in this order; None: all, in sorted order.
        merge: New class -> classes that it replaces, given by names, numbers or patterns. Examples of other classes are
            left out. Empty: the classes stay unchanged.
        tasks: Task -> its classes, given by names, numbers or patterns such as `comp.*`. Empty: there is one task.
        label_texts: Class name -> text that stands for the class in the head ``model.head=label_names``. For other
            classes, the text is the class name.
        validation: If the source has no validation split, this share of train becomes the validation split, in [0, 1).
        test: If the source has no test split, this share of train becomes the test split, in [0, 1).
        test_split: Split of the source that becomes the test split: ``test``, or ``validation`` if the labels of the
            source's test split are hidden. With ``validation``, a share of train becomes the validation split, so that
            settings are never chosen on test examples.
        train_examples: Largest number of training examples. A larger train split is reduced to a stratified sample.
            None: no limit.
        sets: Name -> settings of a data set, if the data consist of several data sets. A setting that is missing there
            is taken from this configuration. With ``jobs=per_task``, each data set is a task. Empty: one data set.
        use: Names of the data sets in ``sets`` to use; None: all.
    """

    name: str = "digits"
    path: str | None = None
    subset: str | None = None
    local: str | None = None
    text: str | None = None
    text_pair: str | None = None
    response: str | None = None
    prompts: list[str] = field(default_factory=list)
    image: str | None = None
    label: str | None = None
    label_name: str | None = None
    column: str | None = None
    where: dict[str, list[str]] = field(default_factory=dict)
    classes: list[int] | None = None
    merge: dict[str, list[str]] = field(default_factory=dict)
    tasks: dict[str, list[str]] = field(default_factory=dict)
    label_texts: dict[str, str] = field(default_factory=dict)
    validation: float = 0.1
    test: float = 0.0
    test_split: str = "test"
    train_examples: int | None = None
    sets: dict[str, dict[str, Any]] = field(default_factory=dict)
    use: list[str] | None = None


@dataclasses.dataclass
class PartitionConfig:
    """Settings of the division of examples among the clients. The comments in conf/train.yaml explain each key."""

    kind: str
    alpha: float
    min_examples: int
    min_share: float
    shards_per_client: int
    held_out: float
