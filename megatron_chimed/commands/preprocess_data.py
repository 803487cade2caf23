"""JSON lines to Megatron's indexed dataset: a drop-in for Megatron's tools/preprocess_data.py.

It writes PREFIX_{key}_document.bin and .idx, byte for byte those of Megatron's tool, PREFIX.rejected.jsonl with the
rows that could not be used and why, and PREFIX.manifest.json, all at the end. Killed, it goes on from its finished
parts when the same command is given again."""

import argparse

from megatron_chimed.corpus import arguments

EXAMPLE = """examples:
  chimed corpus --input raw/*.jsonl more.jsonl.gz --output-prefix corpora/medical --append-eod \\
      --tokenizer-type SentencePieceTokenizer --tokenizer-model tokenizer.model --workers 8 --clean --dedup exact
  ... --num-shards 8 --shard-index $SLURM_ARRAY_TASK_ID      one machine's part: PREFIX_shard-00003-of-00008
  chimed corpus --merge --output-prefix corpora/medical      joins all parts"""

add_arguments = arguments.add_arguments


def run_with_rest(args: argparse.Namespace, rest: list[str]) -> None:
    """Build, or merge. Raises InputError."""
    arguments.check_arguments(args, rest)
    content = arguments.run_command(args)
    print(f"{args.output_prefix}: {content['documents']} documents, {content['tokens']} tokens")
