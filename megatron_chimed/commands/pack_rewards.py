"""Pack ranked answers into rows of one length, for the reward model; the folder is reused when nothing has changed."""

import argparse

from megatron_chimed.commands.common import add_packing
from megatron_chimed.packing.ranking_worker import PAIRINGS
from megatron_chimed.packing.rankings import RankingRowOptions, format_ranking_rows, pack_rankings
from megatron_chimed.text.renderer import Renderer
from megatron_chimed.text.tokenizer import load_tokenizer
from megatron_chimed.text.tokenizer_template import open_template

EXAMPLE = """example:
  chimed pack rewards --input ranked.jsonl --tokenizer tokenizer.model --output packed"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags."""
    add_packing(parser, "ranked answers", "questions")
    parser.add_argument(
        "--pairing", choices=PAIRINGS, default=PAIRINGS[0], help="which answers of a question are compared (adjacent)"
    )
    parser.add_argument(
        "--one-question-per-row",
        action="store_true",
        help="the global batch then counts questions, not rows of several",
    )
    parser.add_argument("--shuffle-ranks", action="store_true", help="a control: ranks at random, nothing to be learnt")
    parser.add_argument(
        "--repeat-prompt",
        action="store_true",
        help="the prompt before each answer, for --transformer-impl transformer_engine; else it is read once",
    )


def run(args: argparse.Namespace) -> None:
    """Run the command."""
    renderer = Renderer(open_template(args.template, args.tokenizer), load_tokenizer(args.tokenizer))
    options = RankingRowOptions(
        args.sequence_length,
        args.seed,
        args.one_question_per_row,
        args.workers,
        pairing=args.pairing,
        shuffle_ranks=args.shuffle_ranks,
        shared_prompt=not args.repeat_prompt,
    )
    content = pack_rankings(args.input, args.output, renderer, options, tokenizer_path=args.tokenizer)
    print(f"{args.output}\n{format_ranking_rows(content)}")
