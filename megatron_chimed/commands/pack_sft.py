"""Pack dialogues into rows of one length, for supervised fine-tuning; the folder is reused when nothing has changed."""

import argparse

from megatron_chimed.commands.common import add_packing
from megatron_chimed.packing.dialogues import DialogueRowOptions, format_dialogue_rows, pack_dialogues
from megatron_chimed.packing.examples import MODES
from megatron_chimed.text.renderer import THINKING, Renderer
from megatron_chimed.text.tokenizer import load_tokenizer
from megatron_chimed.text.tokenizer_template import open_template

EXAMPLE = """example:
  chimed pack sft --input dialogues.jsonl --tokenizer tokenizer.model --sequence-length 4096 --output packed"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags."""
    add_packing(parser, "dialogues", "samples")
    parser.add_argument(
        "--mode",
        choices=MODES,
        default=MODES[0],
        help="loss on all answers of a dialogue, or one instance each, or on the last answer alone (whole)",
    )
    parser.add_argument(
        "--thinking",
        choices=THINKING,
        default=THINKING[0],
        help="what an answer's thinking is: learnt, in the row without loss, or left out (train)",
    )


def run(args: argparse.Namespace) -> None:
    """Run the command."""
    renderer = Renderer(open_template(args.template, args.tokenizer), load_tokenizer(args.tokenizer), args.thinking)
    options = DialogueRowOptions(args.sequence_length, args.seed, workers=args.workers, mode=args.mode)
    content = pack_dialogues(args.input, args.output, renderer, options, tokenizer_path=args.tokenizer)
    print(f"{args.output}\n{format_dialogue_rows(content)}")
