"""The command line: commands, one line for each mistake, interrupts, sweeps, and the arguments that make passes on."""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from commands import QUICK, in_empty_folder, train
from slowly import slowly

import flt
import flt.server.federator
from flt.cli.main import main
from flt.models import module
from flt.models.module import ClientModule

REPO = Path(__file__).parents[2]
MAKE = ("make", "-n", "--no-print-directory")
WITH_TORCH = ("torch", "lightning", "transformers", "numpy")
HEAVY = (*WITH_TORCH, "hydra")


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder to work in, with some files of data beside it."""
    rows = "".join(f"good film {i},{i % 2},{'a' if i else 'b'}\n" for i in range(40))
    (tmp_path / "small.csv").write_text(f"text,label,author\n{rows}")
    (tmp_path / "empty.csv").touch()
    (tmp_path / "header.csv").write_text("text,label\n")
    (tmp_path / "cwd").mkdir()
    in_empty_folder(tmp_path / "cwd", monkeypatch)
    return tmp_path / "cwd"


def python(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, *arguments], text=True, capture_output=True, check=False)


def runs(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder / "lightning_logs").as_posix() for path in folder.glob("lightning_logs/*/*"))


@pytest.mark.parametrize("arguments", [["-m", "flt", "--version"], ["-m", "flt", "version"]], ids=" ".join)
def test_version_is_that_of_the_package(arguments: list[str]) -> None:
    assert python(*arguments).stdout.strip() == flt.__version__


def test_importing_the_command_line_imports_nothing_heavy() -> None:
    code = f"import flt.cli.main, sys; print([name for name in {HEAVY} if name in sys.modules])"
    assert python("-c", code).stdout.strip() == "[]"


def test_the_first_line_is_printed_before_anything_heavy_is_imported() -> None:
    missing = f"import sys; sys.modules.update(dict.fromkeys({HEAVY}))"
    done = python("-c", f"{missing}; from flt.cli.main import main; main(['train', 'seed=1'])")
    assert done.stdout.strip() == f"flt {flt.__version__}: flt train seed=1"
    assert "ImportError" in done.stderr or "ModuleNotFoundError" in done.stderr


def test_the_first_line_is_the_command_in_words_of_the_shell(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["train", "model=~/my models/it's", "ranks=[2,4]", "data=/a/b.csv", "nope=$HOME"]
    assert main(words) == 2
    line = capsys.readouterr().out.splitlines()[0]
    copied = line.removeprefix(f"flt {flt.__version__}: flt ")
    program = [sys.executable, "-c", "import sys; print(sys.argv[1:])"]
    pasted = subprocess.run(["bash", "-c", f"{shlex.join(program)} {copied}"], text=True, capture_output=True)
    assert pasted.stdout.strip() == repr(words)


MISSPELT = {
    "train algo=hafll": "algo=hafll: allowed is c2a, central, ",
    "seeed=1": "seeed=1: there is no such key; the nearest is seed; allowed is name, root, seed, ",
    "device=cuda": "device=cuda: there is no such key; the nearest is devices; allowed is name, root, ",
    "train rule.padd=x": "rule.padd=x: there is no such key; the nearest is pad; allowed is a key of rule: name",
    "train rule=krum rule.pad=none": "rule.pad=none: there is no such key; allowed is a key of rule: ",
    "train model=./nowhere": "model=./nowhere: there is no such folder",
    "sweep algo=fedit,hafll": "algo=hafll: allowed is c2a, central, ",
    "sweep seed=0,1 local.lrr=1,2": "local.lrr=1: there is no such key; the nearest is lr; allowed is ",
    "predictt last": "command=predictt: there is no such command; the nearest is predict; allowed is a command",
    "nonsense": "command=nonsense: there is no such command; allowed is a command that flt help lists, or",
    "--jsn": "command=--jsn: there is no such command",
    "sweep rule=mean,krum rule.pad=none": "rule.pad=none: there is no such key",
}


def test_misspelt_names_are_refused_before_torch_is_imported() -> None:
    missing = f"import sys; sys.modules.update(dict.fromkeys({WITH_TORCH})); from flt.cli.main import main"
    done = python("-c", f"{missing}; print([main(line.split()) for line in {list(MISSPELT)}])")
    assert done.stdout.splitlines()[-1] == repr([2] * len(MISSPELT)), done.stderr
    for line, start in zip(done.stderr.splitlines(), MISSPELT.values(), strict=True):
        assert line.startswith(f"error: {start}")


def test_a_command_without_a_mistake_gets_as_far_as_torch() -> None:
    missing = f"import sys; sys.modules.update(dict.fromkeys({WITH_TORCH})); from flt.cli.main import main"
    for command in ("train algo=fedit seed=1", "sweep algo=hafl,fedit"):
        done = python("-c", f"{missing}; main({command.split()})")
        assert done.stderr.splitlines()[-1].startswith("ModuleNotFoundError: ")


@pytest.mark.parametrize("command", [["train"], []], ids=["train", "bare"])
def test_trains_and_leaves_one_run(command: list[str], folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = [f"{key}={value}" for key, value in QUICK.items()]
    assert main([*command, "algo=fedit", *arguments]) == 0
    assert runs(folder) == ["fedit/version_0"]
    made = {path.name for path in (folder / "lightning_logs/fedit/version_0").iterdir()}
    assert {"adapter", "checkpoints", "config.yaml", "metrics.csv"} <= made
    shown = capsys.readouterr().out
    assert shown.startswith(f"flt {flt.__version__}: flt {' '.join([*command, 'algo=fedit'])} rounds=1")
    assert "lightning_logs/fedit/version_0/adapter" in shown


WRONG = {
    "unknown key": ("rond=1", "rond=1", "rounds"),
    "unknown nested key": ("local.lrr=1", "local.lrr=1", "weight_decay"),
    "unknown key of a part": ("rule.weigths=uniform", "rule.weigths=uniform", "pad"),
    "unknown recipe": ("algo=haffl", "algo=haffl", "hafl"),
    "unknown data": ("data=nope", "data=nope", "digits"),
    "model folder": ("model=./nope", "model=./nope", "a folder"),
    "unknown engine": ("engine=warp", "engine=warp", "serial"),
    "unknown selection": ("selection=best", "selection=best", "freeze"),
    "unknown rule": ("rule=mode", "rule=mode", "stacking"),
    "a set that isn't there": ("algo=fl_tac data=digits_two data.use=[digit,odd]", "data.use=", "digit, parity"),
    "unknown heads": ("heads=many", "heads=many", "shape, task, shared"),
    "heads that don't travel": ("algo=fl_tac data=digits_two adapter.head=none", "adapter.head=none", "heads=shared"),
    "unknown experiment": ("experiment=nope", "experiment=nope", "rank_tiers"),
    "unknown precision": ("precision=foo", "precision=foo", "bf16-mixed"),
    "text for an integer": ("rounds=many", "rounds=many", "an integer"),
    "text for a float": ("local.lr=fast", "local.lr=fast", "a number"),
    "rank 0": ("adapter.rank=0", "adapter.rank=0", ">= 1"),
    "ranks above the adapter's": ("algo=hafl ranks=[2,16]", "ranks=[2, 16]", "adapter.rank=8"),
    "ranks that not all can train": ("algo=fedit ranks=[2,4]", "selection=all", "truncate or freeze"),
    "rounds 0": ("rounds=0", "rounds=0", ">= 1"),
    "more clients than examples": ("clients=5000", "clients=5000", "at most 627"),
    "missing file": ("data={tmp}/none.csv", "data.path={tmp}/none.csv", "an existing file"),
    "empty file": ("data={tmp}/empty.csv", "data.path={tmp}/empty.csv", "a data set with examples"),
    "column of text": ("data={tmp}/small.csv data.text=body", "data.text=body", "text, label, author"),
    "column of labels": ("data={tmp}/small.csv data.label=stars", "data.label=stars", "text, label, author"),
    "column of clients": ("data={tmp}/small.csv data.column=who", "data.column=who", "text, label, author"),
    "clients without data by quantity": (
        "partition.kind=quantity partition.alpha=0.00001",
        "partition.alpha=1e-05",
        "a larger alpha",
    ),
    "clients without data by tasks": ("algo=fl_tac partition.alpha=0.001 clients=40", "clients=40", "partition.alpha"),
    "clients without data by column": (
        "partition.kind=by_column data.column=label clients=700",
        "clients=700",
        "at most 627",
    ),
    "cohort too large": ("cohort.size=4", "cohort.size=4", "number of clients, 3"),
    "two devices": ("devices=2", "devices=2", "engine=serial"),
    "scaffold with groups": ("algo=scaffold grouping=kmeans grouping.k=2", "KMeansGrouping", "one group"),
    "flora with groups": ("algo=flora grouping=kmeans grouping.k=2", "KMeansGrouping", "one group"),
    "target": ("_target_=os.system", "_target_=os.system", "rounds"),
    "target in a part": ("rule._target_=os.system", "rule._target_=os.system", "weights"),
    "added key": ("+x=1", "+x=1", "a key that is there"),
    "open bracket": ("x=[", "x=[", "key=value"),
    "unicode key": ("ключ=1", "ключ=1", "key=value"),
    "steps and epochs": ("local.steps=1 local.epochs=1", "local.steps=1", "one of local.steps and local.epochs"),
    "lr nan": ("local.lr=nan", "local.lr=nan", "> 0"),
    "run that isn't there": ("resume={tmp}/none", "resume={tmp}/none", "last"),
    "layers that aren't there": ("adapter.target_modules=[no]", "adapter.target_modules=no", "q_proj"),
    "head that isn't there": ("adapter.head=no", "adapter.head=no", "classifier"),
    "tasks that aren't there": ("jobs=per_task data={tmp}/small.csv", "data.tasks={}", "task: [classes]"),
    "dropout 2": ("model.dropout=2", "model.dropout=2.0", "[0, 1)"),
    "nothing kept": ("checkpoint.keep=0", "checkpoint.keep=0", ">= 1"),
    "unknown export": ("export.base=file", "export.base=file", "merged, delta"),
    "a cache of nothing": ("cache.max_gb=0", "cache.max_gb=0.0", "a number > 0"),
    "name of the folder above": ("name=..", "name=..", "a folder's name"),
    "root that is a file": ("root={tmp}/small.csv", "root={tmp}/small.csv", "can be written"),
}
MORE = {
    "unknown model": ("model=nope", "model.path=nope", "hub id"),
    "folder without a model": ("model={tmp}", "model.path={tmp}", "save_pretrained"),
    "unknown adapter": ("adapter.name=mlp", "adapter.name=mlp", "lora"),
    "unknown engine's name": ("engine.name=warp", "engine.name=warp", "serial"),
    "unknown rule's name": ("rule.name=os.system", "rule=os.system", "stacking"),
    "no rule": ("rule=null", "rule=null", "mean"),
    "unknown partition": ("partition.kind=fair", "partition.kind=fair", "dirichlet"),
    "unknown sampling": ("cohort.sampling=all", "cohort.sampling=all", "poisson"),
    "unknown optimiser": ("local.optimizer=lion", "local.optimizer=lion", "adamw"),
    "unknown jobs": ("jobs=per_job", "jobs=per_job", "per_task"),
    "fraction for an integer": ("seed=1.5", "seed=1.5", "an integer"),
    "bool for an integer": ("seed=true", "seed=True", "an integer"),
    "null for an integer": ("rounds=null", "rounds=None", "int"),
    "number for a mapping": ("data.tasks=3", "data.tasks=3", "Dict"),
    "null for a section": ("local=null", "local=None", "Optional"),
    "mapping with an unknown key": ("local={lr:0.1,foo:2}", "local={lr:0.1,foo:2}", "'foo' is not"),
    "alpha nan": ("adapter.alpha=nan", "adapter.alpha=nan", "> 0"),
    "ranks of nobody": ("ranks=[]", "ranks=[]", "or null"),
    "seed below 0": ("seed=-1", "seed=-1", ">= 0"),
    "threads 0": ("threads=0", "threads=0", "or null"),
    "batch size 0": ("batch_size=0", "batch_size=0", ">= 1"),
    "file with a header only": ("data={tmp}/header.csv", "data.path={tmp}/header.csv", "with examples"),
    "text for an image model": ("data={tmp}/small.csv", "model=embedded", "a text model"),
    "hub without a path": ("model=hub", "model.path=None", "hub id"),
    "one class": ("data.classes=[1]", "data.label=label", "two classes"),
    "a class that isn't there": ("data.classes=[1,77]", "data.classes=[1, 77]", "8, 9"),
    "clients without data by shards": (
        "partition.kind=shards partition.shards_per_client=500",
        "partition.shards_per_client=500",
        "1 to 209",
    ),
    "by_column without a column": ("partition.kind=by_column", "data.column=None", "tells the clients apart"),
    "two keys without a column": ("partition.kind=by_column_dirichlet", "data.column=None", "by_column_dirichlet"),
    "two keys with fewer clients than values": (
        "partition.kind=by_column_dirichlet data.column=label clients=3",
        "clients=3",
        "at least 5",
    ),
    "divergence of clients that send nothing": ("algo=local eval.divergence=true", "eval.divergence=true", "false"),
    "unknown histogram": ("algo=c2a adapter.histogram=mine", "adapter.histogram=mine", "wrong"),
    "labels of clients that C2A does not read": (
        "algo=c2a eval.client_labels=[own,wrong] eval.client_test_examples=5",
        "eval.client_labels=[own,wrong]",
        "adapter.histogram=own",
    ),
    "unknown labels of clients": ("eval.client_labels=[mine]", "eval.client_labels=mine", "uniform"),
    "fewer than no tests of clients": ("eval.client_test_examples=-1", "eval.client_test_examples=-1", ">= 0"),
    "alpha of the partition nan": ("partition.alpha=nan", "partition.alpha=nan", "(0, 1e6]"),
    "all held out": ("partition.held_out=1", "partition.held_out=1.0", "[0, 1)"),
    "rate above 1": ("cohort.sampling=poisson cohort.rate=2", "cohort.rate=2.0", "(0, 1]"),
    "target added to a part": ("+rule._target_=os.system", "+rule._target_=os.system", "a key that is there"),
    "deleted key": ("~seed", "~seed", "key=value"),
    "unicode key of a part": ("rule.ключ=1", "rule.ключ=1", "key=value"),
    "no value": ("seed", "seed", "key=value"),
    "option of Hydra": ("--multirun", "--multirun", "key=value"),
    "key of Hydra": ("hydra.run.dir=x", "hydra.run.dir=x", "rounds"),
    "interpolation": ("name=${oops}", "name=${oops}", "key=value"),
    "several recipes": ("algo=hafl,fedit", "algo=hafl,fedit", "flt sweep"),
    "several values": ("seed=0,1", "seed=0,1", "flt sweep"),
    "neither steps nor epochs": ("local.steps=null", "local.steps=None", "one of local.steps and local.epochs"),
    "clip below 0": ("local.clip=-1", "local.clip=-1.0", "or null"),
    "mu nan": ("plan.mu=nan", "plan.mu=nan", ">= 0"),
    "evaluation every 0 rounds": ("eval.every=0", "eval.every=0", ">= 1"),
    "evaluation by no column": ("eval.by_column=true", "eval.by_column=true", "a data.column"),
    "residual of different pairs": (
        "algo=fedex_lora selection=truncate",
        "rule Residual with selection Truncate",
        "all",
    ),
    "residuals of clusters": (
        "algo=fedex_lora grouping=kmeans grouping.k=2",
        "rule Residual with grouping",
        "one group",
    ),
    "scores of mixed pairs": (
        "algo=flexlora importance=gradient",
        "importance GradientSensitivity with rule Svd",
        "none",
    ),
    "factors that aren't there": ("algo=flexlora adapter=houlsby ranks=null", "rule=Svd", "adapter=lora"),
    "turns without factors": ("algo=rolora adapter=houlsby", "plan=Alternating", "adapter=lora"),
    "residual of what was dropped": (
        "algo=fedex_lora compression=quantised",
        "compression Quantised with rule",
        "none",
    ),
    "frozen pairs in a product": ("algo=flexlora selection=freeze", "rule Svd with selection Freeze", "truncate"),
    "mixtures of groups": ("algo=flexlora grouping=kmeans grouping.k=2", "rule Svd with grouping", "one group"),
    "moments of factors that go": (
        "algo=fedadam schedule=annealed schedule.by=svd",
        "schedule.by=svd",
        "score with several groups",
    ),
    "a server's step along nothing": ("algo=local server_optimizer=adam", "server_optimizer=Adam", "none"),
    "a server's step along rounding": (
        "algo=fedadam compression=quantised compression.down=true",
        "compression.down=true",
        "false with server_optimizer",
    ),
    "a server's step where the base changes": (
        "algo=flora server_optimizer=adam",
        "server_optimizer Adam with rule Stacking",
        "none",
    ),
    "nothing to cluster": (
        "algo=fl_tac data=digits_two adapter=none plan.train=[head]",
        "grouping=KMeansGrouping with grouping.tensors=all",
        "everyone, or a plan that sends some",
    ),
    "an adapter to cluster that isn't there": (
        "algo=fl_tac_unlocked adapter=none plan.train=[head]",
        "grouping=KMeansGrouping with grouping.tensors=lora",
        "everyone, or a plan that sends some",
    ),
    "private tensors to cluster": (
        "algo=fl_tac plan.private=[A,B,adapter,head]",
        "grouping=KMeansGrouping",
        "everyone, or a plan that sends some",
    ),
    "transfer without clusters": (
        "algo=fedit transfer=cosine",
        "transfer=CosineTransfer",
        "none with grouping=everyone",
    ),
    "evaluation of tasks by column": (
        "eval.by_column=true algo=fl_tac",
        "eval.by_column=true",
        "there are several tasks",
    ),
    "nothing to evaluate by column": (
        "eval.by_column=true data.column=label data.validation=0",
        "data.validation=0",
        "with eval.by_column",
    ),
    "distributed models by column": (
        "eval.by_column=true data.column=label eval.distributed=true",
        "eval.distributed=true",
        "false with eval.by_column",
    ),
    "name of two folders": ("name=a/b", "name=a/b", "a folder's name"),
}
ALSO_IN_BAD = {
    "unknown recipe", "unknown engine", "model folder", "rank 0", "rounds 0", "more clients than examples",
    "missing file", "empty file", "cohort too large", "target", "target in a part", "added key", "open bracket",
    "lr nan", "nothing kept", "run that isn't there",
}  # fmt: skip
"""Mistakes whose like tests/support/bad_inputs.py has among those that the fast tests try."""
MISTAKES = [
    pytest.param(*case, id=name, marks=[pytest.mark.slow] if name in ALSO_IN_BAD else [])
    for name, case in WRONG.items()
]
MISTAKES += [pytest.param(*case, id=name, marks=pytest.mark.slow) for name, case in MORE.items()]


@pytest.mark.parametrize(("arguments", "named", "allowed"), MISTAKES)
def test_a_mistake_is_one_line_that_names_it_and_leaves_no_file(
    arguments: str, named: str, allowed: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tmp = str(folder.parent)
    beside = sorted(folder.parent.iterdir())
    assert train(*arguments.replace("{tmp}", tmp).split()) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ")
    assert "allowed is " in line
    assert named.replace("{tmp}", tmp) in line
    assert allowed in line
    assert list(folder.iterdir()) == []
    assert sorted(folder.parent.iterdir()) == beside


def test_an_update_that_is_not_finite_names_its_client_and_the_last_checkpoint_stands(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    fits: list[int] = []
    build = module.Optimizer.build

    def exploding(self: module.Optimizer, parameters: Any) -> torch.optim.Optimizer:
        fits.append(1)
        return torch.optim.SGD(parameters, lr=1e30) if len(fits) == 5 else build(self, parameters)

    monkeypatch.setattr(module.Optimizer, "build", exploding)
    assert train("algo=fedit", "rounds=3", "local.steps=3") == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: update of client 1, job 0: model.")
    assert "not finite" in line
    (manifest,) = (folder / "lightning_logs/fedit/version_0/checkpoints").glob("*.json")
    assert manifest.name == "round_0001.json"
    assert train("algo=fedit", "rounds=3", "local.steps=3", "resume=last") == 0


@pytest.fixture
def python_s_handler() -> Iterator[Any]:
    """Python's own handler of Ctrl-C. A shell that runs the tests in the background would have it ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield signal.default_int_handler
    signal.signal(signal.SIGINT, before)


