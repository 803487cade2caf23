"""Grade answers to questions of the synthetic world by its facts, the yardstick of rejection sampling.

Prints a JSON line {"prompt", "sample", "grade"} for each answer; a grade is from 0 to 1 (see grading.py). The world is
the one that make_world.py writes with seed 0.

Example:
    python examples/quickstart/grade_heldout.py runs/demo/world/questions_valid.jsonl \\
        runs/demo/rejection/round-00/heldout.start.jsonl
"""

import argparse
import json
from pathlib import Path

from grading import Grader
from world import build_world

from megatron_chimed.errors import exit_cleanly
from megatron_chimed.jsonl import read_json_lines


def main() -> None:
    """Grade the answers in a file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("questions", type=Path, help="the world's questions, whose ids the answers name")
    parser.add_argument("answers", type=Path, help="answers of rejection sampling")
    parser.add_argument("--size", type=float, default=1.0, help="of the world (1)")
    args = parser.parse_args()
    grader = Grader(build_world(seed=0, size=args.size))
    questions = {row["id"]: row["question"] for _, row in read_json_lines(args.questions)}
    for _, row in read_json_lines(args.answers):
        quality = grader.grade(questions[row["prompt"]], row["response"]).quality
        print(json.dumps({"prompt": row["prompt"], "sample": row["sample"], "grade": quality}))


if __name__ == "__main__":
    exit_cleanly(main)
