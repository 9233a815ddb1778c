from __future__ import annotations

import copy
import hashlib
import itertools
from typing import Any

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
from torch import Tensor, nn
from toys import Planned, Toy, assert_same, toy_batches, toy_clients, toy_data, toy_federator, toy_module

from flt.algorithm.grouping.kmeans import KMeansGrouping
from flt.algorithm.importance import GradientSensitivity
from flt.algorithm.recipe import Recipe
from flt.algorithm.rule.mean import Mean
from flt.algorithm.rule.scaffold import Scaffold
from flt.algorithm.rule.stacking import Stacking
from flt.algorithm.selection.freeze import Freeze
from flt.algorithm.selection.truncate import Truncate
from flt.client.settings import LocalSettings
from flt.client.trainer import LocalTrainer
from flt.core.errors import InputError
from flt.data.clients import JobData
from flt.models.adapters.lora import LoraSettings, attach
from flt.protocol.messages import Payload, Plan, Update
from flt.protocol.state import ClientState

RECIPES = {
    "fedit": Recipe(Mean()),
    "hafl freeze": Recipe(Mean(), selection=Freeze(), importance=GradientSensitivity()),
    "hafl truncate": Recipe(Mean(pad="parameter"), selection=Truncate(), importance=GradientSensitivity()),
    "fl_tac": Recipe(Mean(weights="uniform"), grouping=KMeansGrouping(2)),
    "scaffold": Recipe(Scaffold()),
    "flora": Recipe(Stacking()),
}


def hand_written_fit(module: Toy, data: JobData, steps: int, seed: int, clip: float | None) -> dict[str, Tensor]:
    """What a Trainer does in a quiet fit: shuffle, forward, backward, clip, step."""
    optimizer = module.configure_optimizers()
    for x, y in itertools.islice(toy_batches(data, seed), steps):
        optimizer.zero_grad()
        nn.functional.cross_entropy(module(x), y).backward()
        if clip:
            torch.nn.utils.clip_grad_norm_(module.parameters(), clip)
        optimizer.step()
    return {name: p.detach() for name, p in module.named_parameters() if p.requires_grad}


def one_fit(
    federator: Any, client: int = 0, seed: int = 5, private: ClientState | None = None
) -> tuple[Payload, Update]:
    """The payload and the update of one job in the federation's first round."""
    cohort = [job for c in federator.clients.values() for job in c.jobs(4)]
    payload = federator.server.broadcast(federator.state, cohort[client], cohort)
    data = federator.clients[client].data[0]
    update, _ = federator.engine.local_trainer.local_fit(data, payload, private or ClientState(), seed)
    return payload, update


@pytest.mark.parametrize("clip", [None, 0.01], ids=["unclipped", "clipped"])
@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
def test_a_fit_equals_the_hand_written_loop_bit_for_bit(optimizer: str, clip: float | None) -> None:
    federator = toy_federator(optimizer=optimizer, steps=7, clip=clip)
    _, update = one_fit(federator)
    module, _ = toy_module(optimizer=optimizer)
    assert_same(update.tensors, hand_written_fit(module, federator.clients[0].data[0], 7, 5, clip))


def test_a_fit_of_epochs_takes_every_batch_of_every_epoch() -> None:
    federator = toy_federator()
    federator.engine.local_trainer.settings = LocalSettings(steps=None, epochs=2, batch_size=5)
    _, update = one_fit(federator)
    assert update.steps == 2 * 3  # 12 examples: 5 + 5 + 2


@pytest.mark.parametrize("clip", [None, 0.01], ids=["unclipped", "clipped"])
def test_frozen_pairs_are_bit_identical_on_the_client_under_adamw(clip: float | None) -> None:
    """Weight decay 0.1 and AdamW's moments would move them if only their gradients were masked."""
    recipe = Recipe(Mean(), selection=Freeze(by="first"), importance=GradientSensitivity())
    federator = toy_federator(recipe, toy_clients(ranks=[1]), steps=6, clip=clip)
    payload, update = one_fit(federator)
    local_trainer, layout = federator.engine.local_trainer, federator.server.layout
    for name in layout.names(["A", "B"]):
        rest = {layer: tuple(sorted(set(payload.held[layer]) - set(payload.kept[layer]))) for layer in payload.held}
        assert torch.equal(
            layout.take(name, local_trainer.parameters[name], rest), layout.take(name, payload.tensors[name], rest)
        )
        kept = layout.take(name, payload.tensors[name], payload.kept)
        assert not torch.equal(update.tensors[name], kept)


