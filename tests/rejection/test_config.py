"""The configuration of the loop: every fault in one line with its place, and the command's own refusals."""

import json
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml
from guards import docs, tree
from support.chatml import write_chatml
from support.corpora import call_here

from megatron_chimed.config import read_yaml
from megatron_chimed.errors import InputError
from megatron_chimed.judging.rubric import Rubrics
from megatron_chimed.rejection.config import REQUIRED, read_config, training_shape
from megatron_chimed.rejection.context import RoundContext
from megatron_chimed.rejection.loop import make_rounds
from megatron_chimed.rejection.steps import evaluate_heldout, report, score

JUDGE = {"engine": "judge", "rubric": "r.yaml", "model": "m", "base_url": "u/v1"}
LEAST = {name: ["x.jsonl"] if name in ("dialogues", "heldout") else "x" for name in REQUIRED}


def write(path, **changes):
    path.write_text(yaml.safe_dump({key: value for key, value in (LEAST | changes).items() if value is not None}))
    return path


def test_what_is_not_given_has_the_papers_or_a_plain_default(tmp_path):
    config = read_config(write(tmp_path / "c.yaml", sampling={"n": 3}))
    assert config.prompts.count == 10000 and config.generator.engine == "megatron" and config.paths.control
    assert (config.sampling.n, config.sampling.top_p, config.output.name) == (3, 1.0, "x")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sampling": {"n": 0}}, "sampling.n: expected 1 or more"),
        ({"sampling": {"top_p": 0.0, "temperature": -1}}, "sampling.temperature: .*; sampling.top_p: expected above 0"),
        ({"sampling": {"n": "x"}}, r"c.yaml:\d+: n: expected int, found 'x'"),
        ({"sampling": {"m": 1}}, r"c.yaml:\d+: unknown key 'm' in sampling:"),
        ({"sampling": 3}, r"c.yaml:\d+: sampling: holds 3; expected a mapping"),
        ({"rejection": 3}, r"c.yaml:\d+: unknown key 'rejection'; known here: .*; sections: prompts"),
        ({"generator": {"engine": "sglang"}}, r"c.yaml:\d+: engine: expected one of 'megatron', 'vllm', 'openai'"),
        ({"generator": {"engine": "openai", "base_url": [], "model": "m"}}, "generator.base_url: "),
        ({"generator": {"base_url": [1]}}, r"base_url: expected str \| list\[str\], found"),
        ({"generator": {"engine": "openai"}}, "generator.model: .*; generator.base_url: "),
        ({"selection": {"strategy": "best"}}, r"c.yaml:\d+: strategy: expected one of 'best_of_n'"),
        ({"start": None, "model": None}, "c.yaml: no start, no model; give the path"),
        ({"dialogues": "x.jsonl"}, r"c.yaml:\d+: dialogues: expected list"),
        ({"rounds": 0}, "rounds: expected 1 or more"),
        ({"scorer": {"engine": "llm"}}, r"c.yaml:\d+: engine: expected one of 'megatron', .*'judge', found 'llm'"),
        ({"scorer": {"engine": [1]}}, r"c.yaml:\d+: engine: expected one of"),
        ({"scorer": {"engine": "rules"}}, "scorer.command: expected a list of words"),
        (
            {"scorer": {"engine": "rules", "rubric": "r"}},
            r"unknown key 'rubric' in scorer of engine rules:; .*: command",
        ),
        ({"scorer": []}, r"c.yaml:\d+: scorer: holds a list; expected a mapping, or a list of mappings"),
        ({"scorer": "judge"}, r"c.yaml:\d+: scorer: holds 'judge'; expected a mapping"),
        ({"scorer": {"engine": "hf", "batch_size": 0}}, "scorer.batch_size: expected 1 or more"),
        ({"scorer": {"weight": float("nan")}}, "scorer.weight: expected a number"),
        ({"grader": {"engine": "judge"}}, "grader.rubric: .*; grader.model: .*; grader.base_url: expected a URL"),
        ({"grader": JUDGE | {"model": ["a", "a"]}}, "grader.model: expected one name or two"),
        ({"grader": JUDGE | {"model": ["a", "b", "c"]}}, "grader.model: expected one name or two"),
        ({"grader": JUDGE | {"base_url": ["u", "v"]}}, "grader.base_url: expected a URL with /v1, or one for each"),
        ({"grader": JUDGE | {"price_in": [1]}}, "grader.price_in, price_out: expected as many prices as models"),
        ({"grader": JUDGE | {"max_price": 5}}, "grader.max_price: expected 0 or more, with price_in, price_out"),
        ({"grader": JUDGE, "external_grader": ["x"]}, "c.yaml: external_grader and grader are two graders; keep one"),
        ({"reward": None, "grader": {"engine": "hf"}, "scorer": JUDGE}, "c.yaml: no reward; give the path"),
    ],
)
def test_a_fault_is_one_line_with_its_place(tmp_path, changes, message):
    with pytest.raises(InputError, match=message) as error:
        read_config(write(tmp_path / "c.yaml", **changes))
    assert "\n" not in str(error.value)


