"""The configuration of the loop: every fault in one line with its place, and the command's own refusals."""

import re
import subprocess
import sys

import pytest
import yaml
from guards import tree
from support.chatml import write_chatml
from support.corpora import call_here

from megatron_chimed.config import read_yaml
from megatron_chimed.errors import InputError
from megatron_chimed.rejection.config import REQUIRED, read_config, training_shape
from megatron_chimed.rejection.loop import make_rounds

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
    ],
)
def test_a_fault_is_one_line_with_its_place(tmp_path, changes, message):
    with pytest.raises(InputError, match=message) as error:
        read_config(write(tmp_path / "c.yaml", **changes))
    assert "\n" not in str(error.value)


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


def test_the_command_starts_without_torch(tmp_path):
    code = "import sys, megatron_chimed.rejection.loop; print('torch' in sys.modules or 'openai' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout == "False\n", done.stderr
