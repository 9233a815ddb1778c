"""Modules whose buffers change in training, such as batch norms, in whole runs."""

from __future__ import annotations

import copy
import subprocess
import sys
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
from commands import in_empty_folder
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm
from torch.utils.data import TensorDataset
from toys import Toy, toy_data

import flt
from flt.api import Result
from flt.client.loader import loader
from flt.client.settings import LocalSettings
from flt.core.errors import InputError
from flt.data.clients import ClientSpec, JobData
from flt.protocol.messages import Payload, Update
from flt.protocol.state import ClientState
from flt.run.conf_groups import choices
from flt.server.callback import FedCallback
from flt.server.federator import Federator

FULL = ("plan.lr_factor=1.0", "local.steps=3")


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    in_empty_folder(tmp_path, monkeypatch)
    return tmp_path


class Normed(Toy):
    """A toy with a batch norm between its layers; a buffer of the user's counts the examples."""

    def __init__(self, momentum: float | None = 0.1, affine: bool = True, **settings: Any) -> None:
        super().__init__(**settings)
        self.norm = nn.BatchNorm1d(8, momentum=momentum, affine=affine)
        self.register_buffer("table", torch.arange(1000.0))  # as positional encodings: it never changes

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.relu(self.fc2(torch.relu(self._normed(self.fc1(x))))))

    def _normed(self, x: Tensor) -> Tensor:
        return self.norm(x[:, None])[:, 0] if isinstance(self.norm, nn.InstanceNorm1d) else self.norm(x)


class Headed(Toy):
    """A toy whose head begins with a batch norm."""

    def __init__(self) -> None:
        super().__init__()
        self.head: Any = nn.Sequential(nn.BatchNorm1d(10), nn.Linear(10, 3))


class Seen(FedCallback):
    """Keeps the messages of all rounds."""

    def __init__(self) -> None:
        self.down: list[Payload] = []
        self.up: list[Update] = []
        self.federator: Any = None

    def on_job_start(self, federator: Federator, payload: Payload) -> None:
        self.federator = federator
        self.down.append(payload)

    def on_update(self, federator: Federator, update: Update) -> None:
        self.up.append(update)


def made(seed: int = 0, **settings: Any) -> Normed:
    torch.manual_seed(seed)
    return Normed(**settings)


def run(
    module: pl.LightningModule, *overrides: str, algo: str = "fedavg", rounds: int = 2, clients: int = 3, **more: Any
) -> Result:
    shares = more.pop("shares", None) or flt.partition(toy_data(60), alpha=5.0, clients=clients)
    given = (*(FULL if algo == "fedavg" else FULL[1:]), *overrides)
    return flt.fit(module, shares, algo, rounds, batch_size=4, progress=False, overrides=given, **more)


def statistics(module: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in module.named_buffers() if name.startswith("norm.")}


NORMS = {
    "batch norm": lambda: nn.BatchNorm1d(8),
    "cumulative statistics": lambda: nn.BatchNorm1d(8, momentum=None),
    "no scale": lambda: nn.BatchNorm1d(8, affine=False),
    "no statistics": lambda: nn.BatchNorm1d(8, track_running_stats=False),
    "spectral norm": lambda: spectral_norm(nn.Linear(8, 8)),
    "layer norm": lambda: nn.LayerNorm(8),
    "instance norm": lambda: nn.InstanceNorm1d(1, affine=True, track_running_stats=True),
}