def test_scorers_are_one_or_several_with_weights_and_without_a_reward_model_no_reward_is_needed(tmp_path):
    rules = {"engine": "rules", "command": ["python", "rules.py"], "weight": 0.5}
    config = read_config(
        write(tmp_path / "c.yaml", reward=None, scorer=[JUDGE | {"price_in": [2], "price_out": [8.5]}, rules])
    )
    judge, command = config.scorer
    assert (judge.rubric, judge.judges, judge.weight, judge.price_in) == ("r.yaml", [("m", "u/v1")], 1.0, [2])
    assert (command.command, command.weight, config.grader) == (["python", "rules.py"], 0.5, ())
    written = json.loads(json.dumps(config.to_json()))
    assert [one["engine"] for one in written["scorer"]] == ["judge", "rules"] and written["grader"] == []
    two = read_config(write(tmp_path / "d.yaml", grader=JUDGE | {"model": ["a", "b"]})).grader[0]
    assert two.judges == [("a", "u/v1"), ("b", "u/v1")]
    own = {"engine": "hf", "reward": "y"}
    assert read_config(write(tmp_path / "e.yaml", reward=None, scorer=own)).scorer[0].files("") == [Path("y")]


def test_every_block_of_the_page_about_scorers_is_read(tmp_path):
    page, found = tree.read("docs/rejection.md"), []
    for _, language, text in docs.blocks(page):
        if language == "yaml":
            block = yaml.safe_load(text)
            found += list(block)
            if "criteria" in block:
                (tmp_path / "r.yaml").write_text(text)
                assert len(Rubrics.read(str(tmp_path / "r.yaml")).common) == 2
            else:
                read_config(write(tmp_path / "c.yaml", **block))
        elif language == "json":
            (tmp_path / "h.json").write_text(f"[{text}]")
            assert Rubrics.read(str(tmp_path / "h.json")).by_id.keys() == {"a1"}
            found.append("rubrics")
    assert sorted(found) == ["criteria", "grader", "rubrics", "scorer", "scorer", "scorer"]


def test_of_a_reward_model_alone_the_steps_are_made_from_what_they_always_were(tmp_path):
    renderer = SimpleNamespace(tokenizer=SimpleNamespace(fingerprint="t"), template=SimpleNamespace(fingerprint="u"))

    def settings(**scorer):
        ctx = RoundContext(read_config(write(tmp_path / "c.yaml", scorer=scorer)), renderer, 1)
        return score.settings(ctx), score.inputs(ctx), evaluate_heldout.settings(ctx)["scorer"], report.settings(ctx)

    told, inputs, heldout, reported = settings(engine="hf", batch_size=3)
    assert told == {"engine": "hf", "dtype": "float32", "tokenizer": "t", "template": "u"}
    assert inputs.keys() == {"candidates", "prompts", "reward"} and inputs["reward"] == [Path("x")]
    assert heldout == "hf" and reported.keys() == {"rule", "yardstick"}
    assert settings(engine="hf", weight=2.0)[0]["scorers"][0]["weight"] == 2.0
    script = tmp_path / "rules.py"
    script.write_text("")
    assert settings(engine="rules", command=["python", str(script)])[1]["scorers"] == [script]


@pytest.mark.parametrize(("think", "thinking"), [(None, "train"), (True, "drop"), (False, "mask")])
def test_the_template_and_what_becomes_of_thinking_are_those_of_the_configuration(tmp_path, think, thinking):
    folder = write_chatml(tmp_path / "tokenizer")
    changes = {"tokenizer": str(folder), "template": "qwen3", "think": think, "thinking": thinking}
    renderer = make_rounds(read_config(write(tmp_path / "c.yaml", **changes)))[0].renderer
    assert (renderer.template.name, renderer.template.think, renderer.thinking) == ("qwen3", think is True, thinking)
    with pytest.raises(InputError, match="^think: the template 'chatml' has no place for thinking; leave it out$"):
        make_rounds(read_config(write(tmp_path / "c.yaml", **changes | {"template": "chatml", "think": True})))


def test_the_shipped_recipe_is_the_papers_but_for_what_it_marks():
    path = tree.ROOT / "examples/quickstart/rejection_sft.yaml"
    given = {key: setting.value for key, setting in read_yaml(path)["megatron"].items()}
    paper = {"adam-beta1": 0.9, "adam-beta2": 0.95, "adam-eps": 1e-5, "weight-decay": 0.1}
    assert {key: float(given[key]) for key in paper} == paper
    for key, value in {"lr": "1e-5", "train-iters": "400", "global-batch-size": "64"}.items():
        assert re.search(rf"^  {key}: .* # paper: {value}\b", path.read_text(), re.M), key


def test_the_shape_of_the_training_comes_from_its_yamls(tmp_path):
    model, stage = tmp_path / "model.yaml", tmp_path / "stage.yaml"
    model.write_text("megatron: {max-position-embeddings: 512}")
    stage.write_text("megatron: {seq-length: 256}")
    shape = training_shape(str(model), str(stage))
    assert (shape.sequence_length, shape.max_positions) == (256, 512)
    stage.write_text("megatron: {lr: 1}")
    with pytest.raises(InputError, match="no number for seq-length"):
        training_shape(str(model), str(stage))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--config", "nowhere.yaml"], "nowhere.yaml: No such file or directory; give a YAML"),
        (["--config", "c.yaml"], "x: no such file or folder; give a SentencePiece .model file"),
    ],
)
def test_the_command_says_what_is_wrong_in_one_line(tmp_path, monkeypatch, arguments, message):
    write(tmp_path / "c.yaml")
    monkeypatch.chdir(tmp_path)
    done = call_here("rejection_sampling.py", *arguments)
    assert done.returncode == 1 and message in done.stderr and done.stderr.count("\n") == 1, done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["c.yaml"], "a folder was made for nothing"


@pytest.mark.real_processes
def test_the_command_starts_without_torch(tmp_path):
    code = "import sys, megatron_chimed.rejection.loop; print('torch' in sys.modules or 'openai' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout == "False\n", done.stderr
