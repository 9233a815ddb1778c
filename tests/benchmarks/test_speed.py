"""The speed benchmark: what the contestants train, how rounds are paired, and the lines that it prints."""

from __future__ import annotations

import dataclasses
import json
import sys
from pathlib import Path

import pytest
import torch
from benchmarks.speed import cases, curves, ours, page, pairing, plain, whole, workload
from benchmarks.speed.cases import Target, Verdict
from benchmarks.speed.contestant import Contestant, ContestantError, MissingError, Round
from benchmarks.speed.pairing import Ratio, Timed
from safetensors.torch import save_file

from flt.server.callback import FedCallback
from flt.server.client_sampling import FixedSize
from flt.server.federator import Federator

pytestmark = pytest.mark.slow  # whole runs and fits


SMALL = workload.Size(clients=5, cohort=3, steps=3, batch=4, length=8, rank=2, examples=8, shares=2, rounds=3)
ECHO = """
import sys
from pathlib import Path
import torch
from benchmarks.speed.protocol import Line
line = Line(Path(sys.argv[1]))
print("frameworks print")
while line.begin():
    line.end({"a": torch.full((2,), float(line.rounds))})
"""
TARGET = Target("one/other", "tiny", ("serial", "batched"), "flower", "wall", 0.85)


def calm(wall: float, cpu: float = 1.0) -> Round:
    return Round(wall, cpu, 0.0)


def disturbed(wall: float) -> Round:
    return Round(wall, 1.0, wall)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return workload.make(tmp_path_factory.mktemp("workload"), SMALL)


FROM_HERE = {"PYTHONPATH": str(cases.ROOT)}


def start(folder: Path, code: str) -> Contestant:
    its = Contestant("its", [sys.executable, "-c", code, str(folder)], folder / "its.log", FROM_HERE)
    its.start()
    return its


# ---------------------------------------------------------------------------------------------- the workload and plain


def test_a_workload_is_made_from_its_seed_alone(made: Path, tmp_path: Path) -> None:
    torch.manual_seed(123)
    again, other = workload.load(workload.make(tmp_path / "a", SMALL)), workload.make(tmp_path / "b", SMALL, seed=1)
    one = workload.load(made)
    assert torch.equal(one.order, again.order)
    assert all(torch.equal(one.start[name], again.start[name]) for name in one.start)
    assert all(torch.equal(one.frozen[name], again.frozen[name]) for name in one.frozen)
    assert not torch.equal(one.data["ids"], workload.load(other).data["ids"])


def test_every_pass_has_each_of_a_clients_examples_once() -> None:
    drawn = workload.batches(workload.share(3, SMALL), SMALL, 7)
    one, other = torch.cat([next(drawn), next(drawn)]), torch.cat([next(drawn), next(drawn)])
    assert sorted(one.tolist()) == sorted(other.tolist()) == workload.share(3, SMALL).tolist()
    assert one.tolist() != other.tolist()


def test_the_cohort_is_the_one_that_flt_draws() -> None:
    for round in range(5):
        assert workload.cohort(SMALL, 9, round) == FixedSize(SMALL.cohort)(range(SMALL.clients), 9, round)


def test_lora_changes_nothing_at_first_and_trains_alone(made: Path) -> None:
    given = workload.load(made)
    bare, (model, trained) = plain.encoder(given.config, given.frozen).eval(), given.model()
    ids, mask = given.data["ids"][:2], given.data["mask"][:2]
    model.eval()
    assert torch.equal(
        bare(input_ids=ids, attention_mask=mask).logits, model(input_ids=ids, attention_mask=mask).logits
    )
    assert sorted({name.rpartition(".")[2] for name in trained}) == ["bias", "lora_A", "lora_B", "weight"]
    frozen = {name: its.clone() for name, its in model.state_dict().items() if name not in trained}
    plain.train(model.train(), trained, given.data, given.order[0, 0], given.hyper)
    assert all(torch.equal(its, model.state_dict()[name]) for name, its in frozen.items())
    assert all(not torch.equal(its, given.start[name]) for name, its in trained.items())


def test_the_mean_of_updates() -> None:
    assert plain.mean([{"a": torch.tensor([1.0])}, {"a": torch.tensor([4.0])}])["a"].tolist() == [2.5]


# ------------------------------------------------------------------------------------------------------- the protocol


