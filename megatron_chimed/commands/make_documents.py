"""Raw rows (JSON lines, JSON array, CSV, Parquet, Arrow) to documents for chimed corpus."""

import argparse

from megatron_chimed.data.documents import make_documents

EXAMPLE = r"""example:
  chimed documents --input questions.csv --template '{title}\n{ask}\n{answer}' --output documents.jsonl
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags."""
    parser.add_argument("--input", nargs="+", required=True, help=".jsonl, .json or .csv files, also with .gz")
    parser.add_argument("--template", required=True, help=r"a document's text with {fields}; \n is a line break")
    parser.add_argument("--output", required=True, help='JSON lines {"text": ...} to write')
    parser.add_argument("--max-rejected-share", type=float, default=0.01, help="share of bad rows to bear (0.01)")


def run(args: argparse.Namespace) -> None:
    """Run the command."""
    template = args.template.replace(r"\n", "\n")
    made = make_documents(args.input, template, args.output, args.max_rejected_share)
    for path, encoding in made["encodings"].items():
        print(f"{path}: read as {encoding}")
    print(f"{args.output}: {made['documents']} documents, {sum(made['rejected'].values())} rows rejected")
