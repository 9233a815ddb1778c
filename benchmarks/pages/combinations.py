"""Writes docs/combinations.md: the recipes, adapters, types of task and parts that can be combined. Trains nothing.

python -m benchmarks.pages.combinations
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from benchmarks.pages.pairs import ROUNDS, Bench, Part, bench, defaults, pairs, parts
from benchmarks.pages.toy_federation import MODULES, TASKS, toy

from flt.algorithm.registry import PARTS
from flt.models.adapters.registry import ADAPTERS
from flt.run.assembly import refusal
from flt.run.compose import load_config
from flt.run.conf_groups import choices
from flt.run.schema import TrainConfig

PAGE = Path(__file__).parents[2] / "docs" / "combinations.md"
RUNS = "runs"
Case = tuple[str, str, str]
"""An adapter, a type of task, and the value of ``jobs``: ``per_client`` or ``per_task``."""
CASES: list[Case] = [(adapter, kind, jobs) for adapter in ADAPTERS for kind in MODULES for jobs in TASKS]
HEAD = """# What can be combined

The tables on this page show which recipes, adapters, types of task and parts can be combined, and why the other
combinations are refused. `python -m benchmarks.pages.combinations` writes this page: it builds each combination and
records the error message if there is one. The tests run every combination that is not refused.

**Runs** means: {rounds} rounds with a tiny ViT (image), BERT (text) or GPT-2 (causal language modelling) and a few
examples end without an error and write an export. It does not mean that the combination gives good results. A
**number** means: the combination is refused before anything is trained or written. The list below the table gives the
reason with this number. If a cell has two entries, the first is for one job per client, and the second for one job per
task.

This command combines the ideas of three papers, HAFL's freezing inside FL-TAC's clusters under SA-FedLoRA's schedule:

```
{mix}
```
"""
MIX = (
    "flt train algo=hafl ranks=[2,4] jobs=per_task grouping=kmeans grouping.features=changes grouping.cannot_link=true "
    "grouping.memory=true schedule=annealed schedule.end=2"
)
RECIPES = """## Recipes, adapters and types of task

Each row is a recipe (`algo=`). Each column is an adapter (`adapter=`) and a type of task."""
LORA_FACTORS = """## Parts with parts

This table combines each part with each part of another kind. The recipe is FedIT with LoRA and two tasks, and the parts
have the settings of their YAML files in `conf/`. A cell lists the parts of its column that cannot be combined with the
part of its row, each with the number of the reason. `–` means that the part can be combined with all of them. The
default parts are left out: {defaults}."""
BROUGHT = """Some parts need another part. The table adds this part: {brought}. The reason of
a refusal may therefore concern the added part, and the combination may run with other settings. For example, `rule=svd`
runs with `schedule=annealed schedule.by=svd`."""


@functools.cache
def configured(algo: str, adapter: str) -> TrainConfig:
    """Returns the configuration of a recipe with an adapter, as on the command line, with short fits."""
    short = ["local.steps=1", "batch_size=4", "clients=2"]
    return load_config([f"algo={algo}", f"adapter={adapter}", f"rounds={ROUNDS}", *short])


def recipe_refusals(algo: str, cases: Iterable[Case] = CASES) -> dict[Case, str | None]:
    """Returns, for each case, the error message that refuses the recipe; None if the recipe runs."""
    return {(adapter, kind, jobs): refusal(configured(algo, adapter), toy(kind, jobs)) for adapter, kind, jobs in cases}


def pair_refusals(on: Bench) -> dict[tuple[Part, Part], str]:
    """Returns two parts -> the error message, for all pairs of parts that are refused."""
    found = {pair: on.refusal(*pair) for pair in pairs()}
    return {pair: line for pair, line in found.items() if line is not None}


def reason(line: str) -> str:
    """Returns the reason in an error message, without the names of the parts and without the allowed values.

    Example:
        >>> reason("rule Svd with selection Freeze: frozen components aren't sent; allowed is all")
        "frozen components aren't sent"
    """
    found = re.match(r".*?: (.+); allowed is ", line)
    return found.group(1) if found else line


def numbered(lines: Iterable[str | None]) -> dict[str, int]:
    """Returns reason -> its number. The reasons are numbered in the order of the lines, from 1."""
    reasons = dict.fromkeys(reason(line) for line in lines if line is not None)
    return {why: number for number, why in enumerate(reasons, start=1)}


def footnotes(numbers: Mapping[str, int]) -> str:
    """Returns the reasons as a numbered list in Markdown."""
    return "\n".join(f"{number}. {why}" for why, number in numbers.items())


def cells(adapter: str, found: Mapping[Case, str | None], numbers: Mapping[str, int]) -> list[str]:
    """Returns the cells of a recipe's row for one adapter: one cell for each type of task."""
    lines = {kind: [found[adapter, kind, jobs] for jobs in TASKS] for kind in MODULES}
    said = {kind: [RUNS if line is None else str(numbers[reason(line)]) for line in its] for kind, its in lines.items()}
    return [" / ".join(dict.fromkeys(its)) for its in said.values()]


