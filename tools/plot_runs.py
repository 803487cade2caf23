"""Draw curves of several runs beside each other: losses, gradient norm, learning rate, any figure of loss.csv."""

import argparse

from megatron_chimed.errors import exit_cleanly
from megatron_chimed.training.curves import NAMES, draw, read_runs, with_window, write_table

EXAMPLE = """examples:
  python tools/plot_runs.py runs/demo/pretrain --output runs/pretrain.png
  python tools/plot_runs.py runs/demo/reward/four runs/demo/reward/two --output runs/reward.png \\
    --name 'valid/pair accuracy' train/loss --x tokens --csv runs/reward.csv"""


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EXAMPLE, formatter_class=argparse.RawDescriptionHelpFormatter
    )
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
    args = parser.parse_args()
    panels = with_window(read_runs(args.runs, args.name, tokens=args.x == "tokens"), args.smooth)
    draw(panels, args.output, args.x)
    if args.csv:
        write_table(panels, args.csv, args.x)
    print(f"{args.output}: {', '.join(args.name)} of {', '.join(args.runs)}")


if __name__ == "__main__":
    exit_cleanly(main)
