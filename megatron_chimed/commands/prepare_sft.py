"""Raw sources to dialogues for supervised fine-tuning: read, clean, redact, deduplicate, keep apart from evaluation."""

import argparse

from megatron_chimed.commands.common import add_preparation
from megatron_chimed.data.dialogue_readers import FORMS, READERS
from megatron_chimed.data.dialogue_worker import DialogueOptions
from megatron_chimed.data.dialogues import format_dialogue_report, prepare_dialogues

EXAMPLE = (
    """examples:
  chimed sft-data --source toyhom=raw/internal.csv --source cmd='raw/finetune/*.json' \\
      --source mc=raw/train.dialog --exclude raw/test.dialog --output runs/sft/dialogues.jsonl
  ... --source surgery:toyhom=raw/surgery.csv      the reader toyhom, counted as a source of its own
  ... --source mine:auto=raw/mine.jsonl            the form of each row is told by its fields

readers:
  """
    + ", ".join(READERS)
    + """

forms, by the fields of a row (docs/data.md has an example of each):
  """
    + "\n  ".join(f"{', '.join(names)}" for names in FORMS)
    + """
  with system and history or not; a message has role and content, or from and value
"""
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags."""
    add_preparation(parser, dedup="across all sources (near)")
    parser.add_argument("--exclude", action="append", default=[], metavar="FILE", help="evaluation set (13-grams)")
    parser.add_argument("--tokenizer", metavar="PATH", help="SentencePiece model or Hugging Face folder: counts tokens")


def run(args: argparse.Namespace) -> None:
    """Run the command."""
    content = prepare_dialogues(
        args.source,
        args.output,
        DialogueOptions(clean=args.clean, redact=args.redact, dedup=args.dedup),
        exclude=args.exclude,
        tokenizer_path=args.tokenizer,
        max_rejected_share=args.max_rejected_share,
        workers=args.workers,
    )
    print(format_dialogue_report(content))
    print(f"{args.output}: {content['rows']} dialogues of {content['input_rows']} rows")
