"""The same tokens through transformers and through Megatron: exit 0 only if folder and checkpoint hold one model."""

import argparse

from megatron_chimed.backend.quiet import fast_imports
from megatron_chimed.errors import InputError

EXAMPLE = """examples:
  chimed verify checkpoint --hf Ziya2-13B-Base --megatron runs/ziya2 --tensor-parallel 2
  chimed verify checkpoint --hf Qwen3-8B-Base --megatron runs/qwen3 --generate 16
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags."""
    parser.add_argument("--hf", required=True, help="Hugging Face folder")
    parser.add_argument("--megatron", required=True, help="folder of Megatron checkpoints")
    parser.add_argument("--iteration", type=int, help="which checkpoint (the newest)")
    parser.add_argument("--tensor-parallel", type=int, default=1, metavar="N", help="ranks of the Megatron model (1)")
    parser.add_argument(
        "--dtype",
        choices=["float32", "bfloat16"],
        default="float32",
        help="of the arithmetic (float32: differences up to 1e-4 pass; bfloat16: 5%% of the largest logit)",
    )
    parser.add_argument("--generate", type=int, default=0, metavar="N", help="also compare N greedy tokens (0)")


def run(args: argparse.Namespace) -> int:
    """Run the command."""
    if args.tensor_parallel < 1 or args.generate < 0:
        raise InputError("--tensor-parallel takes a number from 1, --generate one from 0")
    with fast_imports():  # they take seconds, which --help need not wait for
        from megatron_chimed.convert.verify import verify

    options = {"iteration": args.iteration, "dtype": args.dtype, "generate": args.generate}
    report = verify(args.hf, args.megatron, tensor_parallel=args.tensor_parallel, **options)
    what = "logits " if report.head == "lm" else "rewards"
    print(f"{what}     largest difference {report.largest:.2e}, mean {report.mean:.2e}")
    print(f"            tolerance {report.tolerance:.2e} ({report.dtype}, tensor parallel {args.tensor_parallel})")
    if report.agreeing is not None:
        print(f"next token  {report.agreeing} of {report.positions} agree")
    if report.generated:
        print(f"greedy      {report.generated[0]} of {report.generated[1]} tokens agree")
    print(f"control     without the q/k/v interleave the largest difference is {report.control:.2e}")
    if not report.control_failed:
        print("the control is not found out: this comparison could not show a fault")
    print("one model" if report.passed else "NOT the same model")
    return 0 if report.passed else 1