def test_frozen_gradients_do_not_enter_the_norm_that_clipping_sees() -> None:
    """Freezing all pairs but one, clipped, equals a truncated model that holds the same pair, while B is zero."""
    updates = []
    for selection in (Freeze(by="first"), Truncate(by="first")):
        federator = toy_federator(Recipe(Mean(), selection=selection), toy_clients(ranks=[1]), steps=1, clip=1e-3)
        updates.append(one_fit(federator)[1].tensors)
    assert_same(*updates, tolerance=1e-7)


def test_a_truncated_fit_equals_that_of_a_module_built_at_the_smaller_rank() -> None:
    federator = toy_federator(Recipe(Mean(), selection=Truncate(by="first")), toy_clients(ranks=[2]), steps=5)
    payload, update = one_fit(federator)
    torch.manual_seed(0)
    module = Toy()
    attach(module, LoraSettings(rank=2, alpha=4.0), 0)  # alpha / r as at rank 4
    module.load_state_dict(payload.tensors, strict=False)
    assert_same(update.tensors, hand_written_fit(module, federator.clients[0].data[0], 5, 5, None))


@pytest.mark.parametrize("recipe", RECIPES.values(), ids=list(RECIPES))
def test_a_job_leaves_nothing_behind(recipe: Recipe) -> None:
    """The same job gives the same bits whether or not another client was trained in between."""
    fresh, used = toy_federator(recipe), toy_federator(recipe)
    one_fit(used, client=1, private=ClientState(slots={"c_i": {"head.bias": torch.full((3,), 7.0)}}))
    assert_same(one_fit(used)[1].tensors, one_fit(fresh)[1].tensors)


@pytest.mark.parametrize("recipe", RECIPES.values(), ids=list(RECIPES))
def test_the_backbone_is_unchanged_unless_the_recipe_says_that_it_changes_it(recipe: Recipe) -> None:
    federator = toy_federator(recipe, toy_clients(jobs=2), rounds=2)
    before = hash_of_base(federator)
    federator.fit()
    federator.engine.local_trainer.load(federator.state, federator.state.home)
    assert (hash_of_base(federator) != before) == recipe.rule.changes_base


KEEPS_B = Planned(make=lambda round: Plan(private=("B", "head")))
"""As FedSA's: A is shared, B and the head stay on the client."""


def test_private_roles_neither_travel_nor_reach_another_client_and_persist() -> None:
    """After one round: A as FedIT's, B and head as after a fit on one's own; then each goes on from its own."""
    private, public = toy_federator(Recipe(Mean(), plan=KEEPS_B), rounds=2), toy_federator()
    public.rounds = 1
    alone: dict[tuple[int, int], dict[str, Tensor]] = {}
    public.transforms = [lambda updates: alone.update({u.job: u.tensors for u in updates}) or updates]
    public.fit()
    own = {"fc1.lora_B.default.weight", "fc2.lora_B.default.weight", "head.weight", "head.bias"}
    private._round()
    for job, state in private.client_states.items():
        assert_same(state.tensors, {name: alone[job][name] for name in own})
    for name, value in private.state.groups[0].weights.items():
        start = toy_federator().state.groups[0].weights[name]
        assert torch.equal(value, start if name in own else public.state.groups[0].weights[name])
    second = private.server.broadcast(private.state, private.cohort[0], private.cohort)
    assert not own & set(second.tensors)
    private.engine.local_trainer.install(second, private.client_states[0, 0])
    assert torch.equal(private.engine.local_trainer.parameters["head.bias"].detach(), alone[0, 0]["head.bias"])


def test_nothing_is_moved_off_the_device_between_jobs(monkeypatch: pytest.MonkeyPatch) -> None:
    federator = toy_federator(rounds=2)
    addresses = [p.data_ptr() for name, p in federator.engine.local_trainer.parameters.items() if "base_layer" in name]
    monkeypatch.setattr(Toy, "cpu", lambda self: pytest.fail("the module was moved to the CPU"))
    federator.fit()
    assert addresses == [
        p.data_ptr() for n, p in federator.engine.local_trainer.parameters.items() if "base_layer" in n
    ]


