"""``flt.generate``: a run's models answer, in the form in which the run trained."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from causal_runs import causal_run, copied
from commands import finished_run, in_empty_folder

import flt
from flt.core.errors import InputError
from flt.inference.prompts import prompts_of_data
from flt.inference.text_generator import Sampling, TextGenerator
from flt.run.stored import read_run

WARM = {"temperature": 3.0, "seed": 4, "max_new_tokens": 6}


def test_a_prompt_is_put_into_the_run_s_template() -> None:
    run = causal_run("merged")
    text = "Q good book C very bad A"
    assert prompts_of_data(read_run(run).settings["data"]).fill({"prompt": "good book", "context": "very bad"}) == text
    found = flt.generate(run, {"prompt": "good book", "context": "very bad"}, **WARM)
    assert found == flt.generate(run, text, raw=True, **WARM) != ""
    assert found != flt.generate(run, "good book", **WARM)


def test_a_list_of_prompts_has_a_list_of_answers() -> None:
    prompts: list = ["good book", {"prompt": "bad film", "context": "not"}, "very"]
    found = flt.generate(causal_run("one"), prompts, max_new_tokens=4)
    assert found == [flt.generate(causal_run("one"), prompt, max_new_tokens=4) for prompt in prompts]
    assert flt.generate(causal_run("one"), prompts, max_new_tokens=4, batch_size=3) == found


@pytest.mark.parametrize(
    ("name", "models"), [("groups", ["group_1", "group_2"]), ("clients", ["client_0", "client_2"])]
)
def test_each_group_or_client_answers_with_its_own_adapter(name: str, models: list[str]) -> None:
    run = causal_run(name)
    with pytest.raises(InputError, match=r"^group=: the run has a model for each of them; allowed is \w+_\d, .*, all$"):
        flt.generate(run, "good")
    every = flt.generate(run, "good", group="all", **WARM)
    assert set(models) <= set(every)
    form = prompts_of_data(read_run(run).settings["data"])
    for model in models:
        generator = TextGenerator(run / "adapter" / model)
        (expected,) = generator.answer([form.fill({"prompt": "good"})], Sampling(3.0, seed=4, max_new_tokens=6))
        found = [flt.generate(run, "good", group=group, **WARM) for group in (model, model.rpartition("_")[2])]
        assert [*found, flt.generate(run / "adapter" / model, "good", **WARM)] == [every[model]] * 3
        assert every[model] == expected.text != ""


def test_an_export_away_from_its_run_has_a_chat_template_or_raw_prompts(tmp_path: Path) -> None:
    folder = tmp_path / "sent"
    shutil.copytree(causal_run("merged") / "model", folder)
    (folder / "chat_template.jinja").unlink(missing_ok=True)
    with pytest.raises(InputError, match=r"^raw=false: .* allowed is true, which takes the text as it is$"):
        flt.generate(folder, "good book")
    expected = flt.generate(causal_run("merged"), "good book", **WARM)
    assert flt.generate(folder, "Q good book A", raw=True, **WARM) == expected
    (folder / "chat_template.jinja").write_text("Q {{ messages[-1]['content'] }} A")
    assert flt.generate(folder, "good book", **WARM) == expected


def test_the_newest_run_is_last(tmp_path: Path) -> None:
    copied("one", tmp_path)
    found = flt.generate("last", "good", root=tmp_path / "lightning_logs", **WARM)
    assert found == flt.generate(causal_run("one"), "good", **WARM)


def no_tokenizer(run: Path) -> None:
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (run / "adapter" / name).unlink()


def broken_tokenizer(run: Path) -> None:
    (run / "adapter" / "tokenizer.json").write_text("{")


def endless_tokenizer(run: Path) -> None:
    for path in (run / "adapter").glob("tokenizer*.json"):
        about = json.loads(path.read_text())
        about.pop("eos_token", None)
        about.pop("pad_token", None)
        path.write_text(json.dumps(about))


def other_tokenizer(run: Path) -> None:
    path = run / "adapter" / "tokenizer.json"
    about = json.loads(path.read_text())
    about["model"]["vocab"] |= {f"more{number}": number for number in range(12, 40)}
    path.write_text(json.dumps(about))


def no_weights(run: Path) -> None:
    (run / "adapter" / "adapter_model.safetensors").unlink()


def cut_weights(run: Path) -> None:
    path = run / "adapter" / "adapter_model.safetensors"
    path.write_bytes(path.read_bytes()[:100])


def no_export(run: Path) -> None:
    shutil.rmtree(run / "adapter")


def damaged_settings(run: Path) -> None:
    (run / "config.yaml").write_text("data: [")


def no_data(run: Path) -> None:
    (run / "config.yaml").write_text("algo: fedit")


BROKEN: dict[Callable[[Path], None], str] = {
    no_tokenizer: "an older version exported it without its tokenizer",
    broken_tokenizer: "allowed is an export with a tokenizer that can be read",
    endless_tokenizer: "allowed is",
    other_tokenizer: "and the model's embedding has 12 rows",
    no_weights: "the tensors are missing",
    cut_weights: "allowed is",
    no_export: "resume=<its folder> goes on with it",
    damaged_settings: "a run with the config.yaml that flt wrote",
    no_data: "it has no section data",
}


@pytest.mark.parametrize("damage", BROKEN)
def test_an_incomplete_run_is_one_line(damage: Callable[[Path], None], tmp_path: Path) -> None:
    run = copied("one", tmp_path)
    damage(run)
    with pytest.raises(InputError) as caught:
        flt.generate(run, "good")
    assert BROKEN[damage] in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_classifier_writes_no_text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    in_empty_folder(tmp_path, monkeypatch)
    run = finished_run(tmp_path, "classifier")
    for place in (run, run / "adapter"):
        with pytest.raises(InputError, match="its data have no responses, so its model writes no text"):
            flt.generate(place, "good")
    shutil.copytree(run / "adapter", tmp_path / "sent")
    with pytest.raises(InputError, match=r"allowed is a run of a causal model"):
        flt.generate(tmp_path / "sent", "good", raw=True)


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        ({"group": "3"}, "group=3: there is no such model in this run; allowed is no group, as the run has"),
        ({"device": "cuda:9"}, "device=cuda:9: "),
        ({"batch_size": 0}, "batch_size=0: allowed is an integer >= 1"),
        ({"temperature": -1.0}, "temperature=-1.0: allowed is a number >= 0"),
        ({"set": "a"}, "set=a: allowed is nothing, as the run has one data set"),
    ],
)
def test_a_wrong_argument_is_one_line(arguments: dict, line: str) -> None:
    with pytest.raises(InputError) as caught:
        flt.generate(causal_run("one"), "good", **arguments)
    assert str(caught.value).startswith(line)


def test_an_export_away_from_its_run_answers_with_its_base_and_so_does_a_merged_model(tmp_path: Path) -> None:
    run = causal_run("one")
    shutil.copytree(run / "adapter", tmp_path / "sent")
    with pytest.raises(InputError, match="^base=None: its base was the folder gpt2, and the export doesn't say where"):
        flt.generate(tmp_path / "sent", "good")
    base = run.parents[2] / "gpt2"
    assert flt.generate(tmp_path / "sent", "good", base=base, **WARM) == flt.generate(run, "good", **WARM) != ""
    flt.merge(run, tmp_path / "merged", progress=False)
    assert flt.generate(tmp_path / "merged", "good", max_new_tokens=4) == flt.generate(run, "good", max_new_tokens=4)
