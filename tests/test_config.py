"""Configuration files: what is merged, what is refused, and how the refusal reads."""

import argparse

import pytest

from megatron_chimed.config import Located, load_settings, parse_dataclass, parse_overrides, read_yaml
from megatron_chimed.errors import InputError
from megatron_chimed.models.options import ModelOptions
from megatron_chimed.stages.options import PretrainConfig
from megatron_chimed.training.arguments import to_argv, with_defaults
from megatron_chimed.training.options import JobOptions


@pytest.fixture
def parser():
    """A parser with options of the kinds that Megatron's has."""
    parser = argparse.ArgumentParser(allow_abbrev=False)
    parser.add_argument("--num-layers", type=int)
    parser.add_argument("--lr", type=float)
    parser.add_argument("--bf16", action="store_true")
    parser.add_argument("--no-rope-fusion", action="store_false", dest="rope_fusion")
    parser.add_argument("--data-path", nargs="*")
    parser.add_argument("--lr-decay-style", choices=["constant", "cosine"])
    parser.add_argument("--override-opt_param-scheduler", action="store_true")
    return parser


def settings(**values):
    return {
        key.replace("_", "-"): Located(value, f"stage.yaml:{n}") for n, (key, value) in enumerate(values.items(), 1)
    }


def write(path, text):
    path.write_text(text, encoding="utf-8")
    return path


def test_two_files_and_the_command_line_are_merged(tmp_path):
    model = write(tmp_path / "model.yaml", "megatron:\n  num_layers: 2\nchimed:\n  attention: sdpa\n")
    stage = write(tmp_path / "stage.yaml", "megatron:\n  lr: 1e-4\nchimed:\n  isolate_documents: true\n")
    merged = load_settings(model, stage, ["--lr", "2e-4", "--data-path", "a", "b"])
    assert {key: setting.value for key, setting in merged.megatron.items()} == {
        "num-layers": 2,
        "lr": "2e-4",
        "data-path": ["a", "b"],
    }
    options, config = parse_dataclass(merged.chimed, ModelOptions, PretrainConfig)
    assert options == ModelOptions(attention="sdpa")
    assert config == PretrainConfig(isolate_documents=True)


def test_validation_sets_of_the_command_line_replace_those_of_the_files(tmp_path):
    model = write(tmp_path / "model.yaml", "megatron:\n  num_layers: 2\n")
    stage = write(tmp_path / "stage.yaml", "chimed:\n  valid: {general: a}\n")
    (job,) = parse_dataclass(load_settings(model, stage, ["--valid", "x=b=c", "y=d"]).chimed, JobOptions)
    assert job.valid == {"x": "b=c", "y": "d"}
    for words in (["x"], ["x="], ["=a"], [], ["x=a", "x=b"]):
        with pytest.raises(InputError, match="command line --valid: expected NAME=PATH, each name once, found"):
            load_settings(model, stage, ["--valid", *words])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("megatron:\n  lr: 1\n  lr: 2\n", "stage.yaml:3: key 'lr' is given twice (first at {}/stage.yaml:2)"),
        ("megatron:\n  train-iters: 1\n  train_iters: 2\n", "stage.yaml:3: key 'train-iters' is given twice"),
        ("megatron:\n  num-layers: 3\n", "stage.yaml:2: key 'num-layers' is given twice (first at {}/model.yaml:2)"),
        ("model:\n  lr: 1\n", "stage.yaml:1: unknown block 'model'"),
        ("megatron: 3\n", "stage.yaml:1: block megatron: holds 3; expected a mapping"),
        ("megatron:\n  lr: [1\n", "stage.yaml:3: not YAML"),
        ("- a\n", "stage.yaml: expected a mapping"),
        ("megatron: &a\n  lr: 1\nchimed:\n  <<: *a\n", "stage.yaml:4: merge keys (<<) are not supported"),
        ("megatron:\n  ? [a]\n  : 1\n", "stage.yaml: a key must be a word"),
    ],
)
def test_a_bad_file_is_refused_with_its_place(tmp_path, text, message):
    model = write(tmp_path / "model.yaml", "megatron:\n  num-layers: 2\n")
    stage = write(tmp_path / "stage.yaml", text)
    with pytest.raises(InputError) as refusal:
        load_settings(model, stage, [])
    assert message.format(tmp_path) in str(refusal.value)
    assert "\n" not in str(refusal.value)


def test_files_that_are_no_text_are_refused(tmp_path):
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe\x00")
    for name in ("binary.yaml", "missing.yaml"):
        with pytest.raises(InputError, match=name):
            read_yaml(tmp_path / name)


