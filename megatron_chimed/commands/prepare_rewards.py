"""Raw sources to ranked answers for the reward model: read, clean, redact, deduplicate and split by question."""

import argparse

from megatron_chimed.commands.common import add_preparation
from megatron_chimed.data.ranking_readers import PROMPTS, READERS
from megatron_chimed.data.ranking_worker import RankingOptions
from megatron_chimed.data.rankings import format_ranking_report, prepare_rankings

EXAMPLE = (
    """examples:
  chimed reward-data --source cmd=raw/reward/train.json --output runs/rewards/ranked.jsonl
  chimed reward-data --source augmented:ranked=runs/rewards/augmented.jsonl --split 3800,100,100 \\
      --output runs/rewards/four.jsonl             writes four.train.jsonl, four.valid.jsonl and four.test.jsonl
  ... --source mine=raw/pairs.jsonl                a name of your own: the reader is found by the fields

readers, with the fields by which a row is known:
"""
    + "\n".join(f"  {name:12}{', '.join(reader.fields)}" for name, reader in READERS.items())
    + f"""

beside chosen and rejected stands the prompt, as {", ".join(PROMPTS)};
or it stands inside both: messages from the user's first on, or texts that begin with "Human:" (docs/data.md)
"""
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags."""
    add_preparation(parser, dedup="groups to keep one of (near)")
    parser.add_argument("--split", help="counts or shares of questions to train, validate and test: 3800,100,100")
    parser.add_argument("--seed", type=int, default=1234, help="which question is in which part (1234)")


def run(args: argparse.Namespace) -> None:
    """Run the command."""
    content = prepare_rankings(
        args.source,
        args.output,
        RankingOptions(clean=args.clean, redact=args.redact, dedup=args.dedup),
        split=args.split,
        seed=args.seed,
        max_rejected_share=args.max_rejected_share,
        workers=args.workers,
    )
    print(format_ranking_report(content))
    print(f"{args.output}: {content['rows']} groups of {content['input_rows']} rows")
