"""Flags of the corpus builder, and the options that they stand for."""

import argparse
from pathlib import Path

from megatron_chimed.corpus.builder import RunOptions, build_corpus
from megatron_chimed.corpus.merge import merge_shards
from megatron_chimed.corpus.worker import TextOptions
from megatron_chimed.errors import InputError
from megatron_chimed.text.tokenizer import HuggingFaceTokenizer, SentencePieceTokenizer
from megatron_chimed.workers import count_cores

SENTENCE_PIECE = ["SentencePieceTokenizer", "GPTSentencePieceTokenizer", "Llama2Tokenizer"]  # one and the same
MAX_BATCH_MB = 1024  # a batch is held in memory by every worker


def add_arguments(p: argparse.ArgumentParser) -> None:
    """Add the flags of Megatron's tool that have a meaning here, under the same names, and our own."""
    p.add_argument("--input", nargs="+", default=[], help="files or globs of JSON lines, also .gz")
    p.add_argument("--json-keys", nargs="+", default=["text"], help="fields to take, a dataset for each (text)")
    p.add_argument("--output-prefix", type=Path, required=True, help="path of the outputs without suffix")
    p.add_argument("--tokenizer-type", choices=[*SENTENCE_PIECE, "HuggingFaceTokenizer"])
    p.add_argument("--tokenizer-model", help="SentencePiece model or Hugging Face folder")
    p.add_argument("--tokenizer-hf-no-include-special-tokens", action="store_true", help="add no BOS of its template")
    p.add_argument("--special-tokens-as-text", action="store_true", help='text is only text: "</s>" no token, no BOS')
    p.add_argument("--append-eod", action="store_true", help="end each document with EOS")
    p.add_argument("--workers", type=int, default=count_cores(), help="processes (the number of cores)")
    p.add_argument("--clean", action="store_true", help="clean the text and redact personal data")
    p.add_argument("--redact", action="store_true", help="redact personal data only")
    p.add_argument("--dedup", choices=["exact", "near"], help="keep the first of equal or similar documents")
    p.add_argument("--max-rejected-share", type=float, default=0.01, help="fail above this share of bad rows (0.01)")
    p.add_argument("--num-shards", type=int, default=1, help="divide the input into so many parts")
    p.add_argument("--shard-index", type=int, help="make this part only, from 0")
    p.add_argument("--merge", action="store_true", help="join the finished parts")
    p.add_argument("--batch-mb", type=float, default=4, help="text for one piece of work, in MiB (4)")
    p.add_argument("--partitions", type=int, default=1, help="accepted with --keep-sequential-samples; no effect")
    for flag in ("--keep-sequential-samples", "--keep-newlines"):
        p.add_argument(flag, action="store_true", help=argparse.SUPPRESS)
    for flag in ("--log-interval", "--lang"):
        p.add_argument(flag, help=argparse.SUPPRESS)


def check_arguments(args: argparse.Namespace, unknown: list[str]) -> None:
    """Raise InputError for a flag that this command has not, or has no use for."""
    if unknown:
        raise InputError(f"{unknown[0]}: this tool does not know it; see --help for what it takes")
    if args.partitions > 1 and not args.keep_sequential_samples:
        raise InputError("--partitions would reorder the documents; add --keep-sequential-samples or leave it out")
    if not args.merge and not (args.input and args.tokenizer_type and args.tokenizer_model):
        raise InputError("give --input, --tokenizer-type and --tokenizer-model, or --merge")
    if args.output_prefix.name in ("", ".."):
        raise InputError(f"--output-prefix {args.output_prefix}: no name for a corpus; give one, as in corpora/medical")
    for key in args.json_keys:
        if "/" in key:
            raise InputError(f"--json-keys {key}: the key becomes part of a file's name; give one without '/'")
    if not 0 < args.batch_mb <= MAX_BATCH_MB:
        raise InputError(f"--batch-mb {args.batch_mb} is out of range; give MiB above 0, to {MAX_BATCH_MB}")


def run_command(args: argparse.Namespace) -> dict:
    """Build or merge as the flags say. Returns the manifest. Raises InputError."""
    if args.merge:
        return merge_shards(args.output_prefix)
    text = TextOptions(
        json_keys=tuple(dict.fromkeys(args.json_keys)),
        append_eod=args.append_eod,
        parse_special=not args.special_tokens_as_text,
        add_special=not (args.tokenizer_hf_no_include_special_tokens or args.special_tokens_as_text),
        clean=args.clean,
        redact=args.redact,
        dedup=args.dedup,
    )
    run = RunOptions(
        workers=args.workers,
        max_rejected_share=args.max_rejected_share,
        num_shards=args.num_shards,
        shard_index=args.shard_index,
        batch_bytes=int(args.batch_mb * (1 << 20)),
    )
    model = args.tokenizer_model
    load = HuggingFaceTokenizer if args.tokenizer_type == "HuggingFaceTokenizer" else SentencePieceTokenizer
    return build_corpus(args.input, args.output_prefix, load(model), text, run, tokenizer_path=model)
