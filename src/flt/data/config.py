"""The settings of a data set."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Any


@dataclass
class DataConfig:
    """What `data=` chooses; a file of conf/data fills it.

    Attributes:
        name: digits, or any other name for what path says.
        path: A hub id such as org/name, or a file: .parquet, .csv, .tsv, .jsonl, .json or .npz.
        subset: The hub data set's configuration, such as sst2.
        local: File name of a local mirror: where the folder in the environment variable FLT_DATA has it, it is used
            instead of path.
        text: Column of the text; None takes the first usual name present.
        text_pair: Column of the second text of a pair.
        response: Column of the text that a causal model learns to write; None: it classifies.
        prompts: What stands before a response: templates with columns in braces, of which a row takes the first whose
            columns all have text. Empty: one of text, and of text_pair where a row has it.
        image: Column of the image.
        label: Column of the class; None takes the first usual name present. With a response there need be none.
        label_name: Column with the class names, where the classes are integers.
        column: Column that tells clients apart, checked to be there.
        where: Column -> the values that a row may have there, such as some languages; other rows are left out.
        classes: Keep only these label values, which become 0.. in this order; None keeps all in sorted order.
        merge: New class -> the classes that it is made of, as names, label values or patterns; classes in none are left
            out; empty leaves the classes as they are.
        tasks: Task -> its classes, as names, label values or patterns such as `comp.*`; empty is one task.
        label_texts: Class name -> the text that the label_names head embeds for it; others take their name.
        validation: Share of train held out for central validation where the source has none, in [0, 1).
        test: Share of train held out for the central test where the source has none, in [0, 1).
        test_split: Which of the source's splits is the test: test; or validation, where the labels of the test are
            hidden: the rounds are then evaluated on a share of train, and numbers chosen there aren't tested there.
        train_examples: Most training examples, a fixed stratified sample; None: all.
        sets: Name -> the settings of one of several data sets, each a task; what one doesn't say it takes from here.
        use: Which of the sets; None: all.
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
    """How examples are dealt to clients; conf/train.yaml says what each key means."""

    kind: str
    alpha: float
    min_examples: int
    min_share: float
    shards_per_client: int
    held_out: float
