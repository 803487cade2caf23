"""Compute what a model thinks of packed ranked answers, their log-probabilities: once, as the reference of `dpo`."""

import argparse
from pathlib import Path

from megatron_chimed.backend.quiet import fast_imports

EXAMPLE = """example:
  chimed reference --packed ranked --model megatron:runs/sft --tensor-parallel 2"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags."""
    parser.add_argument("--packed", type=Path, nargs="+", required=True, help="folders of chimed pack rewards")
    parser.add_argument(
        "--model", required=True, help="megatron:DIR or megatron:BASE+ADAPTER, the model that dpo starts from"
    )
    parser.add_argument("--tensor-parallel", type=int, default=1, metavar="N", help="ranks of the model (1)")
    parser.add_argument(
        "--dtype", choices=["float32", "bfloat16"], default="float32", help="of the arithmetic (float32)"
    )


def run(args: argparse.Namespace) -> None:
    """Run the command. A reference that is there already is kept; one that was begun is gone on with."""
    from megatron_chimed.inference.open import open_engine, split_name
    from megatron_chimed.packing.packed_rows import PackedRows
    from megatron_chimed.packing.reference import compute_reference, read_reference
    from megatron_chimed.workers import Bar

    _, place = split_name(args.model, ("megatron",))
    folders = [PackedRows(folder) for folder in args.packed]
    with fast_imports():  # torch and Megatron, which bad input need not wait for
        from megatron_chimed.convert.lora import hash_model

    sha256, facts = hash_model(place), {"model": args.model, "dtype": args.dtype}
    engine = None
    try:
        for packed in folders:
            with Bar(total=len(packed.segment_offsets) - 1, desc=packed.folder.name, unit="answer") as bar:

                def log_p(pairs: list) -> list[float]:
                    nonlocal engine  # not opened where all is there
                    if engine is None:
                        engine = open_engine(
                            args.model, tensor_parallel=args.tensor_parallel, dtype=args.dtype, progress=False
                        )
                    return [score for score, _ in engine.loglikelihoods(pairs)]

                new = compute_reference(packed, sha256, facts, log_p, bar.update)
            mean = read_reference(packed).log_p.mean()
            state = "computed" if new else "up to date"
            print(f"{packed.folder}: {state}; mean log p of an answer {mean:.2f} nats, model {sha256[:12]}")
    finally:
        if engine is not None:
            engine.close()
