"""Settings of data sets and of their division among the clients."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Any


@dataclass
class DataConfig:
    """Settings of a data set. `data=name` on the command line reads them from conf/data/name.yaml.

    Attributes:
        name: Name of the data set. If it is ``digits`` and path is None, scikit-learn's digits are used.
        path: Hub id such as org/name, path of a file (.parquet, .csv, .tsv, .txt, .jsonl, .json, .arrow, .feather or
            .npz; text files also with .gz, .bz2 or .zst), or path of a folder of such files or of images
            (class/image, split/class/image, or images beside a metadata.csv).
        test_path: File or folder with the test split, of the kinds that path takes. It must have the columns and the
            classes of train. Train then loses no share to the test split, and a test split of the source isn't used.
            If the file or folder has several splits, only its test split is used. If None, there is no such file.
        subset: Name of a configuration of the hub data set, such as sst2 of nyu-mll/glue. If None, the hub's
            default is used.
        local: Name of a file that contains a copy of the data. If the folder $FLT_DATA contains this file, the file is
            read instead of path. FLT_DATA is an environment variable.
        encoding: Encoding of a text file, such as cp1252. If None, it is found. If it is in doubt, the file is refused.
        delimiter: Character between the columns of a .csv, .tsv or .txt file, also as ``comma``, ``semicolon``, ``tab``
            or ``bar``. If None, it is found.
        quote: Quotes around the texts of such a file that contain delimiters: ``double``, ``single`` or ``none``. If
            None, they are double, and a file is refused if it is in doubt where a quoted text ends.
        text: Column of the text. If None, the first column with a usual name is used.
        text_pair: Column of the second text if inputs are pairs of texts. If text and text_pair are both None and the
            data have a pair of columns with usual names, this pair is used.
        response: Column of the text that a causal model learns to write. If None, the model is a classifier.
        prompts: Templates of the prompt, which is the text before the response. Names of columns are in braces. Each
            row uses the first template whose columns all contain text in that row. If the list is
            empty, default templates with the columns text and text_pair are used.
        image: Column of the image: encoded bytes, {bytes, path}, or arrays. If image, text and text_pair are all None
            and the data have an image column with a usual name, this column is used.
        label: Column of the label. If None, the first column with a usual name is used. Not needed with a response.
        label_name: Column with the class names if labels are integers. If None, a column with a usual name is used if
            there is one.
        column: Column with a property of the examples, such as their language. ``partition.kind=by_column`` divides the
            examples by the values of this column. ``eval.by_column`` evaluates the examples of each value separately.
            None if there is no such column.
        where: Column -> allowed values, such as some languages. Rows with other values are left out.
        classes: Label values to keep. They are renumbered from 0 in this order. If None, all label values are kept, in
            sorted order.
        merge: New class -> classes that the new class replaces, given by names, numbers or patterns. Examples of other
            classes are left out. If empty, the classes stay unchanged.
        tasks: Task -> its classes, given by names, numbers or patterns such as `comp.*`. If empty, there is one task.
        label_texts: Class name -> text that stands for the class in the head ``model.head=label_names``. A class that
            isn't listed is represented by its name.
        validation: Share of the train split, in [0, 1), that becomes the validation split if the source has none.
        test: Share of the train split, in [0, 1), that becomes the test split if the source has none.
        test_split: Split of the source that becomes the test split, ``test`` or ``validation``. ``validation`` is for
            sources whose test labels are hidden. A share of train then becomes the validation split, so that settings
            are never chosen on test examples.
        train_examples: Largest number of training examples. A larger train split is reduced to a stratified sample.
            If None, there is no limit.
        sets: Name -> settings of a data set, if the data consist of several data sets. A setting that is missing for
            a data set is taken from this configuration. With ``jobs=per_task``, each data set is a task. If empty,
            there is only one data set.
        use: Names of the data sets in ``sets`` that are used. If None, all are used.
        share: Task -> share, in (0, 1], of its training examples that its jobs keep. Each job keeps this share of its
            own training examples, at least one, and all of its held-out examples. The examples of a smaller share are
            among those of a larger one. A task that isn't listed keeps all.
    """

    name: str = "digits"
    path: str | None = None
    test_path: str | None = None
    subset: str | None = None
    local: str | None = None
    encoding: str | None = None
    delimiter: str | None = None
    quote: str | None = None
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
    share: dict[str, float] = field(default_factory=dict)


@dataclasses.dataclass
class PartitionConfig:
    """Settings of the division of examples among the clients. The comments in conf/train.yaml explain each key."""

    kind: str
    alpha: float
    min_examples: int
    min_share: float
    shards_per_client: int
    held_out: float
