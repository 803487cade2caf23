"""Flags that several commands have in common."""

import argparse
from pathlib import Path

from megatron_chimed.convert import trained_template
from megatron_chimed.inference.thinking import with_think
from megatron_chimed.text.template import Template, shipped_names
from megatron_chimed.workers import count_cores


def add_preparation(parser: argparse.ArgumentParser, dedup: str) -> None:
    """Add the flags by which raw sources are read and cleaned. dedup: the help of --dedup."""
    yes_or_no = argparse.BooleanOptionalAction
    parser.add_argument("--source", action="append", required=True, metavar="[LABEL:]READER=PATH", help="file or glob")
    parser.add_argument("--output", required=True, help="NAME.jsonl; report, rejected rows and manifest lie beside it")
    parser.add_argument("--dedup", choices=["none", "exact", "near"], default="near", help=dedup)
    parser.add_argument("--clean", action=yes_or_no, default=True, help="clean the text (yes)")
    parser.add_argument("--redact", action=yes_or_no, default=True, help="replace personal data by tags (yes)")
    parser.add_argument(
        "--max-rejected-share", type=float, default=0.01, help="malformed rows to bear, by source (0.01)"
    )
    add_workers(parser)


def add_packing(parser: argparse.ArgumentParser, records: str, packed: str) -> None:
    """Add the flags by which records are packed into rows. records, packed: what they and their samples are called."""
    parser.add_argument("--input", nargs="+", required=True, help=f"{records} as JSON lines, also .gz")
    parser.add_argument("--tokenizer", required=True, help="SentencePiece .model or Hugging Face folder")
    parser.add_argument("--sequence-length", type=int, default=4096, help="tokens of a row (4096)")
    parser.add_argument("--output", type=Path, required=True, help="folder to write; it appears only when it is whole")
    add_template(parser)
    parser.add_argument("--seed", type=int, default=1234, help=f"which {packed} of a length share a row (1234)")
    add_workers(parser)


def add_template(parser: argparse.ArgumentParser, default: str = "chimed") -> None:
    """Add --template. default: what it is without a word."""
    names = ", ".join(shipped_names())
    text = f"prompt format: {names}; a YAML; or tokenizer, the chat template of the tokenizer's folder ({default})"
    parser.add_argument("--template", metavar="NAME", help=text)


def add_answering(parser: argparse.ArgumentParser) -> None:
    """Add --template and --think, of commands that let a model answer."""
    add_template(parser, "that of the model's training, else chimed")
    parser.add_argument(
        "--think",
        action=argparse.BooleanOptionalAction,
        help="whether the model thinks first, in templates with thinking (as the template says)",
    )


def answering_template(args: argparse.Namespace) -> Template:
    """The template of `add_answering`'s flags. Raises InputError."""
    template = trained_template.choose(args.model or "", args.template, args.tokenizer, args.iteration)
    return with_think(template, args.think, "--think")


def add_workers(parser: argparse.ArgumentParser) -> None:
    """Add --workers."""
    parser.add_argument("--workers", type=int, default=count_cores(), help="processes (the number of cores)")
