"""The inputs of a federation: module, clients and evaluation examples."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import lightning.pytorch as pl
from torch import Tensor
from torch.utils.data import Dataset

from flt.data.clients import ClientSpec, JobData, class_names_of
from flt.data.joint import JointExamples
from flt.export.inputs import ModelInputs
from flt.models.causal import CausalModule


@dataclasses.dataclass
class Federation:
    """Module, clients, and examples on which the global model is evaluated.

    Attributes:
        module: LightningModule. The adapter is attached to it later.
        clients: Clients with their data.
        validation: Task -> examples for the evaluations during the run.
        test: Task -> examples for the single evaluation at the end.
        client_tests: Job -> test examples of its own classes, for the single evaluation at the end. Empty: there is no
            such evaluation.
        collate: Function that builds a batch from a list of examples. None: torch's default.
        source: Name or path from which ``from_pretrained`` loads the base. Empty: no such name is known.
        subsets: Subset -> its task, if the examples of a task are divided into subsets that are evaluated separately
            (``eval.by_column``). The keys of ``validation`` and ``test`` are then names of subsets instead of tasks.
            Empty: each task is evaluated as a whole.
        heads: Name of a head -> name of a tensor -> its initial value. Empty: all jobs have the same head.
        preprocessor: Tokenizer or image processor that prepares the model's inputs, and is exported with the model.
            None: the model has none, or is a user's own. The tokenizer of a causal model has a chat template that
            writes the prompts of the run, and none if the run's data sets have different prompts.
        inputs: What the exported models know of their inputs. None: the module is a user's own.
        kind: Kind of the inputs: text, pair, image or causal. Empty for a user's own data.
        prompts: Templates of the prompts, as in ``data.prompts``; empty except for a causal model.
        message_keys: Column of the prompts -> its key in a message of the chat template, such as ``content``. Empty if
            there is no chat template.
        license: Licence of the base, as its files name it. Empty if they don't.
    """

    module: pl.LightningModule
    clients: Sequence[ClientSpec]
    validation: Mapping[str, Dataset]
    test: Mapping[str, Dataset]
    collate: Callable[[list[Any]], Any] | None = None
    source: str = ""
    subsets: Mapping[str, str] = dataclasses.field(default_factory=dict)
    heads: Mapping[str, Mapping[str, Tensor]] = dataclasses.field(default_factory=dict)
    preprocessor: Any = None
    inputs: ModelInputs | None = None
    kind: str = ""
    prompts: Sequence[str] = ()
    message_keys: Mapping[str, str] = dataclasses.field(default_factory=dict)
    license: str = ""
    client_tests: Mapping[tuple[int, int], Dataset] = dataclasses.field(default_factory=dict)

    def tasks(self, round: int = 1) -> dict[tuple[int, int], str]:
        """Returns job -> its task in a round, for evaluation."""
        return {
            (client.id, index): job.at(round).task for client in self.clients for index, job in enumerate(client.data)
        }

    @property
    def job_data(self) -> Iterator[JobData]:
        """The data of all jobs, including those that a job has only from a later round on."""
        for client in self.clients:
            for job in client.data:
                yield job
                if job.change is not None:
                    yield job.change[1]

    def tasks_of_jobs(self) -> dict[tuple[int, int], tuple[str, ...]]:
        """Returns job -> its tasks, for evaluation. Most jobs have one task."""
        jobs = (((client.id, index), job) for client in self.clients for index, job in enumerate(client.data))
        return {job: tuple(task.task for task in data.each_task) for job, data in jobs}

    def joint_validation(self) -> dict[tuple[int, int], Dataset]:
        """Returns job -> the validation examples of all its tasks, for the jobs with several tasks."""
        found: dict[JointExamples, Dataset] = {}  # one data set for all jobs with the same tasks
        jobs = {}
        for client in self.clients:
            for index, job in enumerate(client.data):
                data: Any = job.dataset
                if job.parts and set(data.tasks) <= set(self.validation):
                    sets: Any = [self.validation[task] for task in data.tasks]
                    jobs[client.id, index] = found.setdefault(data, data.with_parts(sets))
        return jobs

    def class_names(self) -> dict[str, tuple[str, ...]]:
        """Returns task -> names of its classes. Tasks whose classes have no names are left out.

        A causal model predicts tokens. The classes of its data are no outputs, and their names are left out, too.
        """
        if isinstance(self.module, CausalModule):
            return {}
        return class_names_of(self.job_data)

    def task_heads(self) -> dict[str, str]:
        """Returns task -> the name of its head. The names are empty if all jobs have the same head."""
        return {task.task: task.head for job in self.job_data for task in job.each_task}
