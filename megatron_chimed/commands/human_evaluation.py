"""Human evaluation: a blinded form over the answers of evaluated models, and the report on annotators' files."""

import argparse

from megatron_chimed.evaluation.reports.agreement import report_ratings
from megatron_chimed.evaluation.reports.human import make_form

EXAMPLE = """examples:
  chimed human make runs/a/evaluation runs/b/evaluation --output runs/human
      give form.html to the annotators and keep key.json; the form works offline and saves JSON or CSV
  chimed human report runs/human/key.json ratings-a.json ratings-b.csv --output runs/human"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags."""
    commands = parser.add_subparsers(dest="command", required=True)
    make = commands.add_parser("make", help="draw questions and dialogues, write the form and its key")
    make.add_argument("folders", nargs="+", metavar="FOLDER", help="outputs of chimed evaluate with chimed or mc")
    make.add_argument("--count", type=int, default=50, help="questions, and dialogues (50)")
    make.add_argument("--seed", type=int, default=0)
    report = commands.add_parser("report", help="means, agreement and intervals of the annotators' files")
    report.add_argument("key", help="key.json of the form")
    report.add_argument("ratings", nargs="+", metavar="FILE", help="what each annotator has saved")
    for command in (make, report):
        command.add_argument("--output", required=True, help="a folder")


def run(args: argparse.Namespace) -> None:
    """Run the command."""
    if args.command == "make":
        key = make_form(args.folders, args.output, count=args.count, seed=args.seed)
        print(f"{args.output}/form.html: {len(key['answers'])} answers of {len(key['models'])} models")
    else:
        results = report_ratings(args.key, args.ratings, args.output)
        print(f"{args.output}/human.md: {results['rated_by_all']} answers rated by all annotators")