@pytest.mark.parametrize("norm", NORMS)
def test_one_client_has_the_weights_and_statistics_of_plain_lightning_to_the_bit(norm: str) -> None:
    data = toy_data(33)  # batches of 4: the ninth would hold one example
    share = [ClientSpec(0, (JobData(data, np.arange(33), np.arange(0)),))]
    seen, module = Seen(), made()
    module.norm = NORMS[norm]()
    plain = copy.deepcopy(module)
    result = run(module, "local.steps=null", "local.epochs=2", rounds=1, shares=share, callbacks=[seen])
    seed = int(np.random.SeedSequence([0, 0, 0, 0]).generate_state(1)[0])
    joins = "norm" if isinstance(module.norm, nn.BatchNorm1d) else ""
    batches = loader(data, LocalSettings(steps=None, epochs=2, batch_size=4), None, seed, batch_norm=joins)
    trainer = pl.Trainer(max_epochs=2, accelerator="cpu", logger=False, enable_checkpointing=False)
    trainer.fit(plain, batches)
    assert trainer.global_step == seen.up[0].steps == (16 if joins else 18)
    found, expected = result.module.state_dict(), plain.state_dict()
    assert sorted(found) == sorted(expected)
    for name, value in expected.items():
        assert torch.equal(found[name], value), name


@pytest.mark.slow
def test_a_batch_norm_learns_under_fedavg_about_as_well_as_on_all_data_at_once() -> None:
    digits = load_digits()
    x, y = torch.tensor(digits.images, dtype=torch.float32)[:, None], torch.tensor(digits.target)
    train, test = TensorDataset(x[:1400], y[:1400]), TensorDataset(x[1400:], y[1400:])

    class Net(Toy):
        def __init__(self) -> None:
            pl.LightningModule.__init__(self)
            self.optimizer, self.lr, self.weight_decay, layers, width = "adamw", 3e-3, 0.01, [], 1
            for out, stride in ((16, 1), (32, 2), (32, 1), (64, 2)):
                layers += [nn.Conv2d(width, out, 3, stride, 1), nn.BatchNorm2d(out), nn.ReLU()]
                width = out
            self.body = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten())
            self.head = nn.Linear(64, 10)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.body(x))

    torch.manual_seed(0)
    shares = flt.partition(train, alpha=5.0, clients=4)
    overrides = ["plan.lr_factor=1.0", "local.steps=25"]
    result = flt.fit(Net(), shares, "fedavg", 8, batch_size=32, validation=test, progress=False, overrides=overrides)
    assert (
        result.round_metrics[-1]["round/val_acc"] > 0.9
    )  # 0.947 on all data at once; 0.41 with the initial statistics


def test_only_buffers_that_training_changes_travel_and_their_bytes_are_counted() -> None:
    seen = Seen()
    result = run(made(), callbacks=[seen])
    names = ["norm.num_batches_tracked", "norm.running_mean", "norm.running_var"]
    assert all(sorted(update.buffers) == names for update in seen.up)
    assert [sorted(payload.buffers) for payload in seen.down] == [[]] * 3 + [names] * 3
    kept = run(made(), "buffers=keep")
    numbers = 8 * 4 * 2 + 8  # two statistics of eight features in float32, and a counter
    for way, messages in (("up", 3), ("down", 0)):
        more = result.round_metrics[0][f"comm/bytes_{way}"] - kept.round_metrics[0][f"comm/bytes_{way}"]
        assert messages * numbers <= more <= messages * (numbers + 500)


def test_the_global_model_has_the_buffers_that_the_server_holds() -> None:
    seen = Seen()
    result = run(made(), callbacks=[seen])
    held = seen.federator.state.groups[0].buffers
    assert int(held["norm.num_batches_tracked"]) == 2 * 3 * 3
    for name, value in statistics(result.module).items():
        assert torch.equal(value, held[name]), name
    x = toy_data(5).tensors[0]
    loaded = flt.load(result.exported, made(seed=1)).eval()
    assert torch.equal(loaded(x), result.module.eval()(x))


def test_keep_puts_the_buffers_back_after_each_fit() -> None:
    module, seen = made(), Seen()
    before = statistics(module)
    result = run(module, "buffers=keep", callbacks=[seen])
    assert all(torch.equal(value, before[name]) for name, value in statistics(result.module).items())
    assert not any(update.buffers for update in seen.up)


