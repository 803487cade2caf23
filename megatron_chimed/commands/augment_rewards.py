"""Augment pairs of answers with those of GPT-4 and GPT-3.5-Turbo, or any models behind an OpenAI-compatible API."""

import argparse

from megatron_chimed.api.client import CallSettings
from megatron_chimed.api.costs import Prices
from megatron_chimed.api.servers import OPENAI_URL
from megatron_chimed.data.augment import INSTRUCTION, Augmentation, AugmentOptions, format_augment_report

EXAMPLE = """example (the key is taken from the environment variable OPENAI_API_KEY):
  chimed augment --input ranked.jsonl --output augmented.jsonl --models gpt-4,gpt-3.5-turbo \\
      --price-in 30,0.5 --price-out 60,1.5 --dry-run

Every answer is kept in augmented.answers.jsonl when it arrives: stop it at any time, and run the same command again."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags."""
    add = parser.add_argument
    add("--input", required=True, metavar="FILE", help="ranked groups of two answers (chimed reward-data)")
    add("--output", required=True, metavar="NAME.jsonl", help="answers and manifest lie beside it")
    add("--models", required=True, help="from the best to the worst, separated by commas")
    add("--base-url", default=OPENAI_URL, help=f"of the server, up to /v1 ({OPENAI_URL})")
    add("--instruction", default=INSTRUCTION, help=f"line before the question ({INSTRUCTION})")
    add("--temperature", type=float, help="(the server's)")
    add("--max-tokens", type=int, help="of an answer (the server's)")
    add("--concurrency", type=int, default=8, help="requests under way at once (8)")
    add("--requests-per-minute", type=float, default=0, help="limit of each model, 0 for none (0)")
    add("--timeout", type=float, default=120, help="seconds for one attempt (120)")
    add("--max-retries", type=int, default=6, help="further attempts on 429, 5xx, time-outs and lost connections (6)")
    add("--backoff", type=float, default=1, help="seconds before the second attempt, doubled for each further one (1)")
    add("--max-failed-share", type=float, default=0.01, help="requests that may fail at all attempts (0.01)")
    add("--price-in", default="", help="of a million tokens, for all models or one each: 30,0.5")
    add("--price-out", default="", help="likewise, of answers")
    add("--answer-tokens", type=int, default=400, help="expected in an answer, for the estimate (400)")
    add("--dry-run", action="store_true", help="print the estimate, send nothing")


def run(args: argparse.Namespace) -> None:
    """Run the command."""
    calls = CallSettings(args.concurrency, args.requests_per_minute, args.timeout, args.max_retries, args.backoff)
    models = tuple(name.strip() for name in args.models.split(","))
    options = AugmentOptions(models, args.base_url, args.instruction, args.temperature, args.max_tokens)
    work = Augmentation(args.input, args.output, options, calls)
    print(work.estimate(Prices.parse(args.price_in, args.price_out, args.answer_tokens)), flush=True)
    if not args.dry_run:
        print(format_augment_report(work.run(max_failed_share=args.max_failed_share)))
