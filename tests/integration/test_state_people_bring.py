"""Users' modules whose state is unusual: each trains as in plain Lightning, resumes, and loads from its export."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from brought_modules import Brought
from commands import in_empty_folder
from plain_fits import ADAPTER, WHOLE_MODEL, federated_and_plain
from torch import Tensor, nn
from torch.utils.data import Dataset, TensorDataset
from toys import CLASSES, FEATURES, toy_data

import flt
from flt.api import Result
from flt.core.errors import InputError


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    in_empty_folder(tmp_path, monkeypatch)
    return tmp_path


class Queue(Brought):
    """As MoCo: a queue of features, and the position at which the next ones are put."""

    LENGTH = 16

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("queue", torch.randn(self.LENGTH, 8))
        self.register_buffer("position", torch.zeros(1, dtype=torch.long))

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        found, at = self.body(batch[0][:4]), int(self.position)
        similar = (found @ self.queue.clone().T).square().mean()
        if len(found) == 4:
            self.queue[at : at + 4] = found.detach()  # an error if the position lies beyond the end
            self.position[0] = (at + 4) % self.LENGTH
        return super().training_step(batch, batch_idx) + 0.01 * similar


class StartsFromData(Brought):
    """As ActNorm: the first batch sets a scale, and a flag of integers says so."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(8))
        self.register_buffer("ready", torch.tensor(0, dtype=torch.uint8))
        self.register_buffer("fresh", torch.tensor(True))

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        assert int(self.ready) in (0, 1)
        assert bool(self.fresh) is not bool(self.ready)
        self.ready.fill_(1)
        self.fresh.fill_(False)
        return super().training_step(batch, batch_idx)


class WeighsClasses(Brought):
    """Makes its loss, which has a buffer, and another buffer in setup."""

    def setup(self, stage: str) -> None:
        self.loss = nn.CrossEntropyLoss(weight=torch.arange(1.0, 1 + CLASSES))
        self.register_buffer("factor", torch.tensor(2.0))

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        return self.factor * self.loss(self(batch[0]), batch[1])


class MakesBuffer(Brought):
    """Makes a buffer in a fit, unless there is one."""

    made: list[bool] = []

    def __init__(self) -> None:
        super().__init__()
        self.norm: Any = None

    def on_train_start(self) -> None:
        self.made.append(not hasattr(self, "centre") and self.norm is None)
        self.register_buffer("centre", torch.zeros(8))
        self.norm = nn.BatchNorm1d(8, affine=False)

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        self.centre.lerp_(self.body(batch[0]).mean(0).detach(), 0.1)
        return super().training_step(batch, batch_idx)


class SharesBuffer(Brought):
    """Two layers hold one buffer: one writes it, the other one reads it."""

    def __init__(self) -> None:
        super().__init__()
        self.writes, self.reads = nn.Module(), nn.Module()
        self.writes.register_buffer("mean", torch.zeros(8))
        self.reads.register_buffer("mean", self.writes.mean)

    def forward(self, x: Tensor) -> Tensor:
        found = self.body(x)
        if self.training:
            self.writes.mean.mul_(0.9).add_(found.mean(0).detach(), alpha=0.1)
        return self.head(found - self.reads.mean)


class CountsWhatItSees(Brought):
    """Changes a buffer in evaluation, too."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("seen", torch.zeros(()))

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        self.seen += len(batch[0])
        return super().training_step(batch, batch_idx)

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.seen += 1000 if self.trainer.state.fn == "validate" else 0
        super().validation_step(batch, batch_idx)


class KeepsLess(Brought):
    """Leaves its backbone out of checkpoints."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = nn.Linear(FEATURES, FEATURES)
        self.strict_loading = False

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(self.backbone(x)))

    def state_dict(self, *args: Any, **kwargs: Any) -> Any:
        return {name: v for name, v in super().state_dict(*args, **kwargs).items() if "backbone" not in name}


class KeepsMore(Brought):
    """Puts into checkpoints what is no tensor."""

    def get_extra_state(self) -> Any:
        return {"version": 1}

    def set_extra_state(self, state: Any) -> None: ...


class Unscaled(Brought):
    """A batch norm on columns that nobody has normalised."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(FEATURES)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(self.norm(x)))


class ParametersOfIntegers(Brought):
    """Holds a step and a mask as parameters, and a table of complex numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.step = nn.Parameter(torch.tensor(3), requires_grad=False)
        self.mask = nn.Parameter(torch.tensor([True] * 7 + [False]), requires_grad=False)
        self.head.register_parameter("step", nn.Parameter(torch.tensor(2), requires_grad=False))
        self.register_buffer("turns", torch.polar(torch.ones(8), torch.arange(8.0)))
        self.register_buffer("small", torch.ones(8, dtype=torch.int8))

    def forward(self, x: Tensor) -> Tensor:
        return self.head((self.body(x) * self.mask * self.turns).real * self.small)


def incomes() -> TensorDataset:
    x, y = toy_data(60).tensors
    return TensorDataset(x * torch.tensor([1.0, 1e2, 1e4, 1e6, 1e8, 1e9]), y)


