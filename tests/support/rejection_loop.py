"""A tiny loop of rejection sampling for tests: models, data and a configuration in one folder."""

import os
import subprocess
from pathlib import Path

import yaml

from megatron_chimed.convert.checkpoint import hf_to_megatron
from megatron_chimed.packing.dialogues import DialogueRowOptions, pack_dialogues
from support.checkpoints import write_hf
from support.corpora import command
from support.dialogues import make_dialogues, make_renderer, write_dialogues
from support.forked import ON_CPU
from support.job import MODEL, ROOT, STAGE

ITERATIONS = 30
SHAPE = {"num_hidden_layers": 2, "hidden_size": 64, "intermediate_size": 160}


def write_world(folder: Path, heads: int = 4) -> dict:
    """Write models, dialogues, held-out questions and YAMLs; the settings of a loop over them, without its output.

    heads: of attention, each group of keys having two.
    """
    shape = SHAPE | {"num_attention_heads": heads, "num_key_value_heads": heads // 2}
    renderer = make_renderer("sentencepiece", folder)
    vocab = renderer.tokenizer.vocab_size
    for name, reward in (("start", False), ("reward", True)):
        hf = write_hf(folder / f"{name}.hf", reward=reward, vocab_size=vocab, **shape)
        hf_to_megatron(hf, folder / name, progress=False)
    dialogues = make_dialogues(60, most_turns=2, most_words=6)
    train = write_dialogues(folder / "train.jsonl", dialogues[:40])
    heldout = write_dialogues(folder / "heldout.jsonl", dialogues[40:])
    pack_dialogues([str(heldout)], folder / "heldout", renderer, DialogueRowOptions(128, progress=False))
    model = {key: value for key, value in MODEL.items() if key not in ("tokenizer-type", "vocab-size")}
    model |= {"num-attention-heads": heads, "num-query-groups": heads // 2}
    (folder / "model.yaml").write_text(yaml.safe_dump({"megatron": model | {"max-position-embeddings": 128}}))
    stage = {key: value for key, value in STAGE.items() if key != "split"} | {
        "seq-length": 128,
        "train-iters": ITERATIONS,
    }
    stage |= {"save-interval": 1, "eval-interval": 15, "valid-data-path": [str(folder / "heldout")]}
    (folder / "stage.yaml").write_text(yaml.safe_dump({"megatron": stage}))
    return {
        "start": str(folder / "start"), "reward": str(folder / "reward"),
        "tokenizer": str(folder / "sentencepiece/tokenizer.model"),
        "dialogues": [str(train)], "heldout": [str(heldout)], "drift": [str(heldout)],
        "model": str(folder / "model.yaml"), "stage": str(folder / "stage.yaml"),
        "rounds": 1, "seed": 5, "control": False,
        "prompts": {"count": 8}, "generator": {"batch_size": 4}, "scorer": {"batch_size": 4},
        "sampling": {"n": 4, "max_tokens": 24, "temperature": 0.5, "top_p": 0.9},
        "filters": {"keep_cut_off": True, "max_repetition": 1.0},
        "heldout_sampling": {"count": 6, "n": 1, "drift_count": 6},
        "training": {"launcher": str(ROOT / "launch/torchrun.sh"), "ranks": 1},
    }  # fmt: skip


def write_config(path: Path, settings: dict, **changes) -> Path:
    """A configuration whose output is the folder NAME beside NAME.yaml."""
    path.write_text(yaml.safe_dump({"output": str(path.with_suffix("")), **settings, **changes}))
    return path


def start(config: Path, *arguments) -> subprocess.Popen:
    """Start the command in a session of its own, output to CONFIG.log."""
    log = open(config.with_suffix(".log"), "ab")  # noqa: SIM115  the child's
    return subprocess.Popen(
        command("rejection_sampling.py", "--config", config, *arguments),
        cwd=ROOT, env=os.environ | ON_CPU, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True,
    )  # fmt: skip


def run(config: Path, *arguments, timeout: float = 240) -> None:
    """Run the command to its end; the test fails when it does."""
    assert start(config, *arguments).wait(timeout=timeout) == 0, config.with_suffix(".log").read_text()[-3000:]