def hash_of_base(federator: Any) -> str:
    local_trainer = federator.engine.local_trainer
    digest = hashlib.sha256()
    for name in local_trainer.layout.names(["base"]):
        digest.update(local_trainer.parameters[name].detach().numpy().tobytes())
    return digest.hexdigest()


class WithBuffersAndDropout(Toy):
    def __init__(self) -> None:
        super().__init__()
        self.norm, self.dropout = nn.BatchNorm1d(10), nn.Dropout(0.5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.dropout(self.norm(self.fc2(torch.relu(self.fc1(x))))))


def local_trainer_of(module: pl.LightningModule) -> tuple[LocalTrainer, Any]:
    layout = attach(module, LoraSettings(rank=4), 0)
    federator = toy_federator()
    recipe = Recipe(Mean())
    federator.server.layout = layout
    local_trainer = LocalTrainer(module, layout, recipe, LocalSettings(steps=3, batch_size=4), {})
    state = federator.server.initial(dict(module.named_parameters()))
    job = federator.clients[0].jobs(4)[0]
    return local_trainer, federator.server.broadcast(state, job, [job])


def test_buffers_and_dropout_do_not_leak_between_jobs_or_into_the_global_generators() -> None:
    torch.manual_seed(0)
    local_trainer, payload = local_trainer_of(WithBuffersAndDropout())
    data, buffers = toy_clients()[0].data[0], copy.deepcopy(dict(local_trainer.module.named_buffers()))
    state, numpy_state = torch.get_rng_state(), np.random.get_state()[1].copy()
    first, _ = local_trainer.local_fit(data, payload, ClientState(), 1)
    assert_same(dict(local_trainer.module.named_buffers()), buffers)
    torch.randn(10)  # another global state
    second, _ = local_trainer.local_fit(data, payload, ClientState(), 1)
    other, _ = local_trainer.local_fit(data, payload, ClientState(), 2)
    assert_same(first.tensors, second.tensors)
    assert not torch.equal(first.tensors["head.weight"], other.tensors["head.weight"])
    torch.set_rng_state(state)
    local_trainer.local_fit(data, payload, ClientState(), 3)
    assert torch.equal(torch.get_rng_state(), state)
    assert np.array_equal(np.random.get_state()[1], numpy_state)


def test_a_module_left_in_eval_mode_trains_in_train_mode() -> None:
    local_trainer, payload = local_trainer_of(WithBuffersAndDropout().eval())
    seen: list[bool] = []
    local_trainer.module.dropout.register_forward_hook(lambda module, *_: seen.append(module.training))
    local_trainer.local_fit(toy_clients()[0].data[0], payload, ClientState(), 0)
    assert any(seen)


def test_a_part_that_the_user_put_in_eval_mode_stays_there() -> None:
    module = WithBuffersAndDropout()
    module.norm.eval()
    local_trainer, payload = local_trainer_of(module)
    seen: list[bool] = []
    local_trainer.module.norm.register_forward_hook(lambda module, *_: seen.append(module.training))
    local_trainer.local_fit(toy_clients()[0].data[0], payload, ClientState(), 0)
    assert seen
    assert not any(seen)


def test_what_is_evaluated_before_a_fit_does_not_change_it() -> None:
    torch.manual_seed(0)
    local_trainer, payload = local_trainer_of(WithBuffersAndDropout())
    data, updates = toy_clients()[0].data[0], []
    for examples in (0, None):
        local_trainer.settings = LocalSettings(steps=3, batch_size=4, eval_examples=examples)
        updates.append(local_trainer.local_fit(data, payload, ClientState(), 1)[0].tensors)
    assert_same(*updates)


def test_a_buffer_that_a_fit_creates_is_gone_after_it() -> None:
    class Counts(Toy):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("seen", None)

        def on_train_batch_end(self, *args: Any) -> None:
            self.seen = torch.ones(1) if self.seen is None else self.seen + 1

    local_trainer, payload = local_trainer_of(Counts())
    local_trainer.local_fit(toy_clients()[0].data[0], payload, ClientState(), 1)
    assert local_trainer.module.seen is None


class Encodes(Toy):
    def __init__(self) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.fc2(self.encoder(self.fc1(x)[:, None])[:, 0]))


