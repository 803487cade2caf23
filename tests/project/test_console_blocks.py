"""Every command of the documents' shell blocks is run as it stands, or only read, for a reason that stands here.

A command that is in neither list fails, and so does an entry that no document has. That the flags and paths of all
commands exist is checked by tests/guards. README.zh.md has the same blocks (tests/project/test_readme_twin.py).
"""

import json
from pathlib import Path

import pytest
from support.console import make_clone, shell, shell_blocks
from support.console_walk import STEPS
from support.exam_hf import write_answering_hf

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


def test_your_own_data_in_five_steps_with_ten_questions(clone):
    """The model is a small random one, and fine-tuning has four steps; all else is as it stands."""
    base = clone / "runs" / "demo" / "hf"
    base.parent.mkdir(parents=True)
    write_answering_hf(base, 1024)
    rows = [{"instruction": f"头痛{n}天怎么办？", "input": "", "output": f"第{n}步：多休息。"} for n in range(10)]
    (clone / "mine.jsonl").write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    (block,) = (text for text in shell_blocks() if FIVE_STEPS in text)
    shorter = "--train-iters 4 --lr-decay-iters 4 --lr-warmup-iters 1 --eval-iters 1 --save runs/mine/sft"
    changed = block.replace("--save runs/mine/sft", shorter)
    assert changed != block
    shell(changed, clone, stdin="头痛怎么办？\n")
    assert (clone / "runs" / "mine" / "hf" / "config.json").exists()
    assert len((clone / "runs" / "mine" / "dialogues.jsonl").read_text().splitlines()) == 10


@pytest.mark.parametrize("number", [0, 1], ids=["arithmetic", "dry run"])
def test_a_plan_prints_what_its_block_shows(clone, number):
    block = [text for text in shell_blocks() if PLAN in text and text.startswith("$ ")][number]
    command, *shown = block.splitlines()
    printed = shell(command.removeprefix("$ "), clone).splitlines()
    assert printed[: len(shown)] == shown