@pytest.mark.parametrize(
    ("block", "message"),
    [
        ({"isolate_document": True}, "unknown key 'isolate_document' in chimed:; known here: attention"),
        ({"isolate_documents": "yes"}, "isolate_documents: expected bool, found 'yes'"),
        ({"isolate_documents": 1}, "isolate_documents: expected bool, found 1"),
        ({"attention": "fast"}, "attention: expected one of 'auto', 'flash', 'varlen', 'sdpa', 'flex', found 'fast'"),
        ({"lora": 3}, "lora: holds 3; expected a mapping of rank, alpha, targets, dropout, rslora, seed"),
        ({"lora": [{"rank": 3}]}, "lora: holds a list; expected a mapping of rank, alpha"),
    ],
)
def test_our_own_keys_are_checked(block, message):
    with pytest.raises(InputError) as refusal:
        parse_dataclass(
            {key: Located(value, "stage.yaml:1") for key, value in block.items()}, ModelOptions, PretrainConfig
        )
    assert str(refusal.value).startswith("stage.yaml:1: ") and message in str(refusal.value)


def test_a_key_given_twice_on_the_command_line_is_refused():
    with pytest.raises(InputError, match="--lr is given twice"):
        parse_overrides(["--lr", "1", "--lr", "2"])


@pytest.mark.parametrize(
    ("text", "overrides", "left"),
    [
        (
            "train-data-path: [a]\n  valid-data-path: [b]",
            ["--data-path", "c", "--split", "1,1,0"],
            {"data-path", "split"},
        ),
        ("data-path: a\n  split: 1,1,0", ["--train-data-path", "c"], {"train-data-path"}),
        ("train-iters: 3\n  lr-decay-iters: 3", ["--train-samples", "9"], {"train-samples"}),
        ("train-iters: 3\n  lr-decay-iters: 3", ["--train-iters", "9"], {"train-iters", "lr-decay-iters"}),
    ],
)
def test_the_command_line_replaces_the_alternatives_of_its_keys(tmp_path, text, overrides, left):
    model = write(tmp_path / "model.yaml", "megatron:\n")
    stage = write(tmp_path / "stage.yaml", f"megatron:\n  {text}\n")
    assert set(load_settings(model, stage, overrides).megatron) == left


def test_a_word_before_the_first_key_is_refused():
    with pytest.raises(InputError, match="unexpected 'pretrain.yaml'"):
        parse_overrides(["pretrain.yaml", "--lr", "1"])


def test_settings_become_the_words_of_the_parser(parser):
    given = settings(num_layers=2, lr="1e-4", bf16=True, no_rope_fusion=False, data_path=["a", "b"])
    given["override-opt-param-scheduler"] = Located(True, "here")  # upstream's name has an underscore
    parsed = parser.parse_args(to_argv(given, parser))
    assert vars(parsed) == {
        "num_layers": 2,
        "lr": 1e-4,
        "bf16": True,
        "rope_fusion": True,
        "data_path": ["a", "b"],
        "lr_decay_style": None,
        "override_opt_param_scheduler": True,
    }


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"num_layer": 2}, "Megatron has no argument 'num-layer'"),
        ({"num_layers": 2.5}, "--num-layers expects int, found 2.5"),
        ({"num_layers": True}, "--num-layers expects int, found True"),
        ({"num_layers": [1, 2]}, "--num-layers takes one value, found 2"),
        ({"lr": "fast"}, "--lr expects float, found 'fast'"),
        ({"lr": None}, "--lr expects float, found None"),
        ({"bf16": 1}, "--bf16 is a flag; expected true or false, found 1"),
        ({"lr_decay_style": "linear"}, "--lr-decay-style is one of constant, cosine; found 'linear'"),
        ({"data_path": []}, "--data-path takes"),
    ],
)
def test_a_wrong_argument_is_refused_with_its_place(parser, given, message):
    with pytest.raises(InputError) as refusal:
        to_argv(settings(**given), parser)
    assert str(refusal.value).startswith("stage.yaml:1: ") and message in str(refusal.value)


def test_a_default_yields_to_any_name_of_its_argument(parser):
    parser.add_argument("--rope-fusion", action="store_true", dest="rope_fusion")
    merged = with_defaults(settings(rope_fusion=True), {"no-rope-fusion": True, "lr": 0.1}, parser)
    assert {key: setting.value for key, setting in merged.items()} == {"lr": 0.1, "rope-fusion": True}


def test_a_flag_is_switched_off_from_the_command_line(parser):
    merged = settings(bf16=True) | parse_overrides(["--bf16", "false"])
    assert to_argv(merged, parser) == []
