"""Raw rows (JSON lines, JSON array, or CSV in UTF-8 or GB18030) to documents for tools/preprocess_data.py."""

import argparse

from megatron_chimed.data.documents import make_documents
from megatron_chimed.errors import exit_cleanly

EXAMPLE = r"""example:
  python tools/make_documents.py --input questions.csv --template '{title}\n{ask}\n{answer}' --output documents.jsonl
"""


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EXAMPLE, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--input", nargs="+", required=True, help=".jsonl, .json or .csv files, also with .gz")
    parser.add_argument("--template", required=True, help=r"a document's text with {fields}; \n is a line break")
    parser.add_argument("--output", required=True, help='JSON lines {"text": ...} to write')
    parser.add_argument("--max-rejected-share", type=float, default=0.01, help="share of bad rows to bear (0.01)")
    options = parser.parse_args()
    template = options.template.replace(r"\n", "\n")
    made = make_documents(options.input, template, options.output, options.max_rejected_share)
    print(f"{options.output}: {made['documents']} documents, {sum(made['rejected'].values())} rows rejected")


if __name__ == "__main__":
    exit_cleanly(main)
