"""Convert weights between a Hugging Face folder and a Megatron checkpoint, tensor by tensor. No GPU, little memory.

The optimizer's state is not converted: a converted checkpoint is a start, not a continuation.
"""

import argparse

from megatron_chimed.backend.quiet import fast_imports
from megatron_chimed.errors import InputError

EXAMPLE = """examples:
  chimed convert hf-to-megatron --hf Ziya2-13B-Base --megatron runs/ziya2
  chimed convert hf-to-megatron --hf Qwen3-8B-Base --megatron runs/qwen3 --dtype bfloat16
  chimed convert megatron-to-hf --megatron runs/sft --hf runs/sft-hf --tokenizer Ziya2-13B-Base
  chimed convert megatron-to-hf --megatron runs/sft --hf runs/sft-hf --iteration 400 \\
      --max-shard-size 2GB
  chimed convert megatron-to-hf --megatron runs/lora --hf runs/lora-peft
  chimed convert megatron-to-hf --megatron runs/lora --hf runs/lora-hf --merge
  chimed convert hf-to-megatron --hf runs/lora-peft --base runs/qwen3 --megatron runs/lora
each command has its own --help; the families of models that are served: docs/families.md
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags."""
    form = {"epilog": EXAMPLE, "formatter_class": argparse.RawDescriptionHelpFormatter}
    commands = parser.add_subparsers(dest="command", required=True)
    to_megatron = commands.add_parser("hf-to-megatron", help="Hugging Face folder to torch_dist checkpoint", **form)
    to_megatron.add_argument("--hf", required=True, help="folder with config.json and weights, or of PEFT's adapters")
    to_megatron.add_argument("--megatron", required=True, help="folder to make, for --load")
    to_megatron.add_argument("--base", help="of adapters: folder of the Megatron checkpoints that they belong to")
    to_megatron.add_argument("--dtype", choices=["bfloat16", "float32", "keep"], default="keep", help="of the result")
    to_hf = commands.add_parser("megatron-to-hf", help="torch_dist checkpoint to Hugging Face folder", **form)
    to_hf.add_argument("--megatron", required=True, help="what a training was told to --save to, or BASE+ADAPTER")
    to_hf.add_argument("--hf", required=True, help="folder to make")
    to_hf.add_argument("--iteration", type=int, help="which checkpoint (the newest)")
    to_hf.add_argument("--tokenizer", help="folder or SentencePiece model (the one of the training)")
    to_hf.add_argument("--merge", action="store_true", help="of LoRA's adapters and their base make one model")
    to_hf.add_argument("--max-shard-size", default="5GB", help="of a safetensors file (5GB)")


def run(args: argparse.Namespace) -> None:
    """Run the command."""
    with fast_imports():  # they take seconds, which --help need not wait for
        from megatron_chimed.convert import checkpoint

    if args.command == "hf-to-megatron":
        model = checkpoint.hf_to_megatron(args.hf, args.megatron, args.dtype, base=args.base)
    elif args.iteration is not None and args.iteration < 0:
        raise InputError(f"--iteration {args.iteration}: expected a number from 0")
    else:
        options = {
            "iteration": args.iteration,
            "tokenizer": args.tokenizer,
            "max_shard_bytes": checkpoint.bytes_of(args.max_shard_size),
            "merge": args.merge,
        }
        model = checkpoint.megatron_to_hf(args.megatron, args.hf, **options)
    weights = model.family.count(model.head, model.tied, model.sizes)
    output = args.megatron if args.command == "hf-to-megatron" else args.hf
    print(f"{output}: {weights:,} weights; the optimizer's state is not converted")
