"""Check that a corpus is whole and unaltered: exit 0, or one line and exit 1."""

import argparse

from megatron_chimed.corpus.verify import adopt_dataset, verify_corpus

EXAMPLE = """examples:
  chimed verify corpus corpora/medical
  chimed verify corpus --write-manifest corpora/built_elsewhere_text_document --vocab-size 39424"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags."""
    parser.add_argument("prefix", nargs="?", help="PREFIX as given to preprocess_data.py, or PREFIX_text_document")
    parser.add_argument(
        "--write-manifest", metavar="DATASET_PREFIX", help="write the manifest of a dataset built by another tool"
    )
    parser.add_argument("--vocab-size", type=int, help="of its tokenizer (default: the largest id plus one)")


def run(args: argparse.Namespace) -> None:
    """Run the command."""
    if (args.prefix is None) == (args.write_manifest is None):
        args.usage_error("give either PREFIX or --write-manifest DATASET_PREFIX")
    if args.write_manifest is not None:
        print(f"{adopt_dataset(args.write_manifest, args.vocab_size)}: written")
        return
    content = verify_corpus(args.prefix, progress=True)
    print(f"{args.prefix}: whole and unaltered: {content['documents']} documents, {content['tokens']} tokens")
