"""``flt.list``: the groups of conf/, the choices of a group, and the runs in a folder. Nothing here imports torch."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from flt.core.errors import InputError
from flt.core.files import expand_user
from flt.run.conf_groups import choices, config_folder, groups, summary
from flt.run.conf_heads import paper, settings
from flt.run.show import page_of
from flt.run.stored import CONFIG, METRICS, read_run, runs_below

RUNS = "runs"
"""Word that stands for the runs in a folder, instead of a group."""
MEANINGS = {
    "adapter": "what is trained beside the frozen weights",
    "algo": "recipes: each sets the parts of one paper's method",
    "buffers": "what becomes of buffers such as a batch norm's statistics",
    "compression": "how messages are made smaller",
    "data": "data sets, and files, folders and hub ids of your own",
    "engine": "how jobs are trained: one by one, at once, on several devices",
    "experiment": "settings of the data's division that go with any recipe",
    "fleet": "simulated devices of the clients: speed, memory, availability",
    "grouping": "how jobs are divided into groups that share a model",
    "importance": "how the importance of a rank-1 component is measured",
    "model": "backbones, and folders and hub ids of your own",
    "plan": "what is trained in which round",
    "rule": "how the server combines the updates of a group",
    "schedule": "number of active components over the rounds",
    "selection": "which components each client trains",
    "server_optimizer": "how the server applies the combined change",
    "transfer": "how a group's change is mixed with those of related groups",
}
"""Group -> what its choices decide."""


@dataclasses.dataclass(frozen=True)
class Group:
    """A group of the configuration, to be given as ``<group>=<choice>``.

    Attributes:
        name: Name of the group.
        meaning: What its choices decide.
        choices: Names of its choices.
    """

    name: str
    meaning: str
    choices: list[str]


@dataclasses.dataclass(frozen=True)
class Choice:
    """A choice of a group.

    Attributes:
        name: Name of the choice.
        summary: First sentence about it.
        paper: arXiv number of the paper that a recipe follows. Empty if it follows none, or isn't a recipe.
        parts: Group -> choice, for the parts that a recipe or an experiment sets.
        settings: Dotted key -> value of the other settings that it sets, as they are written on a command line.
    """

    name: str
    summary: str
    paper: str = ""
    parts: dict[str, str] = dataclasses.field(default_factory=dict)
    settings: dict[str, str] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class RunRow:
    """A run in a folder.

    Attributes:
        folder: Folder of the run.
        recipe: Name of the recipe. Empty if the run's files are damaged.
        data: The data set.
        rounds_done: Number of finished rounds.
        rounds: Number of rounds of the whole run.
        state: ``finished``, ``running``, ``stopped``, or what is wrong with the run's files.
        metric: Name of the metric that best measures the model. Empty if no round has finished.
        value: Value of the metric, on the test examples if there are any.
        on_test: Whether the value was measured on test examples, and not on the validation examples.
        written: Unix time of the last change, in seconds.
    """

    folder: Path
    recipe: str = ""
    data: str = ""
    rounds_done: int = 0
    rounds: int | None = None
    state: str = ""
    metric: str = ""
    value: float | None = None
    on_test: bool = False
    written: float = 0.0


def listing(
    group: str | None = None, *, root: str | Path = "lightning_logs"
) -> list[Group] | list[Choice] | list[RunRow]:
    """Returns the groups of the configuration, the choices of one group, or the runs in a folder.

    Args:
        group: A group such as ``algo``, ``data`` or ``rule``; or ``runs``. None: the groups themselves.
        root: Folder of the runs.

    Raises:
        InputError: There is no such group or folder.

    Example:
        >>> [choice.name for choice in listing("plan")]
        ['adapter', 'alternating', 'full', 'stages']
    """
    if group is None:
        return [Group(name, MEANINGS.get(name, ""), choices(name)) for name in groups()]
    if group == RUNS:
        folder = expand_user(root)
        if not folder.is_dir():
            raise InputError.of("root", root, "the folder of all runs", "there is no such folder")
        return [_row(run) for run in runs_below(folder)]
    if group not in groups():
        raise InputError.of("list", group, [*groups(), RUNS])
    return [_choice(group, name) for name in choices(group)]


def _choice(group: str, name: str) -> Choice:
    if group not in ("algo", "experiment"):
        return Choice(name, summary(group, name))
    given = dict(settings(config_folder() / group / f"{name}.yaml"))
    parts = {key: value for key, value in given.items() if key in groups()}
    others = {key: value for key, value in given.items() if key not in parts and key != "name"}
    return Choice(name, summary(group, name), paper(name) if group == "algo" else "", parts, others)


def _row(folder: Path) -> RunRow:
    files = (path for name in (CONFIG, METRICS) if (path := folder / name).is_file())
    written = max(path.stat().st_mtime for path in files)
    try:
        page = page_of(read_run(folder))
    except InputError as error:  # one damaged run doesn't hide the others
        return RunRow(folder, state=str(error), written=written)
    name, value = page.score or ("", None)
    about = (page.recipe, page.data.partition(", ")[0], page.rounds_done, page.rounds, page.state)
    return RunRow(folder, *about, name.removeprefix("val_"), value, bool(page.test), written)
