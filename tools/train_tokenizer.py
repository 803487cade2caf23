"""Train a SentencePiece BPE tokenizer with byte fallback; write its model and a Hugging Face folder of the same ids."""

import argparse

from megatron_chimed.errors import exit_cleanly
from megatron_chimed.text.tokenizer_training import train_tokenizer

EXAMPLE = """example:
  python tools/train_tokenizer.py --input corpus/*.jsonl --json-key text --vocab-size 8000 --output runs/tokenizer
"""


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EXAMPLE, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--input", nargs="+", required=True, help="files or globs: JSON lines or .txt, also .gz")
    parser.add_argument("--json-key", nargs="+", default=["text"], help="fields with text, for JSON lines (text)")
    parser.add_argument("--vocab-size", type=int, required=True, help="number of ids, with special tokens and bytes")
    parser.add_argument("--output", required=True, help="folder to write; it appears only when it is whole")
    parser.add_argument(
        "--character-coverage", type=float, default=0.9995, help="share of characters with an own piece (0.9995)"
    )
    parser.add_argument("--max-documents", type=int, default=1_000_000, help="sample larger inputs to this (1000000)")
    options = parser.parse_args()
    manifest = train_tokenizer(
        options.input,
        options.vocab_size,
        options.output,
        json_keys=options.json_key,
        character_coverage=options.character_coverage,
        max_documents=options.max_documents,
    )
    print(f"{options.output}: {options.vocab_size} pieces from {manifest['rows']} texts")


if __name__ == "__main__":
    exit_cleanly(main)