def test_transformer_layers_are_evaluated_with_their_lora() -> None:
    """In eval mode torch's layers read their linear layers' weights unless they are kept from it."""
    torch.manual_seed(0)
    local_trainer, payload = local_trainer_of(Encodes())
    data = toy_clients()[0].data[0]
    update, _ = local_trainer.local_fit(data, payload, ClientState(), 1)
    assert not [name for name in update.tensors if "out_proj" in name]
    x, y = (column[data.held_out] for column in data.dataset.tensors)  # type: ignore[attr-defined]  # a TensorDataset
    loss = nn.functional.cross_entropy(local_trainer.module.train()(x), y)
    assert update.metrics["fitted/val_loss"] == pytest.approx(loss.item(), abs=1e-5)


def test_a_sample_of_the_held_out_examples_spans_them_all() -> None:
    data = JobData(toy_data(), np.arange(3), np.arange(10, 110))
    assert list(data.validation_set(4).indices) == [10, 43, 76, 109]
    assert list(data.validation_set(None).indices) == list(range(10, 110))


def test_evaluation_reports_what_validation_step_logs() -> None:
    federator = toy_federator()
    local_trainer = federator.engine.local_trainer
    x, y = toy_data(50).tensors
    metrics = local_trainer.evaluate(toy_data(50))
    with torch.no_grad():
        logits = local_trainer.module(x).numpy()
    assert metrics["val_acc"] == pytest.approx((logits.argmax(-1) == y.numpy()).mean(), abs=1e-6)
    shifted = logits - logits.max(-1, keepdims=True)
    nll = np.log(np.exp(shifted).sum(-1)) - shifted[np.arange(50), y.numpy()]
    assert metrics["val_loss"] == pytest.approx(nll.mean(), abs=1e-5)


def test_an_evaluation_tells_how_many_of_its_batches_are_done() -> None:
    local_trainer, done = toy_federator().engine.local_trainer, list[tuple[int, int]]()
    local_trainer.evaluate(toy_data(150), lambda batches, total: done.append((batches, total)))
    batches = len(local_trainer.loader(toy_data(150), None))
    assert done == [(number + 1, batches) for number in range(batches)]
    assert batches > 1


def test_distributed_metrics_are_of_the_model_before_the_fit_and_fitted_ones_after() -> None:
    federator = toy_federator(steps=30)
    _, update = one_fit(federator)
    held_out = federator.clients[0].data[0].validation_set(None)
    fresh = toy_federator()
    assert update.metrics["distributed/val_loss"] == fresh.engine.local_trainer.evaluate(held_out)["val_loss"]
    assert update.metrics["fitted/val_loss"] == federator.engine.local_trainer.evaluate(held_out)["val_loss"]
    assert update.metrics["fitted/val_loss"] != update.metrics["distributed/val_loss"]


def test_a_fit_without_a_step_is_refused_naming_the_client() -> None:
    class Idle(Toy):
        def on_train_batch_start(self, batch: Any, batch_idx: int) -> int:
            return -1  # Lightning's way to skip the rest of the epoch

    local_trainer, payload = local_trainer_of(Idle())
    local_trainer.settings = LocalSettings(steps=None, epochs=1, batch_size=4)
    with pytest.raises(InputError, match=r"client 0=0 steps"):
        local_trainer.local_fit(toy_clients()[0].data[0], payload, ClientState(), 0)


def test_missed_versions_of_the_base_are_applied_once_and_skipped_after_that() -> None:
    federator = toy_federator(Recipe(Stacking()), rounds=3)
    federator.fit()
    state, server = federator.state, federator.server
    absent = toy_federator(Recipe(Stacking())).engine.local_trainer
    deltas = state.base.since(0, server.base)
    for _ in range(2):
        absent.apply_base(deltas, state.base.version)
        for name in server.base:
            assert torch.equal(absent.parameters[name].detach(), state.base.value(name, server.base))


@pytest.mark.parametrize(
    ("settings", "key"),
    [
        ({"steps": None}, "local.steps"),
        ({"epochs": 1}, "local.steps"),
        ({"steps": 0}, "local.steps"),
        ({"batch_size": 0}, "batch_size"),
        ({"clip": 0.0}, "local.clip"),
        ({"accumulate": 0}, "local.accumulate"),
    ],
    ids=str,
)
def test_wrong_settings_are_refused_by_name(settings: dict[str, Any], key: str) -> None:
    with pytest.raises(InputError, match=f"^{key}="):
        LocalSettings(**settings)
