"""Will a training fit, how long will it take, and does the trainer take it? Before the cluster is asked.

Memory of a GPU by part, tokens and time of a step, and a ranking of layouts, by arithmetic; or, with --dry-run, the
real trainer: rank 0 of so many on one CPU, in a model that is scaled down.
"""

import argparse

from megatron_chimed.config import load_settings
from megatron_chimed.errors import InputError
from megatron_chimed.plan.dry_run import dry_run
from megatron_chimed.plan.report import report
from megatron_chimed.plan.settings import STAGES, read_plan, stage_of
from megatron_chimed.plan.speed import GPUS

EXAMPLE = """examples:
  chimed plan examples/ziya2_13b/model.yaml examples/ziya2_13b/pretrain.yaml --gpus 16 --gpu-memory 80
  chimed plan MODEL.yaml STAGE.yaml --dry-run --world-size 1024
What is no flag of this command overrides Megatron's arguments: ... --recompute-granularity full

Exit code 1 where it does not fit, or the trainer refuses."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags."""
    parser.allow_abbrev = False  # what is no flag of ours is one of Megatron's
    parser.add_argument("model", help="model YAML")
    parser.add_argument("stage_yaml", metavar="stage", help="stage YAML")
    parser.add_argument("--stage", choices=STAGES, help="what it configures (the last word of its name)")
    parser.add_argument("--gpus", "--world-size", type=int, metavar="N", help="GPUs of the job")
    parser.add_argument("--gpu-memory", type=float, default=80, metavar="GB", help="of a GPU, in GiB (80)")
    parser.add_argument("--gpu", choices=GPUS, default="h100", help="for the time (h100)")
    parser.add_argument("--mfu", type=float, default=0.45, help="assumed share of its peak (0.45)")
    parser.add_argument("--dry-run", action="store_true", help="one step of the real trainer, as rank 0 of N")
    parser.add_argument("--layers", type=int, metavar="N", help="dry run: layers (one for each pipeline stage)")
    parser.add_argument("--width", type=int, metavar="N", help="dry run: hidden size (one head for each TP rank)")
    parser.add_argument("--skip-load", action="store_true", help="dry run: --load is not there yet, nor its tokenizer")
    parser.add_argument("--skip-data", action="store_true", help="dry run: the corpus is not there yet; make ids up")


def run_with_rest(args: argparse.Namespace, overrides: list[str]) -> int:
    """Run the command."""
    if not args.gpus or args.gpus < 1 or not 0 < args.mfu <= 1 or args.gpu_memory <= 0:
        raise InputError("give --gpus, a number from 1; --gpu-memory is above 0, --mfu above 0 and at most 1")
    stage = stage_of(args.stage_yaml, args.stage)
    settings = load_settings(args.model, args.stage_yaml, overrides)
    plan = read_plan(stage, settings, args.gpus)
    if args.dry_run:
        words = [stage, args.model, args.stage_yaml, *overrides]
        sizes = {"layers": args.layers, "width": args.width}
        print(dry_run(plan, settings, words, **sizes, skip_load=args.skip_load, skip_data=args.skip_data))
        return 0
    text, fits = report(plan, args.gpu_memory, args.gpu, args.mfu)
    print(text)
    return 0 if fits else 1
