"""Evaluate a model: named entities, multiple choice, open questions, dialogues, bias scales; results and a report."""

import argparse
from dataclasses import fields

from megatron_chimed.backend.quiet import work_offline
from megatron_chimed.commands.common import add_answering, answering_template
from megatron_chimed.evaluation.backends.models import EngineOptions, open_model
from megatron_chimed.evaluation.catalog import SOURCES
from megatron_chimed.evaluation.reports.differences import verdict_lines
from megatron_chimed.evaluation.reports.report import write_report
from megatron_chimed.evaluation.run import Settings, evaluate_model
from megatron_chimed.inference.open import kinds_text
from megatron_chimed.jsonl import read_json
from megatron_chimed.judging.options import read_judge

EXAMPLE = """examples:
  chimed evaluate --model hf:runs/mine/hf --output runs/mine/evaluation --tasks ceval=raw/ceval \\
      mc=raw/mc_test.dialog ccks2019='raw/test.json,raw/train*.txt' scale=example
  ... --model megatron:runs/mine/sft --tokenizer runs/mine/tokenizer/tokenizer.model --tensor-parallel 2
  chimed evaluate --compare runs/a/evaluation runs/b/evaluation --output runs/report

tasks:
  """ + "\n  ".join(f"{name}={source.files}" for name, source in SOURCES.items())


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags."""
    parser.add_argument("--model", help=kinds_text())
    parser.add_argument("--name", help="the model's name in the report (that of --model)")
    parser.add_argument("--tasks", nargs="+", default=[], metavar="NAME=PATH")
    parser.add_argument("--output", required=True, help="a folder; the same command again continues in it")
    parser.add_argument("--compare", nargs="+", default=[], metavar="FOLDER", help="other outputs, into the report")
    parser.add_argument("--points", type=float, default=2.0, help="--compare: the difference to look for (2)")
    parser.add_argument("--training-data", nargs="+", default=[], metavar="FILE", help="look for test items in it")
    parser.add_argument("--runs", type=int, default=5, help="seeds, from 0 (5)")
    parser.add_argument("--temperature", type=float, default=0.0, help="of all generation; 0 is greedy (0)")
    parser.add_argument("--top-p", type=float, default=1.0)
    parser.add_argument("--max-new-tokens", type=int, help="of an answer, in place of each task's own")
    parser.add_argument("--think-tokens", type=int, default=0, help="room for thinking on top of the answer's (0)")
    parser.add_argument("--limit", type=int, help="the first so many items of each data set, for a trial")
    parser.add_argument("--judge", metavar="YAML", help="healthbench: model and base_url of the judge, or of two")
    add_answering(parser)
    parser.add_argument("--tokenizer", metavar="PATH", help="megatron: SentencePiece model or Hugging Face folder")
    parser.add_argument("--iteration", type=int, help="megatron: in place of the newest checkpoint")
    parser.add_argument("--tensor-parallel", type=int, default=1, help="megatron, vllm: ranks (1)")
    parser.add_argument("--batch-size", type=int, default=8, help="sequences at once (8)")
    parser.add_argument(
        "--dtype", default="auto", help="float32, bfloat16 (auto: hf, vllm as stored, megatron float32)"
    )
    parser.add_argument("--base-url", help="openai: another server's URL, up to /v1; the key is in OPENAI_API_KEY")


def run(args: argparse.Namespace) -> None:
    """Run the command."""
    work_offline()
    if bool(args.model) != bool(args.tasks) or not (args.model or args.compare):
        args.usage_error("give --model with --tasks, or --compare alone")
    if args.model:
        template, given = answering_template(args), vars(args)
        options = EngineOptions(**{field.name: given[field.name] for field in fields(EngineOptions)})
        settings = Settings(**{field.name: given[field.name] for field in fields(Settings)})
        judge = read_judge(args.judge) if args.judge else None
        model = open_model(args.model, options, template, label=args.name)
        more = {"training_data": args.training_data, "judge": judge}
        evaluate_model(model, args.tasks, args.output, settings, template, **more)
    folders = [*([args.output] if args.model else []), *args.compare]
    written = write_report(folders, args.output, args.points)
    if len(folders) > 1:
        print("\n".join(verdict_lines(read_json(f"{args.output}/comparison.json"))))
    print("\n".join(map(str, written)))