KINDS: dict[str, tuple[Any, Any]] = {
    "a queue and a position in it": (Queue, toy_data),
    "flags": (StartsFromData, toy_data),
    "a loss and a buffer of setup": (WeighsClasses, toy_data),
    "a buffer and a layer of a fit": (MakesBuffer, toy_data),
    "a buffer of two layers": (SharesBuffer, toy_data),
    "a buffer that evaluations change": (CountsWhatItSees, toy_data),
    "a state_dict without the backbone": (KeepsLess, toy_data),
    "a state_dict with more than tensors": (KeepsMore, toy_data),
    "parameters of integers": (ParametersOfIntegers, toy_data),
    "columns of all sizes": (Unscaled, lambda _: incomes()),
}


def run(make: Any, algo: str, *keys: str, rounds: int = 2, data: Dataset | None = None) -> Result:
    torch.manual_seed(0)
    factor = ["plan.lr_factor=1.0"] if algo == "fedavg" else []
    shares = flt.partition(toy_data(60) if data is None else data, alpha=5.0, clients=3)
    overrides = ["local.steps=3", *factor, *keys]
    return flt.fit(make(), shares, algo, rounds, batch_size=8, progress=False, overrides=overrides)


@pytest.mark.parametrize("algo", ["fedavg", "fedit"])
@pytest.mark.parametrize("name", KINDS)
def test_unusual_state_trains_resumes_and_loads(name: str, algo: str) -> None:
    make, points = KINDS[name]
    if make is not Unscaled or algo == "fedavg":  # a frozen batch norm stays in evaluation mode
        federated, plain, _ = federated_and_plain(make, points(60), WHOLE_MODEL if algo == "fedavg" else ADAPTER)
        assert all(torch.equal(federated[key], value) for key, value in plain.items())
    whole = run(make, algo, "name=whole", data=points(60))
    torch.manual_seed(0)
    loaded, x = flt.load(whole.exported, make()), points(60).tensors[0]
    torch.testing.assert_close(loaded(x), whole.module.eval()(x), atol=1e-5, rtol=1e-5)
    run(make, algo, "name=parts", rounds=1, data=points(60))
    parts = run(make, algo, "name=parts", "resume=last", data=points(60))
    found, expected = (dict(r.module.named_parameters()) | dict(r.module.named_buffers()) for r in (parts, whole))
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[key], value) for key, value in expected.items())


def test_each_fit_makes_its_own_buffers_and_a_line_says_once_that_they_are_lost(
    caplog: pytest.LogCaptureFixture,
) -> None:
    MakesBuffer.made = []
    with caplog.at_level(logging.WARNING):
        result = run(MakesBuffer, "fedit")
    assert MakesBuffer.made == [True] * 6
    assert not dict(result.module.named_buffers())
    assert [r.getMessage() for r in caplog.records if "lost" in r.getMessage()] == [
        "centre: a buffer that a fit makes, or gives another shape or type, is lost after the fit"
    ]


def test_evaluations_change_no_buffer_of_a_client() -> None:
    result = run(CountsWhatItSees, "fedavg")
    assert 0 < float(result.module.seen) < 1000


class NormInHead(Brought):
    """Its head has buffers: of a norm, and a table that never changes."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Sequential(nn.BatchNorm1d(8), nn.Linear(8, CLASSES))
        self.head.register_buffer("table", torch.randn(3))


@pytest.mark.parametrize("buffers", ["average", "keep", "local"])
@pytest.mark.parametrize("algo", ["fedit", "hafl", "sa_fedlora", "flora", "fedavg"])
def test_a_head_with_buffers_is_exported_with_all_of_them(algo: str, buffers: str) -> None:
    result = run(NormInHead, algo, f"buffers={buffers}", "adapter.head=head")
    folder = next((path for path in sorted(result.exported.glob("client_*"))), result.exported)
    torch.manual_seed(0)
    loaded, x = flt.load(folder, NormInHead()), toy_data(60).tensors[0]
    torch.testing.assert_close(loaded(x), result.module.eval()(x), atol=1e-5, rtol=1e-5)


def test_a_line_says_that_a_whole_model_is_trained_although_the_module_has_frozen_a_part(
    caplog: pytest.LogCaptureFixture,
) -> None:
    class Frozen(Brought):
        def __init__(self) -> None:
            super().__init__()
            self.body.requires_grad_(False)

    lines = []
    for make, algo in ((Frozen, "fedavg"), (Frozen, "fedit"), (Brought, "fedavg")):
        with caplog.at_level(logging.WARNING):
            run(make, algo, rounds=1)
        lines.append([r.getMessage() for r in caplog.records if "frozen" in r.getMessage()])
        caplog.clear()
    assert [len(found) for found in lines] == [1, 0, 0]
    assert lines[0][0].startswith("Frozen: the recipe trains the whole model, also body.0.weight, which")


def test_code_that_torch_jit_has_compiled_is_refused(folder: Path) -> None:
    class Scripted(Brought):
        def __init__(self) -> None:
            super().__init__()
            self.first = torch.jit.script(nn.Linear(FEATURES, FEATURES))

    with pytest.raises(InputError, match=r"^module.first=RecursiveScriptModule: nothing can be attached") as caught:
        run(Scripted, "fedit")
    assert "\n" not in str(caught.value)
    assert not list(folder.iterdir())