def test_local_keeps_each_clients_norm_to_itself_and_exports_a_model_for_each_client() -> None:
    seen = Seen()
    result = run(made(), "buffers=local", rounds=3, callbacks=[seen])
    assert not any(message.buffers for message in (*seen.up, *seen.down))
    assert not any("norm.weight" in message.tensors for message in (*seen.up, *seen.down))
    assert all("fc1.weight" in update.tensors for update in seen.up)
    states = {job: seen.federator.client_states[job] for job in seen.federator.client_states}
    assert all(int(state.buffers["norm.num_batches_tracked"]) == 9 for state in states.values())
    means, scales = (
        [part(s) for s in states.values()]
        for part in (lambda s: s.buffers["norm.running_mean"], lambda s: s.tensors["norm.weight"])
    )
    assert not torch.equal(means[0], means[1])
    assert not torch.equal(scales[0], scales[1])
    assert "round/val_acc" not in result.metrics, "there is no global model"
    x = toy_data(5).tensors[0]
    for client in range(3):
        loaded = flt.load(result.exported / f"client_{client}", made(seed=1)).eval()
        assert torch.equal(loaded.norm.running_mean, means[client])
        assert torch.equal(loaded.norm.weight, scales[client])
        if client == 0:
            assert torch.equal(loaded(x), result.module.eval()(x))


@pytest.mark.parametrize("affine", [True, False])
def test_adapters_leave_a_frozen_norm_and_its_statistics_as_they_were(affine: bool) -> None:
    module, seen = made(affine=affine), Seen()
    with torch.no_grad():
        module.norm.running_mean.fill_(0.3)
    before = statistics(module)
    result = run(module, algo="fedit", callbacks=[seen])
    assert all(torch.equal(value, before[name]) for name, value in statistics(result.module).items())
    assert not any(message.buffers for message in (*seen.up, *seen.down))


def test_a_norm_in_a_head_that_trains_is_averaged_with_adapters_and_exported() -> None:
    seen = Seen()
    torch.manual_seed(0)
    module = Headed()
    plain = copy.deepcopy(module)
    result = run(module, algo="fedit", head="head", callbacks=[seen])
    assert all("head.0.running_var" in update.buffers for update in seen.up)
    x = toy_data(5).tensors[0]
    loaded = flt.load(result.exported, plain).eval()
    torch.testing.assert_close(loaded(x), result.module.eval()(x), rtol=0, atol=1e-6)
    assert int(result.module.head[0].num_batches_tracked) == 18


@pytest.mark.slow
@pytest.mark.parametrize("algo", sorted(set(choices("algo")) - {"c2a"}))  # C2A needs a transformer
def test_every_recipe_trains_a_head_with_a_norm(algo: str) -> None:
    policy = "local" if algo in ("scaffold", "flora", "fl_tac_memory", "fl_tac_unlocked") else "average"
    seen = Seen()
    torch.manual_seed(0)
    module = Headed()
    private = algo in ("fedsa_lora", "local") or policy == "local"
    result = run(module, f"buffers={policy}", "local.lr=1e-3", algo=algo, head="head", clients=3, callbacks=[seen])
    assert all(bool(update.buffers) is not private for update in seen.up)
    last = seen.federator.client_states.get(seen.up[-1].job, ClientState())
    assert bool(last.buffers) is private
    assert int(result.module.head[0].num_batches_tracked) > 0
    assert all(bool(value.isfinite().all()) for value in result.module.state_dict().values())


def test_a_buffer_of_the_users_that_training_changes_is_averaged_and_scratch_space_is_not() -> None:
    class Counting(Toy):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("level", torch.zeros(()))
            self.register_buffer("steps_done", torch.zeros((), dtype=torch.long))
            self.register_buffer("scratch", torch.zeros(1))
            self.register_buffer("cache", torch.zeros(1), persistent=False)

        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            self.level.lerp_(batch[0].mean(), 0.5)
            self.steps_done += 1
            self.scratch = torch.zeros(int(self.steps_done) + 1)  # of another size after each step
            self.cache = torch.ones(1)
            return super().training_step(batch, batch_idx)

    seen = Seen()
    torch.manual_seed(0)
    result = run(Counting(), algo="fedit", rounds=1, callbacks=[seen])
    assert all(sorted(update.buffers) == ["level", "steps_done"] for update in seen.up)
    sizes = [update.examples for update in seen.up]
    mean = np.average([float(update.buffers["level"]) for update in seen.up], weights=sizes)
    assert float(result.module.level) == pytest.approx(mean, rel=1e-6)
    assert int(result.module.steps_done) == 9, "three steps of three clients"
    assert len(result.module.scratch) == 1
    assert float(result.module.cache) == 0


