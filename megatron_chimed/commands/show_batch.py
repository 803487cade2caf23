"""Show a packed row as text: boundaries and what is to be learnt in colours, in the terminal or as an HTML page."""

import argparse
import os
import sys

from megatron_chimed.jsonl import atomic_output
from megatron_chimed.packing.packed_rows import PackedRows
from megatron_chimed.packing.show import packing_tokenizer, read_row, to_html, to_terminal

EXAMPLE = """examples:
  chimed show packed --row 3 | less -R
  chimed show packed --row 3 --html row3.html"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags."""
    parser.add_argument("folder", help="made by chimed pack sft")
    parser.add_argument("--row", type=int, default=0, help="from 0 (0)")
    parser.add_argument("--html", metavar="FILE", help="write a page instead")
    parser.add_argument("--tokenizer", help="the one that packed (default: where it was then)")
    parser.add_argument(
        "--color", choices=["auto", "always", "never"], default="auto", help="auto: where the output is a terminal"
    )


def run(args: argparse.Namespace) -> None:
    """Run the command."""
    packed = PackedRows(args.folder)
    segments, padding = read_row(packed, args.row, packing_tokenizer(packed, args.tokenizer))
    if args.html:
        with atomic_output(args.html) as file:
            file.write(to_html(segments, padding, f"{args.folder}, row {args.row} of {len(packed)}"))
        print(f"{args.html}: row {args.row} of {len(packed)}")
        return
    in_terminal = sys.stdout.isatty() and "NO_COLOR" not in os.environ
    print(to_terminal(segments, padding, args.color == "always" or (args.color == "auto" and in_terminal)))
