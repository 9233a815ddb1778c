"""Examples of several tasks in one data set, for a job that trains on all tasks of its client."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from flt.data.examples import OUTPUTS, Examples
from flt.data.random_splits import Positions


class JointExamples(torch.utils.data.Dataset[dict[str, Tensor]]):
    """The examples of several tasks, one task after another.

    If the tasks have different heads, an item also contains ``outputs`` (2,): the first output of the joint head that
    belongs to the example's task, and the end, which is one after the last of them. The item's label is then the
    number of its output in the joint head. If all tasks have the same head, items are those of the tasks.

    Args:
        parts: Examples of each task. Their labels start at 0.
        tasks: Name of the task of each part.
        outputs: For each part, the outputs of the joint head that belong to the task's head.

    Example:
        >>> from flt.data.stores import ImageStore
        >>> store = ImageStore(torch.zeros(2, 1, 1, 1), size=None, channels=None)
        >>> parts = [Examples(store, [0, 1]), Examples(store, [1, 0])]
        >>> both = JointExamples(parts, ["a", "b"], [range(2), range(2, 4)])
        >>> [(int(item["labels"]), item["outputs"].tolist()) for item in (both[1], both[2])]
        [(1, [0, 2]), (3, [2, 4])]
    """

    def __init__(self, parts: Sequence[Examples], tasks: Sequence[str], outputs: Sequence[range]) -> None:
        self.parts, self.tasks, self.outputs = tuple(parts), tuple(tasks), tuple(outputs)
        sizes = np.array([len(part) for part in self.parts], dtype=np.int64)
        self.ends: NDArray[np.int64] = np.cumsum(sizes)
        self.starts: NDArray[np.int64] = self.ends - sizes

    def __len__(self) -> int:
        return int(self.ends[-1])

    def __getitem__(self, i: int) -> dict[str, Tensor]:
        """Returns the tensors of one example, see the class."""
        at = int(np.searchsorted(self.ends, i, side="right"))
        item, own = self.parts[at][i - int(self.starts[at])], self.outputs[at]
        if not self.is_tagged:
            return item
        return {**item, "labels": item["labels"] + own.start, OUTPUTS: torch.tensor([own.start, own.stop])}

    @property
    def is_tagged(self) -> bool:
        """True if the tasks have different heads, so that an item says which outputs belong to its task."""
        return len(set(self.outputs)) > 1

    @property
    def lengths(self) -> NDArray[np.int64] | None:
        """Number of tokens of each example, shape (n,). None for images."""
        found = [part.lengths for part in self.parts]
        return None if any(own is None for own in found) else np.concatenate([own for own in found if own is not None])

    def with_parts(self, parts: Sequence[Examples]) -> JointExamples:
        """Returns the data set of other examples of the same tasks, such as validation examples."""
        return JointExamples(parts, self.tasks, self.outputs)

    def by_task(self, positions: ArrayLike) -> dict[str, Positions]:
        """Returns task -> positions among the task's own examples, for some positions in this data set."""
        positions = np.asarray(positions, dtype=np.int64)
        places = np.searchsorted(self.ends, positions, side="right")
        found = {task: positions[places == at] - self.starts[at] for at, task in enumerate(self.tasks)}
        return {task: own for task, own in found.items() if len(own)}
