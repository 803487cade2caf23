"""Draw curves of several runs beside each other: losses, gradient norm, learning rate, any figure of loss.csv."""

import argparse

from megatron_chimed.training.curves import NAMES, plot, read_runs, with_window, write_table

EXAMPLE = """examples:
  chimed plot runs/demo/pretrain --output runs/pretrain.png
  chimed plot runs/demo/reward/four runs/demo/reward/two --output runs/reward.png \\
    --name 'valid/pair accuracy' train/loss --x tokens --csv runs/reward.csv"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags."""
    parser.add_argument("runs", nargs="+", metavar="RUN", help="folders of runs, their --save; one to eight")
    parser.add_argument("--output", required=True, metavar="FILE.png", help="the picture")
    parser.add_argument("--csv", metavar="FILE.csv", help="its points as a table")
    parser.add_argument(
        "--name", nargs="+", default=NAMES, metavar="SPLIT/NAME", help=f"what to draw ({', '.join(NAMES)})"
    )
    parser.add_argument("--x", choices=("iteration", "tokens"), default="iteration", help="the axis (iteration)")
    parser.add_argument(
        "--smooth", type=int, metavar="N", help="mean of the last N points, in training (a fiftieth of them; 1: none)"
    )


def run(args: argparse.Namespace) -> None:
    """Run the command."""
    panels = with_window(read_runs(args.runs, args.name, tokens=args.x == "tokens"), args.smooth)
    plot(panels, args.output, args.x)
    if args.csv:
        write_table(panels, args.csv, args.x)
    print(f"{args.output}: {', '.join(args.name)} of {', '.join(args.runs)}")
