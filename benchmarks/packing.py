"""Side by side: our packing and TRL's "bfd", on lengths shaped like the paper's fine-tuning data.

The lengths are log-normal, for each of the five sources with the number of instances and the mean that the paper gives
(the mean of Safety-Prompts, which it does not give, is set to 250), cut to 16 to 4,096. "Assignment" decides who shares
a row: for ours `pack`, from lengths to the order of all samples; for TRL its `_pack_bfd`, over all samples at once, and
over each 1,000 as its `pack_dataset` does, on a column of one-byte tokens, so that moving them costs little. "Whole
call" is, on a part of the samples with four-byte tokens, TRL's `pack_dataset`, which leaves the packed columns tokens
and lengths in memory; ours packs, and writes tokens and loss mask in the order of the rows to disk, with hashes.
"""

import argparse
import os
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

import numpy as np

from megatron_chimed.errors import InputError, exit_cleanly
from megatron_chimed.packing.bin_packing import lower_bound, pack
from megatron_chimed.packing.packed_rows import write_arrays

# Source: instances and mean tokens (arXiv 2311.06025, table of the fine-tuning data).
UNION = {
    "ChiMed": (200_744, 84e6 / 200_744),
    "CMD": (1_015_000, 460e6 / 1_015_000),
    "MC": (44_983, 17e6 / 44_983),
    "MedDialog": (9_060, 3e6 / 9_060),
    "Safety-Prompts": (100_000, 250.0),
}
SIGMA, SHORTEST, CAPACITY = 0.7, 16, 4096
TRL_BATCH = 1000  # the batch size of datasets.Dataset.map, which pack_dataset leaves as it is
EXAMPLE = """example:
  make peers
  python benchmarks/packing.py --peer peers"""


def draw_lengths(seed: int) -> np.ndarray:
    """Lengths in tokens, int64 [1,369,787], in random order."""
    draw = np.random.default_rng(seed)
    parts = [draw.lognormal(np.log(mean) - SIGMA**2 / 2, SIGMA, count) for count, mean in UNION.values()]
    return draw.permutation(np.clip(np.concatenate(parts), SHORTEST, CAPACITY).astype(np.int64))


def load_peer(folder: Path | None):
    """TRL's module of packing, or None where it is not installed."""
    if folder is not None:
        sys.path.append(str(folder))
    os.environ["HF_HUB_OFFLINE"] = os.environ["HF_DATASETS_DISABLE_PROGRESS_BARS"] = "1"
    try:
        from trl import data_utils
    except ImportError as error:
        if folder is not None:
            raise InputError(f"{folder}: TRL cannot be imported from there ({error})") from None
        return None
    return data_utils


def make_table(lengths: np.ndarray, dtype: type):
    """An Arrow table with a column input_ids of these lengths."""
    import pyarrow

    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    values = pyarrow.array(np.arange(offsets[-1]).astype(dtype))
    return pyarrow.Table.from_arrays([pyarrow.LargeListArray.from_arrays(offsets, values)], names=["input_ids"])


def assignments(lengths: np.ndarray, trl) -> dict[str, Callable[[], int]]:
    """What is measured on all samples: each returns its number of rows."""
    calls = {"ours": lambda: len(pack(lengths, CAPACITY, 0).row_offsets) - 1}
    if trl is not None:
        table = make_table(lengths, np.int8)

        def in_batches() -> int:
            starts = range(0, len(table), TRL_BATCH)
            return sum(len(trl._pack_bfd(table.slice(start, TRL_BATCH), CAPACITY)) for start in starts)

        calls[f"TRL bfd, each {TRL_BATCH:,}"] = in_batches
        calls["TRL bfd, all at once"] = lambda: len(trl._pack_bfd(table, CAPACITY))
    return calls


def whole_calls(lengths: np.ndarray, trl, folder: Path) -> dict[str, Callable[[], int]]:
    """What is measured on a part of the samples, tokens included: each returns its number of rows."""
    tokens = np.arange(int(lengths.sum())).astype(np.uint32)

    def ours() -> int:
        packing = pack(lengths, CAPACITY, 0)
        mask = np.ones(len(tokens), np.uint8)
        write_arrays(
            folder, packing, lengths, {"tokens": tokens, "loss_mask": mask}, {"dialogue": np.arange(len(lengths))}
        )
        return len(packing.row_offsets) - 1

    calls = {"ours": ours}
    if trl is not None:
        import datasets

        # With fingerprints given datasets hashes nothing, which costs time and fails with some versions of pyarrow.
        dataset = datasets.Dataset(make_table(lengths, np.int32), fingerprint="lengths")
        options = {"new_fingerprint": "benchmark", "load_from_cache_file": False}
        calls["TRL pack_dataset"] = lambda: len(trl.pack_dataset(dataset, CAPACITY, "bfd", map_kwargs=options))
    return calls


def measure(calls: dict[str, Callable[[], int]], runs: int) -> dict[str, tuple[list[float], int]]:
    """(seconds of each run, rows) of each call, taken in turn."""
    times: dict[str, list[float]] = {name: [] for name in calls}
    rows = dict.fromkeys(calls, 0)
    for _ in range(runs):
        for name, call in calls.items():
            start = time.perf_counter()
            rows[name] = call()
            times[name].append(time.perf_counter() - start)
    return {name: (times[name], rows[name]) for name in calls}


def report(title: str, measured: dict[str, tuple[list[float], int]], lengths: np.ndarray) -> str:
    """A Markdown table."""
    bound, tokens = lower_bound(lengths, CAPACITY), int(lengths.sum())
    ours = statistics.median(measured["ours"][0])
    lines = [f"{title}: {len(lengths):,} samples, {tokens:,} tokens; no packing has less than {bound:,} rows.", ""]
    lines += ["| | seconds (median) | all runs | samples/s | rows | bound / rows | fill | ours is |", "|" + "---|" * 8]
    for name, (times, rows) in measured.items():
        median, runs = statistics.median(times), " ".join(f"{value:.2f}" for value in times)
        lines.append(
            f"| {name} | {median:.2f} | {runs} | {len(lengths) / median:,.0f} | {rows:,} | {bound / rows:.4%} "
            f"| {tokens / rows / CAPACITY:.4%} | {median / ours:.1f}x |"
        )
    return "\n".join(lines) + "\n"


def main() -> None:
    """Run the benchmark and print its table."""
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EXAMPLE, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--peer", type=Path, help="folder with TRL and what it imports; left out: if it is installed")
    parser.add_argument("--runs", type=int, default=3, help="runs of each, in turn (3)")
    parser.add_argument("--seed", type=int, default=0, help="of the lengths (0)")
    parser.add_argument("--whole", type=int, default=200_000, help="samples for the whole calls, 0 for none (200000)")
    args = parser.parse_args()
    trl, lengths = load_peer(args.peer), draw_lengths(args.seed)
    print(report("Assignment", measure(assignments(lengths, trl), args.runs), lengths))
    if args.whole:
        part = lengths[: args.whole]
        with tempfile.TemporaryDirectory() as folder:
            print(report("Whole call", measure(whole_calls(part, trl, Path(folder)), args.runs), part))
    names = ["numpy", *(["trl", "datasets", "pyarrow"] if trl else [])]
    packages = ", ".join(f"{name} {version(name)}" for name in names)
    print(f"Python {platform.python_version()}, {packages}; {os.cpu_count()} cores, {platform.machine()}.")


if __name__ == "__main__":
    exit_cleanly(main)
