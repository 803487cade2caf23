"""Pack dialogues into rows of one length, for supervised fine-tuning; the folder is reused when nothing has changed."""

import argparse
import os
from pathlib import Path

from megatron_chimed.packing.dialogues import DialogueRowOptions, format_dialogue_rows, pack_dialogues
from megatron_chimed.packing.examples import MODES
from megatron_chimed.text.template import Renderer, load_template
from megatron_chimed.text.tokenizer import load_tokenizer

EXAMPLE = """example:
  chimed pack sft --input dialogues.jsonl --tokenizer tokenizer.model --sequence-length 4096 --output packed"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags."""
    parser.add_argument("--input", nargs="+", required=True, help="dialogues as JSON lines, also .gz")
    parser.add_argument("--tokenizer", required=True, help="SentencePiece .model or Hugging Face folder")
    parser.add_argument("--sequence-length", type=int, default=4096, help="tokens of a row (4096)")
    parser.add_argument("--output", type=Path, required=True, help="folder to write; it appears only when it is whole")
    parser.add_argument("--template", help="YAML of a template (chimed, the released model's)")
    parser.add_argument(
        "--mode",
        choices=MODES,
        default=MODES[0],
        help="loss on all answers of a dialogue, or one instance each, or on the last answer alone (whole)",
    )
    parser.add_argument("--seed", type=int, default=1234, help="which samples of a length share a row (1234)")
    parser.add_argument("--workers", type=int, default=os.cpu_count(), help="processes (the number of cores)")


def run(args: argparse.Namespace) -> None:
    """Run the command."""
    renderer = Renderer(load_template(args.template), load_tokenizer(args.tokenizer))
    options = DialogueRowOptions(args.sequence_length, args.seed, workers=args.workers, mode=args.mode)
    content = pack_dialogues(args.input, args.output, renderer, options, tokenizer_path=args.tokenizer)
    print(f"{args.output}\n{format_dialogue_rows(content)}")
