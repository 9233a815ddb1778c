"""Settings of data sets and of their division among the clients."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Any


@dataclass
class DataConfig:
    """Settings of a data set. `data=` chooses a file of conf/data that sets them.

    Attributes:
        name: digits for the embedded data set, else any name for the data at path.
        path: Hub id such as org/name, or a file: .parquet, .csv, .tsv, .jsonl, .json or .npz.
        subset: Configuration of the hub data set, such as sst2.
        local: File name of a local mirror. If the folder in the environment variable FLT_DATA has this file, it is used
            instead of path.
        text: Column of the text; None: the first column with a usual name.
        text_pair: Column of the second text of a pair.
        response: Column of the text that a causal model learns to write; None: the model classifies.
        prompts: Templates of the text before the response, with columns in braces. A row takes the first template whose
            columns all have text. Empty: a template of text, and of text_pair if the row has one.
        image: Column of the image.
        label: Column of the class; None: the first column with a usual name. Not needed with a response.
        label_name: Column with the class names if the classes are integers.
        column: Column that tells clients apart; it must exist.
        where: Column -> allowed values, such as some languages. Rows with other values are left out.
        classes: Label values to keep, which become 0.. in this order; None: all, in sorted order.
        merge: New class -> the classes that it replaces, as names, label values or patterns. Classes in no new class
            are left out. Empty: the classes stay unchanged.
        tasks: Task -> its classes, as names, label values or patterns such as `comp.*`. Empty: one task.
        label_texts: Class name -> text that the label_names head embeds for the class; by default the name.
        validation: Share of train held out for central validation if the source has no validation split, in [0, 1).
        test: Share of train held out for the central test if the source has no test split, in [0, 1).
        test_split: Split of the source that is used for the test: test, or validation if the labels of test are hidden.
            With validation, the rounds are evaluated on a share of train, so that settings are never chosen on the
            examples of the test.
        train_examples: Largest number of training examples, a fixed stratified sample; None: all.
        sets: Name -> settings of one of several data sets, each of which is a task. Missing settings are taken from
            here.
        use: Names of the sets to use; None: all.
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
    """Settings of the division of examples among the clients; conf/train.yaml explains each key."""

    kind: str
    alpha: float
    min_examples: int
    min_share: float
    shards_per_client: int
    held_out: float