def test_a_contestant_runs_a_round_when_asked_and_says_what_it_took(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(cases.ROOT)  # the contestant imports the benchmarks
    its = start(tmp_path, ECHO)
    try:
        its.ready()
        rounds = [its.round(), its.round()]
    finally:
        its.stop()
    assert all(0 < round.wall < 5 and round.peak_mb > 10 for round in rounds)
    assert pairing.furthest(rounds[0].weights, rounds[1].weights) == 1
    assert "frameworks print" in its.log.read_text()


def test_one_that_ends_shows_the_end_of_its_log(tmp_path: Path) -> None:
    its = start(tmp_path, "raise SystemExit('no luck')")
    with pytest.raises(ContestantError, match="no luck"):
        its.ready()
    its.stop()


def test_one_that_is_missing_says_why_and_the_others_go_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(cases.ROOT)  # as above
    code = "import json; print(json.dumps({'missing': 'engine=batched'}))"
    absent = Contestant("absent", [sys.executable, "-c", code], tmp_path / "absent.log")
    nowhere = Contestant("nowhere", [str(tmp_path / "no-python")], tmp_path / "nowhere.log")
    there = Contestant("there", [sys.executable, "-c", ECHO, str(tmp_path)], tmp_path / "there.log", FROM_HERE)
    why: dict[str, str] = {}
    with cases.started([absent, nowhere, there], why) as ready:
        assert list(ready) == ["there"]
    assert "engine=batched" in why["absent"]
    assert "no-python" in why["nowhere"]
    assert there.process.poll() is not None
    with pytest.raises(MissingError):
        start(tmp_path, code).ready()


def test_one_that_ends_in_a_round_is_missing_with_the_end_of_its_log(tmp_path: Path) -> None:
    code = "import sys; print('{\"ready\": 0}', flush=True); input(); sys.exit('out of paper')"
    its, why = Contestant("its", [sys.executable, "-c", code], tmp_path / "its.log"), dict[str, str]()
    with cases.started([its], why) as there:
        assert cases.going(there, why, lambda those: pairing.run(those, 1)) is None
        assert cases.going(there, why, lambda those: pairing.run(those, 1)) is None  # nor is it asked again in vain
    assert why


def test_a_first_round_without_a_peer_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cases, "ROOT", tmp_path)  # where there is no .bench
    monkeypatch.setattr(whole, "sorted", lambda names, reverse: ["flower"], raising=False)
    verdict = whole.first_round(tmp_path, tmp_path / "first", 1)
    assert verdict.word == "missing"
    assert "flower" in verdict.said


# -------------------------------------------------------------------------------------------------------- the pairing


def test_a_ratio_is_the_median_of_pairs_and_leaves_disturbed_ones_out() -> None:
    ones = [calm(2), calm(6), calm(3), disturbed(90), calm(1)]
    others = [calm(1), calm(2), calm(3), calm(1), disturbed(90)]
    assert pairing.ratio(ones, others, "wall") == Ratio(2.0, 1.0, 3.0, 3, 2, False)


def test_with_too_few_undisturbed_pairs_all_count_and_that_is_said() -> None:
    its = pairing.ratio([disturbed(4), calm(2), calm(2)], [calm(1)] * 3, "wall")
    assert its == Ratio(2.0, 2.0, 4.0, 3, 0, True)
    assert "disturbed" in str(Verdict("its", its, 3.0))


def test_a_round_is_disturbed_by_a_tenth_of_a_core() -> None:
    assert not Round(1.0, 1.0, 0.12).disturbed
    assert Round(1.0, 1.0, 0.14).disturbed


def test_rounds_are_run_in_turn_and_checked_first(tmp_path: Path) -> None:
    called: list[str] = []

    class Fake:
        def __init__(self, name: str, value: float) -> None:
            self.name, self.path = name, str(tmp_path / f"{name}.safetensors")
            save_file({"a": torch.tensor([value])}, self.path)

        def round(self, number: int = 0) -> Round:
            called.append(self.name)
            return Round(1.0, 1.0, 0.0, 0.0, self.path)

    fakes = {"one": Fake("one", 1.0), "two": Fake("two", 1.5)}
    timed = pairing.compare(fakes, "one", 4)  # type: ignore[arg-type]  # two fakes
    assert timed.differences == {"one": 0.0, "two": 0.5}
    assert [len(rounds) for rounds in timed.rounds.values()] == [4, 4]
    assert called[:4] == ["one", "one", "two", "two"]
    assert all({*called[i : i + 2]} == {*fakes} for i in range(4, len(called), 2))


def test_weights_of_other_names_are_infinitely_far(tmp_path: Path) -> None:
    save_file({"a": torch.ones(1)}, tmp_path / "a")
    save_file({"b": torch.ones(1)}, tmp_path / "b")
    assert pairing.furthest(str(tmp_path / "a"), str(tmp_path / "b")) == float("inf")


# ---------------------------------------------------------------------------------------------------------- the lines


