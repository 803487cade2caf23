"""Train a SentencePiece BPE tokenizer with byte fallback; write its model and a Hugging Face folder of the same ids."""

import argparse

from megatron_chimed.text.tokenizer_training import train_tokenizer

EXAMPLE = """example:
  chimed tokenizer --input corpus/*.jsonl --json-key text --vocab-size 8000 --output runs/tokenizer
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags."""
    parser.add_argument("--input", nargs="+", required=True, help="files or globs: JSON lines or .txt, also .gz")
    parser.add_argument("--json-key", nargs="+", default=["text"], help="fields with text, for JSON lines (text)")
    parser.add_argument("--vocab-size", type=int, required=True, help="number of ids, with special tokens and bytes")
    parser.add_argument("--output", required=True, help="folder to write; it appears only when it is whole")
    parser.add_argument(
        "--character-coverage", type=float, default=0.9995, help="share of characters with an own piece (0.9995)"
    )
    parser.add_argument("--max-documents", type=int, default=1_000_000, help="sample larger inputs to this (1000000)")


def run(args: argparse.Namespace) -> None:
    """Run the command."""
    manifest = train_tokenizer(
        args.input,
        args.vocab_size,
        args.output,
        json_keys=args.json_key,
        character_coverage=args.character_coverage,
        max_documents=args.max_documents,
    )
    print(f"{args.output}: {args.vocab_size} pieces from {manifest['rows']} texts")
