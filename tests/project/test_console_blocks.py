"""Every command of the documents' shell blocks is run as it stands, or only read, for a reason that stands here.

A command that is in neither list fails, and so does an entry that no document has. That the flags and paths of all
commands exist is checked by tests/guards. Chinese twins have the same blocks (tests/project/test_readme_twin.py).
"""

import json
from pathlib import Path

import pytest
from support.chat_templates import QWEN3, write_chat_tokenizer
from support.console import make_clone, shell, shell_blocks
from support.console_walk import STEPS
from support.exam_hf import write_answering_hf
from support.families import make_model

from megatron_chimed.text.jinja import record
from megatron_chimed.text.template import Template

pytestmark = pytest.mark.cpu
FIVE_STEPS = "# 1. The data: JSON lines"
PLAN = "chimed plan examples/ziya2_13b/model.yaml"
RUN = (FIVE_STEPS, PLAN, *STEPS)
"""What the blocks hold that are run: the first two below, the others in test_console_walk.py."""

ONLY_READ = {
    "make demo ": "minutes, and the whole of the tests",
    "make setup ": "the network; test_setup.py and test_wheel.py have both ways",
    "chimed train pretrain MODEL.yaml STAGE.yaml": "names stand for files of the reader's",
    "chimed rejection --config": "make demo runs it, and needs half of its time for it",
    "chimed evaluate --model hf:runs/mine/hf --name mine": "sets of others; test_published_sets.py has small ones",
    "lm_eval --model hf": "the same",
    "ray start --head": "it would stay on the machine; tests/test_workers.py has a cluster of its own",
    "sbatch --nodes=2": "a cluster of GPUs; tests/slurm runs the script on a real Slurm without",
    "LAUNCH='sbatch --wait": "the same, for days",
    "git clone https://github.com/NVIDIA/apex": "the network and nvcc",
    "python3.12 -m venv fresh": "the network",
}
"""What a block holds: why it is not run."""


def unlisted(blocks: list[str]) -> list[str]:
    """The blocks that no entry holds, by their first line, and the entries that no block has."""
    marks = [*RUN, *ONLY_READ]
    lost = [text.splitlines()[0] for text in blocks if not any(mark in text for mark in marks)]
    return lost + [mark for mark in marks if not any(mark in text for text in blocks)]


def test_every_block_is_run_or_has_a_reason_not_to_be():
    assert len(shell_blocks()) > 15
    assert not unlisted(shell_blocks())


def test_control_a_new_block_and_a_lost_one_are_reported():
    assert unlisted([*shell_blocks(), "chimed new\n"]) == ["chimed new"]
    assert unlisted([text for text in shell_blocks() if FIVE_STEPS not in text]) == [FIVE_STEPS]


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    return make_clone(tmp_path)


def five_steps(clone: Path) -> str:
    """The block, and 40 questions for it."""
    rows = [{"instruction": f"头痛{n}天怎么办？", "input": "", "output": f"第{n}步：多休息。"} for n in range(40)]
    (clone / "mine.jsonl").write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    (block,) = (text for text in shell_blocks() if FIVE_STEPS in text)
    assert "BASE=Qwen3-0.6B-Base\n" in block and "# 4. " in block
    return block


def template_of(packed: Path) -> str:
    """The name of the template that rows were packed with."""
    return json.loads((packed / "manifest.json").read_text())["template"]["name"]


def test_your_own_data_in_five_steps_with_forty_questions(clone):
    """The model is a small random one of Qwen3's shape, and fine-tuning has four steps; all else is as it stands."""
    base, block = clone / "Qwen3-0.6B-Base", five_steps(clone)
    write_chat_tokenizer(base, QWEN3, eos="<|im_end|>")
    shape = {"vocab_size": 720, "hidden_size": 64, "head_dim": 24, "num_hidden_layers": 2}
    make_model("Qwen3", shape | {"max_position_embeddings": 1024, "tie_word_embeddings": True}).save_pretrained(base)
    shorter = "--train-iters 4 --lr-decay-iters 4 --lr-warmup-iters 1 --eval-iters 1 --save runs/mine/sft"
    changed = block.replace("--save runs/mine/sft", shorter)
    assert changed != block
    shell(changed, clone, stdin="头痛怎么办？\n")
    mine = clone / "runs" / "mine"
    assert (mine / "hf" / "config.json").exists() and template_of(mine / "packed") == "qwen3"
    assert len((mine / "dialogues.jsonl").read_text().splitlines()) == 40


def test_the_demos_own_model_is_a_base_whose_template_is_found(clone):
    """Up to the packed rows; a folder as the demo leaves it, whose export says the template of its training."""
    base, block = clone / "runs" / "demo" / "hf", five_steps(clone)
    base.parent.mkdir(parents=True)
    write_answering_hf(base, 1024)
    (base / "chat_template.jinja").write_text(record(Template()), encoding="utf-8")
    shell(block.partition("# 4. ")[0].replace("BASE=Qwen3-0.6B-Base", "BASE=runs/demo/hf"), clone)
    assert template_of(clone / "runs" / "mine" / "packed") == "chimed"


@pytest.mark.parametrize("number", [0, 1], ids=["arithmetic", "dry run"])
def test_a_plan_prints_what_its_block_shows(clone, number):
    block = [text for text in shell_blocks() if PLAN in text and text.startswith("$ ")][number]
    command, *shown = block.splitlines()
    printed = shell(command.removeprefix("$ "), clone).splitlines()
    assert printed[: len(shown)] == shown
