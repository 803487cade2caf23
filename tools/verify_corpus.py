"""Check that a corpus is whole and unaltered: exit 0, or one line and exit 1."""

import argparse

from megatron_chimed.corpus.verify import adopt_dataset, verify_corpus
from megatron_chimed.errors import exit_cleanly

EXAMPLE = """examples:
  python tools/verify_corpus.py corpora/medical
  python tools/verify_corpus.py --write-manifest corpora/built_elsewhere_text_document --vocab-size 39424"""


def main() -> None:
    parser = argparse.ArgumentParser(
        description="Compute hashes, sizes, index and id range of a corpus again and compare them with its manifest.",
        epilog=EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("prefix", nargs="?", help="PREFIX as given to preprocess_data.py, or PREFIX_text_document")
    parser.add_argument(
        "--write-manifest", metavar="DATASET_PREFIX", help="write the manifest of a dataset built by another tool"
    )
    parser.add_argument("--vocab-size", type=int, help="of its tokenizer (default: the largest id plus one)")
    args = parser.parse_args()
    if (args.prefix is None) == (args.write_manifest is None):
        parser.error("give either PREFIX or --write-manifest DATASET_PREFIX")
    if args.write_manifest is not None:
        print(f"{adopt_dataset(args.write_manifest, args.vocab_size)}: written")
        return
    content = verify_corpus(args.prefix, progress=True)
    print(f"{args.prefix}: whole and unaltered: {content['documents']} documents, {content['tokens']} tokens")


if __name__ == "__main__":
    exit_cleanly(main)
