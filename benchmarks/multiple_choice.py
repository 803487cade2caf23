"""Five-shot multiple choice with four options, scored by log-likelihood: our engines, which read once what prompts
share, against lm-eval's own backend for transformers, which reads each option's prompt.

The same model, the same ids and the same batch of requests on all sides, in turn; the log-likelihoods are compared. By
letter the options of a question differ in one token, by text in some.
"""

import argparse
import os
import platform
import tempfile
from importlib.metadata import version
from pathlib import Path

from generation import measure
from lm_eval.models.huggingface import HFLM

from megatron_chimed.errors import InputError, exit_cleanly
from megatron_chimed.evaluation.backends.answers_log import AnswersLog
from megatron_chimed.evaluation.backends.hf_model import HuggingFaceModel
from megatron_chimed.evaluation.backends.recorded import RecordedLM
from megatron_chimed.evaluation.harness import run_tasks
from megatron_chimed.inference.engine import Engine
from megatron_chimed.inference.open import open_engine
from megatron_chimed.text.template import Template
from megatron_chimed.text.tokenizer import load_tokenizer

ROOT = Path(__file__).resolve().parents[1]
DEMO = ROOT / "runs/demo"
TASKS = {"by letter": "ceval", "by text": "ceval_cloze"}

Pairs = list[tuple[list[int], list[int]]]


def read_pairs(engine: Engine, tokenizer: Path, exams: Path, task: str) -> Pairs:
    """(context, continuation) of all options of a task's questions, as `chimed evaluate` asks for them."""
    pairs: Pairs = []
    original = engine.loglikelihoods

    def remember(asked: Pairs) -> list[tuple[float, bool]]:
        pairs.extend((list(context), list(continuation)) for context, continuation in asked)
        return original(asked)

    engine.loglikelihoods = remember
    with tempfile.TemporaryDirectory() as folder:
        model = HuggingFaceModel(engine, load_tokenizer(tokenizer), Template())
        lm = RecordedLM(lambda: model, AnswersLog(Path(folder) / "log", {}), Template(), "benchmark", progress=False)
        run_tasks(lm, [task], {"ceval": str(exams)})
    engine.loglikelihoods = original
    return pairs


def main() -> None:
    """Run the benchmark and print its table."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        epilog="example:\n  python benchmarks/multiple_choice.py --hf runs/demo/hf",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    final = DEMO / "rejection/round-02/train/selected"
    parser.add_argument("--hf", type=Path, default=DEMO / "hf", help="the model, with its tokenizer")
    parser.add_argument("--megatron", type=Path, default=final, help="the same as a Megatron checkpoint")
    parser.add_argument("--exams", type=Path, default=DEMO / "world/multiple_choice", help="folder in C-Eval's form")
    parser.add_argument("--batch-size", type=int, default=32, help="of lm-eval's backend (32)")
    parser.add_argument("--runs", type=int, default=3, help="(3)")
    args = parser.parse_args()
    if not args.hf.is_dir():
        raise InputError(f"{args.hf}: no such folder; `make demo` makes it")
    os.environ["OMP_NUM_THREADS"] = str(os.cpu_count())
    hf = open_engine(f"hf:{args.hf}", dtype="float32")
    own = HFLM(pretrained=hf.model, tokenizer=str(args.hf), batch_size=args.batch_size)
    with open_engine(f"megatron:{args.megatron}", batch_size=256) as megatron:
        print("| task | way | seconds | of lm-eval's | largest difference |\n|---|---|---|---|---|")
        for task, name in TASKS.items():
            pairs = read_pairs(hf, args.hf, args.exams, name)
            given = [(("", ""), *pair) for pair in pairs]
            ways = {
                "lm-eval's backend": lambda given=given: own._loglikelihood_tokens(given, disable_tqdm=True),
                "ours, hf:": lambda pairs=pairs: hf.loglikelihoods(pairs),
                "ours, megatron:": lambda pairs=pairs: megatron.loglikelihoods(pairs),
            }
            seconds, answers = measure(ways, args.runs)
            figures = {way: [score for score, _ in found] for way, found in answers.items()}
            reference = "lm-eval's backend"
            for way, spent in seconds.items():
                pair_of = zip(figures[way], figures[reference], strict=True)
                difference = max(abs(found - expected) for found, expected in pair_of)
                ratio = seconds[reference] / spent
                row = f"| {task}, {len(pairs)} options | {way} | {spent:.2f} | {ratio:.1f}x | {difference:.1e} |"
                print(row, flush=True)
    packages = ", ".join(f"{name} {version(name)}" for name in ("torch", "transformers", "lm_eval"))
    print(f"\nPython {platform.python_version()}, {packages}; {os.cpu_count()} cores, {platform.machine()}")


if __name__ == "__main__":
    exit_cleanly(main)