def recipe_table(found: Mapping[str, Mapping[Case, str | None]]) -> Iterator[str]:
    """Yields the table of recipes, and the list of its reasons."""
    numbers = numbered(line for cases in found.values() for line in cases.values())
    heads = ["", *(f"{adapter}, {kind}" for adapter in ADAPTERS for kind in MODULES)]
    rows = [table_row([f"`{algo}`", *(cell for adapter in ADAPTERS for cell in cells(adapter, cases, numbers))])
            for algo, cases in found.items()]  # fmt: skip
    yield "\n".join([table_row(heads), table_row(["---"] * len(heads)), *rows])
    yield footnotes(numbers)


def pair_table(found: Mapping[tuple[Part, Part], str]) -> Iterator[str]:
    """Yields the table of parts, and the list of its reasons."""
    numbers = numbered(found.values())
    heads = ["", *(f"{group}=" for group in PARTS)]
    rows = [table_row([f"`{part[0]}={part[1]}`", *(_refused_of(part, group, found, numbers) for group in PARTS)])
            for part in parts()]  # fmt: skip
    yield "\n".join([table_row(heads), table_row(["---"] * len(heads)), *rows])
    yield footnotes(numbers)


def _refused_of(part: Part, group: str, found: Mapping[tuple[Part, Part], str], numbers: Mapping[str, int]) -> str:
    """Returns a cell: the parts of a group that a part cannot be combined with. Empty for the part's own group."""
    if part[0] == group:
        return ""
    others = {({*pair} - {part}).pop(): line for pair, line in found.items() if part in pair}
    named = [f"{name}: {numbers[reason(line)]}" for (of, name), line in others.items() if of == group]
    return ", ".join(named) or "–"


def table_row(cells: Sequence[str]) -> str:
    """Returns a line of a Markdown table."""
    return f"| {' | '.join(cells)} |"


def parts_text(on: Bench) -> str:
    """Returns the second half of the page, on parts with parts."""
    usual = ", ".join(f"`{group}={name}`" for group, name in defaults().items())
    company = {part: on.company(part) for part in parts()}
    brought = [f"`{group}={name}` with `{more[0][0]}={more[0][1]}`"
               for (group, name), more in company.items() if more]  # fmt: skip
    said = [BROUGHT.format(brought=", ".join(brought))] if brought else []
    return "\n\n".join([LORA_FACTORS.format(defaults=usual), *said, *pair_table(pair_refusals(on))])


def head() -> str:
    """Returns the beginning of the page."""
    return HEAD.format(rounds={3: "three"}.get(ROUNDS, ROUNDS), mix=MIX).rstrip()


def text() -> str:
    """Returns the whole page."""
    recipes = recipe_table({algo: recipe_refusals(algo) for algo in choices("algo")})
    return "\n\n".join([head(), RECIPES, *recipes, parts_text(bench())]) + "\n"


def main() -> None:
    """Writes the page."""
    PAGE.write_text(text())


if __name__ == "__main__":
    main()