def interrupt(*_: object) -> None:
    os.kill(os.getpid(), signal.SIGINT)


@pytest.mark.parametrize(
    ("owner", "hook"),
    [
        (ClientModule, "on_train_batch_end"),
        *slowly((ClientModule, "on_validation_start"), (flt.server.federator.Federator, "draw_cohort")),
    ],
    ids=["in a fit", "in an evaluation", "between fits"],
)
def test_ctrl_c_exits_with_130_and_says_how_to_go_on(
    owner: type,
    hook: str,
    python_s_handler: Any,
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    before = getattr(owner, hook)

    def interrupted(*args: Any) -> Any:
        interrupt()
        return before(*args)

    with monkeypatch.context() as patch:
        patch.setattr(owner, hook, interrupted)
        assert train("algo=fedit") == 130
    (line,) = capsys.readouterr().err.splitlines()
    assert "resume=last" in line
    assert signal.getsignal(signal.SIGINT) is python_s_handler
    assert train("algo=fedit", "resume=last") == 0
    assert runs(folder) == ["fedit/version_0"]


@pytest.mark.slow
def test_sweep_runs_every_combination_in_a_folder_of_its_own(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    quick = [f"{key}={value}" for key, value in QUICK.items()]
    assert main(["sweep", "algo=hafl,fedit", "seed=0,1", *quick]) == 0
    versions = ["fedit/version_0", "fedit/version_1", "hafl/version_0", "hafl/version_1"]
    assert runs(folder) == ["compare/sweep_0", *versions]
    seeds = [(folder / "lightning_logs/fedit" / f"version_{i}/config.yaml").read_text() for i in (0, 1)]
    assert ["\nseed: 0\n" in seeds[0], "\nseed: 1\n" in seeds[1]] == [True, True]
    assert "run 3 of 4: algo=fedit seed=0" in capsys.readouterr().out


def test_sweep_checks_every_combination_before_the_first_runs(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["sweep", "algo=hafl,nope", "rounds=1"]) == 2
    assert "algo=nope" in capsys.readouterr().err
    assert list(folder.iterdir()) == []


def test_make_passes_every_variable_on() -> None:
    given = {
        "ALGO": "fedit", "DATA": "my data.csv", "MODEL": "it's/here", "ADAPTER": "lora", "ENGINE": "serial",
        "DEVICES": "1", "ROUNDS": "2", "CLIENTS": "3", "SEED": "4", "RESUME": "last",
    }  # fmt: skip
    command = [*MAKE, "train", *(f"{k}={v}" for k, v in given.items()), 'ARGS=ranks=[2,4] "name=a b"']
    shown = subprocess.run(command, cwd=REPO, text=True, capture_output=True, check=True).stdout.splitlines()[-1]
    program, *words = shlex.split(shown.removeprefix("exec "))
    assert program.endswith("bin/flt")
    assert words == ["train", *(f"{k.lower()}={v}" for k, v in given.items()), "ranks=[2,4]", "name=a b"]


@pytest.mark.parametrize("target", ["train", "sweep"])
def test_make_alone_runs_hafl(target: str) -> None:
    shown = subprocess.run([*MAKE, target], cwd=REPO, text=True, capture_output=True, check=True).stdout
    assert shlex.split(shown)[-2:] == [target, "algo=hafl"]


def test_a_plan_that_a_rule_can_not_use_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["algo=flora", "plan.train=[head]"]) == 2
    assert "plan.train" in capsys.readouterr().err
    assert not (tmp_path / "lightning_logs").exists()
