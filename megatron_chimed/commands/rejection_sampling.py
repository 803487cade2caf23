"""Rejection-sampling fine-tuning in rounds: prompts, generate, score, select, pack, train, evaluate_heldout, report.

The same command again continues, and does nothing that is done already.
"""

import argparse
import sys

from megatron_chimed.rejection.config import read_config
from megatron_chimed.rejection.loop import run_loop, status
from megatron_chimed.rejection.rounds import OLD_NAMES, STEPS

EXAMPLE = """examples:
  chimed rejection --config examples/quickstart/rejection.yaml
  ... --step score --round 1      one step of one round
  ... --status                    what is done, stale, partial or to do; changes nothing"""


def current_name(step: str) -> str:
    """A step's name, also of one that is given by its old name."""
    new = OLD_NAMES.get(step, step)
    if new != step:
        print(f"--step {step} is called {new} now; the old name works", file=sys.stderr)
    return new


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags."""
    parser.add_argument("--config", required=True, help="YAML of the loop")
    parser.add_argument("--step", type=current_name, choices=STEPS, help="only this step (all)")
    parser.add_argument("--round", type=int, help="only this round; 0 measures the starting checkpoint (all)")
    parser.add_argument("--status", action="store_true", help="print a table of the steps, and run nothing")


def run(args: argparse.Namespace) -> None:
    """Run the command."""
    config = read_config(args.config)
    if args.status:
        print(status(config))
    else:
        run_loop(config, args.step, args.round)
        print(config.output)
