"""C2A: what it knows of the labels of a batch and of a client, and what each of its switches takes away."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from bottlenecks import adapted, batch_of, logits, normal
from torch import nn
from torch.utils.data import TensorDataset

from flt.core.errors import InputError
from flt.data.clients import JobData
from flt.models.adapters.c2a import C2ASettings, HyperNetwork
from flt.models.adapters.client_context import BatchNotifier, at_client, client_aware_modules

# ---------------------------------------------------------------------------------------------- labels


def distribution_of(model: nn.Module) -> list[float]:
    found = next(sub for sub in model.modules() if isinstance(sub, HyperNetwork))
    return [round(float(share), 4) for share in found.distribution()]


UNIFORM = [0.3333] * 3


def job(*counts: int) -> JobData:
    return JobData(TensorDataset(torch.zeros(1)), np.arange(1), np.arange(0), label_counts=counts)


def test_the_batchs_labels_count_while_training_and_never_at_test() -> None:
    model, batch = adapted().train(), batch_of("bert")
    first = logits(model, batch)
    assert distribution_of(model) == [0.25, 0.5, 0.25]
    others = {**batch, "labels": torch.tensor([2, 2, 2, 2])}
    assert not torch.allclose(logits(model, others), first, atol=1e-3)
    model.eval()
    assert torch.equal(logits(model, batch), logits(model, others))
    assert distribution_of(model) == UNIFORM
    with at_client(client_aware_modules(model), job(1, 0, 3)):
        assert distribution_of(model) == UNIFORM


def test_a_clients_histogram_counts_as_long_as_its_job_lasts() -> None:
    model, batch = adapted(label_source="client"), batch_of("bert")
    for training in (True, False):
        model.train(training)
        without = logits(model, batch)
        assert distribution_of(model) == UNIFORM
        with at_client(client_aware_modules(model), job(1, 0, 3)):
            assert distribution_of(model) == [0.25, 0, 0.75]
            assert not torch.allclose(logits(model, batch), without, atol=1e-3)
        assert distribution_of(model) == UNIFORM
    with pytest.raises(ZeroDivisionError), at_client(client_aware_modules(model), job(1, 0, 3)):
        _ = 1 / 0
    assert distribution_of(model) == UNIFORM
    with at_client(client_aware_modules(model), job(2)):  # the rarest classes are nobody's in this task
        assert distribution_of(model) == [1, 0, 0]


@pytest.mark.parametrize(
    ("batch", "expected"),
    [
        ({"labels": torch.tensor([2, 2])}, [0, 0, 1]),
        ((torch.zeros(2, 5), torch.tensor([1, 2])), [0, 0.5, 0.5]),
        (batch_of("bert"), [0.25, 0.5, 0.25]),
    ],
    ids=["a mapping", "a tuple", "a whole batch"],
)
def test_labels_that_the_model_isnt_given_come_from_the_batch_until_the_job_ends(
    batch: Any, expected: list[float]
) -> None:
    model, given = adapted().train(), batch_of("bert")
    del given["labels"]
    network = next(sub for sub in model.modules() if isinstance(sub, HyperNetwork))
    with at_client(client_aware_modules(model), job(1)):
        network.enter_batch(batch)
        logits(model, given)
        assert distribution_of(model) == expected
    with pytest.raises(InputError, match="there are no labels"):
        logits(model, given)


def test_the_batchs_labels_are_missed_in_one_line_and_only_where_they_are_wanted() -> None:
    batch = batch_of("bert")
    del batch["labels"]
    with pytest.raises(InputError, match=r"^adapter.label_source=batch: there are no labels; allowed is client, or"):
        logits(adapted().train(), batch)
    for model in (adapted().eval(), adapted(use_label=False).train(), adapted(label_source="client").train()):
        logits(model, batch)


def test_a_client_without_counts_is_refused_where_they_are_wanted() -> None:
    message = r"^adapter.label_source=client: a client's data has no label_counts; allowed is batch"
    with (
        pytest.raises(InputError, match=message),
        at_client(client_aware_modules(adapted(label_source="client")), job()),
    ):
        pass
    for settled in (adapted(), adapted(label_source="client", use_label=False)):
        with at_client(client_aware_modules(settled), job()):
            pass


def test_labels_that_are_no_classes_of_the_model_are_refused() -> None:
    client_aware = client_aware_modules(adapted(label_source="client"))
    message = r"^adapter.label_source=client: the model has 3 classes, and a client's data 4; allowed is batch"
    with pytest.raises(InputError, match=message), at_client(client_aware, job(1, 0, 0, 1)):
        pass


@pytest.mark.parametrize("source", ["batch", "client"])
@pytest.mark.parametrize(
    ("histogram", "expected"),
    [("own", [0.25, 0, 0.75]), ("uniform", UNIFORM), ("wrong", [0, 0.75, 0.25]), ("batch", [0.25, 0.5, 0.25])],
)
def test_an_evaluation_uses_the_chosen_histogram_and_training_the_one_of_the_source(
    source: str, histogram: str, expected: list[float]
) -> None:
    model, batch = adapted(label_source=source, histogram=histogram), batch_of("bert")
    with at_client(client_aware_modules(model), job(1, 0, 3)):
        logits(model.train(), batch)
        assert distribution_of(model) == ([0.25, 0.5, 0.25] if source == "batch" else [0.25, 0, 0.75])
        at_test = logits(model.eval(), batch)
        assert distribution_of(model) == expected
    own = adapted(label_source=source, histogram="own").eval()
    with at_client(client_aware_modules(own), job(1, 0, 3)):
        assert torch.equal(logits(own, batch), at_test) == (histogram == "own")
    if histogram != "batch":  # a global model has no client
        assert distribution_of(model) == UNIFORM


def test_the_wrong_histogram_stays_inside_the_classes_of_the_jobs_head() -> None:
    model = adapted(histogram="wrong").eval()
    network = next(sub for sub in model.modules() if isinstance(sub, HyperNetwork))
    (output,) = network.output
    assert output is not None
    output.weight.data = output.weight.data[:2]  # a job with two of the three classes
    with at_client(client_aware_modules(model), job(1, 3)):
        assert distribution_of(model) == [0.75, 0.25, 0]


def test_the_labels_of_an_evaluated_batch_are_forgotten_after_the_evaluation() -> None:
    model, batch = adapted(histogram="batch").eval(), batch_of("bert")
    labels = batch.pop("labels")
    notifier = BatchNotifier(client_aware_modules(model))
    notifier.on_validation_batch_start(None, None, {**batch, "labels": labels}, 0)  # type: ignore[arg-type]  # not used
    logits(model, batch)
    assert distribution_of(model) == [0.25, 0.5, 0.25]
    notifier.on_validation_end(None, None)  # type: ignore[arg-type]  # not used
    logits(model, batch)
    assert distribution_of(model) == UNIFORM


@pytest.mark.parametrize("histogram", ["own", "wrong"])
def test_a_client_without_counts_is_refused_where_an_evaluation_needs_them(histogram: str) -> None:
    message = rf"^adapter.histogram={histogram}: a client's data has no label_counts; allowed is uniform"
    client_aware = client_aware_modules(adapted(histogram=histogram))
    with pytest.raises(InputError, match=message), at_client(client_aware, job()):
        pass


@pytest.mark.parametrize("batch", [[], object(), None], ids=["an empty list", "an object", "nothing"])
def test_a_batch_of_another_kind_has_no_labels(batch: Any) -> None:
    network = next(sub for sub in adapted().modules() if isinstance(sub, HyperNetwork))
    network.enter_batch(batch)
    assert network.batch is None


# ---------------------------------------------------------------------------------------------- switches


@pytest.mark.parametrize(
    ("switch", "gone", "there"),
    [
        ("use_label", {"label.weight", "label.bias"}, set()),
        ("use_context", {"context.weight", "context.bias"}, set()),
        ("use_layer", {"e_layer"}, set()),
        ("factorise", {"f", "s"}, {"m"}),
        ("normalise", set(), set()),
    ],
)
def test_a_switch_takes_its_parameters_and_its_effect_away(switch: str, gone: set[str], there: set[str]) -> None:
    model, without = adapted().train(), adapted(**{switch: False}).train()
    names, left = (
        {n.rpartition(".c2a.")[2] for n, _ in m.named_parameters() if ".c2a." in n} for m in (model, without)
    )
    assert (names - left, left - names) == (gone, there)
    before = model.state_dict()
    without.load_state_dict({n: before[n] for n in without.state_dict() if n in before}, strict=False)
    assert not torch.allclose(logits(model, batch_of("bert")), logits(without, batch_of("bert")), atol=1e-3)


def test_without_the_layer_all_blocks_have_the_same_embedding_and_with_it_none() -> None:
    for use_layer in (True, False):
        made = next(s for s in adapted(use_layer=use_layer).modules() if isinstance(s, HyperNetwork)).eval()
        first, second = (made.embedding(layer, normal(2, 3, 16)) for layer in (0, 1))
        assert torch.equal(first, second) != use_layer


def test_the_uppermost_blocks_alone_have_embeddings_where_asked_for() -> None:
    model = adapted(layers="top2")
    shapes = {name: tuple(p.shape) for name, p in model.named_parameters() if ".c2a." in name}
    assert shapes["bert.encoder.layer.1.c2a.e_layer"] == (2, 2)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"rank": 0}, "adapter.rank=0: allowed is an integer >= 1"),
        ({"embedding": 0}, "adapter.embedding=0: allowed is an integer >= 1"),
        ({"factor": 0}, "adapter.factor=0: allowed is an integer >= 1"),
        ({"histogram": "mine"}, "adapter.histogram=mine: allowed is own, uniform, wrong, batch, null"),
        ({"label_source": "server"}, "adapter.label_source=server: allowed is batch, client"),
        ({"use_label": False, "use_context": False, "use_layer": False}, "adapter.use_layer=False: nothing is left"),
    ],
    ids=str,
)
def test_settings_without_meaning_are_refused(given: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=f"^{message}"):
        C2ASettings(**given)
