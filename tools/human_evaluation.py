"""Human evaluation: a blinded form over the answers of evaluated models, and the report on annotators' files."""

import argparse

from megatron_chimed.errors import exit_cleanly
from megatron_chimed.evaluation.reports.agreement import report_ratings
from megatron_chimed.evaluation.reports.human import make_form

EXAMPLE = """examples:
  python tools/human_evaluation.py make runs/a/evaluation runs/b/evaluation --output runs/human
      give form.html to the annotators and keep key.json; the form works offline and saves JSON or CSV
  python tools/human_evaluation.py report runs/human/key.json ratings-a.json ratings-b.csv --output runs/human"""


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EXAMPLE, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    make = commands.add_parser("make", help="draw questions and dialogues, write the form and its key")
    make.add_argument("folders", nargs="+", metavar="FOLDER", help="outputs of tools/evaluate.py with chimed or mc")
    make.add_argument("--count", type=int, default=50, help="questions, and dialogues (50)")
    make.add_argument("--seed", type=int, default=0)
    report = commands.add_parser("report", help="means, agreement and intervals of the annotators' files")
    report.add_argument("key", help="key.json of the form")
    report.add_argument("ratings", nargs="+", metavar="FILE", help="what each annotator has saved")
    for command in (make, report):
        command.add_argument("--output", required=True, help="a folder")
    args = parser.parse_args()
    if args.command == "make":
        key = make_form(args.folders, args.output, count=args.count, seed=args.seed)
        print(f"{args.output}/form.html: {len(key['answers'])} answers of {len(key['models'])} models")
    else:
        results = report_ratings(args.key, args.ratings, args.output)
        print(f"{args.output}/human.md: {results['rated_by_all']} answers rated by all annotators")


if __name__ == "__main__":
    exit_cleanly(main)