@pytest.mark.parametrize("policy", ["average", "local"])
def test_a_resumed_run_has_the_same_bits(policy: str) -> None:
    whole = run(made(), f"buffers={policy}", "name=whole", rounds=3)
    run(made(), f"buffers={policy}", "name=parts", rounds=1)
    resumed = run(made(), f"buffers={policy}", "name=parts", "resume=last", rounds=3)
    for name, value in whole.module.state_dict().items():
        assert torch.equal(value, resumed.module.state_dict()[name]), name


def test_a_run_of_a_version_without_the_policy_goes_on_as_it_began() -> None:
    whole = run(made(), "buffers=keep", "name=whole")
    first = run(made(), "buffers=keep", "name=old", rounds=1)
    config = first.path / "config.yaml"
    lines = config.read_text().splitlines()
    at = lines.index("buffers:")
    config.write_text("\n".join(lines[:at] + lines[at + 2 :]) + "\n")
    resumed = run(made(), "name=old", "resume=last")
    for name, value in whole.module.state_dict().items():
        assert torch.equal(value, resumed.module.state_dict()[name]), name
    assert "name: keep" in config.read_text()


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["distributed", "batched"])
def test_other_engines_give_the_same_bits(engine: str) -> None:
    expected = run(made())
    more = ["devices=2", "engine.strategy=ddp_fork"] if engine == "distributed" else []
    found = run(made(), f"engine={engine}", *more)
    for name, value in expected.module.state_dict().items():
        assert torch.equal(value, found.module.state_dict()[name]), name


SHARDED = """
import hashlib, os, sys
sys.path[:0] = PATH
from test_buffers import made, run
from flt.server.federator import Federator
states, fit = [], Federator.fit
Federator.fit = lambda self: states.append(fit(self))
run(made(), "engine=sharded", "devices=2", clients=2)
state = states[0].groups[0].buffers
digest = hashlib.sha256(b"".join(value.numpy().tobytes() for value in state.values())).hexdigest()
with open("end_" + os.environ.get("LOCAL_RANK", "0"), "w") as file:
    file.write(f"{int(state['norm.num_batches_tracked'])} {digest}")
"""


@pytest.mark.slow
def test_processes_that_split_each_batch_agree_on_the_statistics(tmp_path: Path) -> None:
    (tmp_path / "script.py").write_text(SHARDED.replace("PATH", repr([str(Path(__file__).parent), *sys.path])))
    done = subprocess.run([sys.executable, "script.py"], cwd=tmp_path, capture_output=True, text=True, timeout=200)
    ends = [(tmp_path / f"end_{rank}").read_text().split() for rank in range(2)]
    assert ends[0] == ends[1], done.stderr
    assert ends[0][0] == "12"  # two rounds of two clients with three steps each


@pytest.mark.parametrize("recipe", ["fedavg", "fedit"])
def test_a_client_of_a_single_example_is_refused_by_a_batch_norm_that_trains_and_no_other(recipe: str) -> None:
    data = toy_data(30)
    shares = [ClientSpec(i, (JobData(data, np.arange(n), np.arange(20, 30)),)) for i, n in enumerate((9, 1))]
    if recipe == "fedit":
        run(made(), algo=recipe, shares=shares)
        return
    with pytest.raises(InputError, match="^training examples of a client=1: allowed is at least 2 for norm"):
        run(made(), shares=shares)
    with pytest.raises(InputError, match="^batch_size=1: allowed is at least 2 for norm"):
        flt.fit(made(), shares[:1], "fedavg", 1, batch_size=1, progress=False)