def verdict_of(timed: Timed, why: dict[str, str] | None = None) -> Verdict:
    return cases.verdict(TARGET, [(("hand",), Timed({}, {})), (("serial", "batched", "flower"), timed)], why or {})


def test_every_target_is_in_one_turn_of_its_size() -> None:
    for target in cases.TARGETS:
        wanted = {*target.ones, target.other}
        assert any(wanted <= set(names) for names, _ in cases.IN_TURN[target.size])


def test_the_fastest_engine_is_compared() -> None:
    rounds = {"serial": [calm(4)] * 3, "batched": [calm(2)] * 3, "flower": [calm(4)] * 3}
    line = verdict_of(Timed(rounds, {"serial": 1.0, "batched": 1e-7, "flower": 1e-6}))
    assert str(line).split()[:5] == ["one/other", "0.500", "0.85", "ok", "1.0e-06"]
    assert "batched" in line.said


def test_a_missing_peer_and_an_engine_that_is_not_there_yet() -> None:
    line = verdict_of(Timed({"serial": [calm(4)] * 3}, {"serial": 0.0}), {"flower": "missing: no file"})
    assert (line.word, line.wrong) == ("missing", False)
    assert "flower: missing: no file" in str(line)
    rounds = {"serial": [calm(4)] * 3, "flower": [calm(4)] * 3}
    line = verdict_of(Timed(rounds, {"serial": 0.0, "flower": 0.0}))
    assert (line.word, line.said) == ("OVER", "serial, without batched")


@pytest.mark.parametrize("difference", [1e-4, float("nan")])
def test_weights_that_differ_make_a_line_wrong_however_fast(difference: float) -> None:
    assert Verdict("its", Ratio(0.1, 0.1, 0.1, 3, 0, False), 1.0, difference).word == "WRONG"


# ----------------------------------------------------------------------------------------------------------- the page


def test_the_page_gets_what_was_measured_and_keeps_the_rest(tmp_path: Path) -> None:
    marks = "\n".join(
        f"<!-- made by make bench: {it} -->\nold\n<!-- end of {it} -->" for it in ("made", "ratios", "tiny")
    )
    (tmp_path / "performance.md").write_text(f"prose\n{marks}\nmore prose\n")
    page.publish({"lines": {"a": "a line"}, "curves": []}, tmp_path)
    text = (tmp_path / "performance.md").read_text()
    assert text.startswith("prose\n")
    assert "```\na line\n```" in text
    assert text.count("old") == 1
    page.publish({"tiny": [["hand", 1.0, 2.0, 0.0]]}, tmp_path)
    assert json.loads((tmp_path / "performance.json").read_text())["lines"] == {"a": "a line"}
    assert "| hand-written loop | 1.00 | 2.00 | 0.0e+00 |" in (tmp_path / "performance.md").read_text()


def test_the_curves_are_drawn(tmp_path: Path) -> None:
    points = [
        dataclasses.asdict(curves.Point(curve, at, "serial", 1.0, 1.0, 300.0, 0.0))
        for curve, places in curves.CURVES.items()
        for at in places
    ]
    page.draw(points, tmp_path / "its.png")
    assert (tmp_path / "its.png").read_bytes().startswith(b"\x89PNG")
    assert (
        page.sections({"command": "", "hardware": "", "versions": {}, "curves": points})["curves"].count("10,000") == 1
    )


# ---------------------------------------------------------------------------------------------- flt and the plain loop


def test_what_flt_trains_has_the_bits_of_the_plain_loop(made: Path, tmp_path: Path) -> None:
    given = workload.load(made)
    model, trained = given.model()
    weights = given.start
    found = []

    class Seen(FedCallback):
        def on_round_end(self, federator: Federator) -> None:
            found.append(ours.by_plain_names(federator.state.groups[0].weights))

    ours.fit(given, tmp_path, ["engine=serial"], 2, [Seen()])
    for round in range(2):
        updates = []
        for order in given.order[round]:
            plain.put(trained, weights)
            plain.train(model, trained, given.data, order, given.hyper)
            updates.append({name: parameter.detach().clone() for name, parameter in trained.items()})
        weights = plain.mean(updates)
        assert {*found[round]} == {*weights}
        assert all(torch.equal(its, weights[name]) for name, its in found[round].items())


@pytest.mark.slow
def test_rounds_of_flt_have_the_bits_of_the_hand_written_loops(made: Path, tmp_path: Path) -> None:
    both = [cases.contestant(name, made, tmp_path) for name in (cases.REFERENCE, "serial")]
    with cases.started(both, {}) as there:
        timed = pairing.compare(there, cases.REFERENCE, 1)
    assert timed.differences == {cases.REFERENCE: 0.0, "serial": 0.0}
