"""Memory of a step of preference optimization against one of fine-tuning, on full rows of the data of `make demo`: the
real trainer, one rank, as benchmarks/training_memory.py measures it.

The reference is read from disk, so that no second model is in memory: what the stage `dpo` needs beyond `sft` is asked.
"""

import argparse
import os
import platform
import tempfile
from importlib.metadata import version
from pathlib import Path

from training_memory import SHAPES, Way, best_of, train

from megatron_chimed.backend.quiet import silence_import_warnings
from megatron_chimed.errors import exit_cleanly

silence_import_warnings()

from megatron_chimed.convert.lora import hash_model  # noqa: E402
from megatron_chimed.packing.dialogues import DialogueRowOptions, pack_dialogues  # noqa: E402
from megatron_chimed.packing.packed_rows import PackedRows  # noqa: E402
from megatron_chimed.packing.rankings import RankingRowOptions, pack_rankings  # noqa: E402
from megatron_chimed.packing.reference import compute_reference  # noqa: E402
from megatron_chimed.text.renderer import Renderer  # noqa: E402
from megatron_chimed.text.template import Template  # noqa: E402
from megatron_chimed.text.tokenizer import load_tokenizer  # noqa: E402


def main() -> None:
    """Run the benchmark and print its table."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        epilog="example:\n  python benchmarks/preference_memory.py --shape smollm2",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--demo", type=Path, default=Path("runs/demo"), help="the demo's folder (runs/demo)")
    parser.add_argument("--shape", choices=SHAPES, default="smollm2", help="of the model (smollm2)")
    parser.add_argument("--sequence-length", type=int, default=2048, help="tokens of a row (2048)")
    parser.add_argument("--steps", type=int, default=3, help="steps of a training (3)")
    parser.add_argument("--rounds", type=int, default=2, help="trainings of each stage (2)")
    parser.add_argument("--threads", type=int, default=1, help="threads of the process (1)")
    args = parser.parse_args()
    renderer = Renderer(Template(), load_tokenizer(str(args.demo / "tokenizer/tokenizer.model")))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        start = ["--save", f"{folder}/base", "--save-interval", "1", "--no-save-optim", "--train-iters", "1"]
        train(args.shape, Way(), args, *start, "--lr", "0", "--min-lr", "0")
        sources = {"sft": args.demo / "sft/dialogues.jsonl", "dpo": args.demo / "reward/train.jsonl"}
        dialogues = DialogueRowOptions(args.sequence_length, progress=False)
        pack_dialogues([str(sources["sft"])], folder / "sft", renderer, dialogues)
        rankings = RankingRowOptions(args.sequence_length, progress=False)
        pack_rankings([str(sources["dpo"])], folder / "dpo", renderer, rankings)
        model = hash_model(folder / "base")
        made_up = lambda pairs: [-50.0] * len(pairs)  # noqa: E731
        compute_reference(PackedRows(folder / "dpo"), model, {}, made_up, lambda done: None)
        more = ["--load", f"{folder}/base", "--finetune"]
        found = {stage: [] for stage in sources}
        for _ in range(args.rounds):
            for stage, each in found.items():
                each.append(train(args.shape, Way(), args, *more, stage=stage, data=str(folder / stage)))
    first = best_of(found["sft"])
    print(f"\n{args.shape}, rows of {args.sequence_length:,}\n\n| stage | peak, GiB | against sft | seconds a step |")
    print("|---|---|---|---|")
    for stage, each in found.items():
        memory, seconds, _ = best_of(each)
        print(f"| {stage} | {memory:.2f} | {memory / first[0]:.3f}x | {seconds:.2f} |")
    print(f"\nPython {platform.python_version()}, torch {version('torch')}; ", end="")
    print(f"{args.threads} threads of {os.cpu_count()} cores, {platform.machine()}")


if __name__ == "__main__":
    exit_cleanly(main)
