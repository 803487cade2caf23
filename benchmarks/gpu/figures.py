"""What a throughput is: shapes, floating-point operations, peaks of GPUs; and the report. No torch."""

import dataclasses
import statistics
from collections.abc import Mapping
from typing import Any

from measurements import PACKED

from megatron_chimed.plan import memory
from megatron_chimed.plan.layout import Layout
from megatron_chimed.plan.model import Model
from megatron_chimed.plan.speed import GPUS, TERA, flops_per_token

LLAMA_13B = Model(layers=40, hidden=5120, ffn=13824, heads=40, num_query_groups=40, head_dim=128, vocab=39424)
TINY = Model(layers=4, hidden=256, ffn=688, heads=8, num_query_groups=8, head_dim=32, vocab=2048)
SHAPES = {"13b": (LLAMA_13B, 4096), "tiny": (TINY, 512)}
"""Name to (model, tokens of a row)."""

PEAKS = {
    "H100 PCIe": 756 * TERA,
    "H100 NVL": 835 * TERA,
    "H200 NVL": 835 * TERA,
    "H100": GPUS["h100"],
    "H200": GPUS["h200"],
    "H800": GPUS["h800"],
    "A100": GPUS["a100"],
    "A800": GPUS["a800"],
    "RTX 4090": 165.2 * TERA,
    "B200": GPUS["b200"],
}
"""Words of a device's name -> peak of dense bf16 products per second with float32 sums (NVIDIA's data sheets, half of
what they state with sparsity); the first that fits counts."""

FORMULA = (
    "FLOP of a token, forward and backward: 6 x weights of matrices (the embedding is looked up) "
    "+ 6 x layers x heads x head size x tokens of a document, as causal attention sees half of them "
    "(PaLM, arXiv 2204.02311, appendix B, halved for the mask as Megatron counts). Recomputation is not counted."
)


def peak(device: str) -> float | None:
    """Peak of a device by its name, None for one that is not in the table."""
    return next((value for words, value in PEAKS.items() if words in device), None)


SCORE_BYTES = 10
"""What Megatron's local layers are taken to keep for each pair of tokens and head: the softmax in float32 and bf16, and
the mask and output of dropout. An estimate: where it is too low, fewer layers are tried."""


def layers_that_fit(model: Model, sequence: int, micro_batch: int, gpu_bytes: int, score_bytes: int = 0) -> int:
    """The most layers of which a step on one GPU fits into its memory by the plan, at least one.

    score_bytes: kept for each pair of tokens and head; of one layer more, for what is under way.
    """
    layout = Layout(1, 1, 1, micro_batch, micro_batch, sequence, distributed_optimizer=True, half=True)
    scores = score_bytes * model.heads * micro_batch * sequence**2

    def needed(layers: int) -> int:
        return memory.worst(dataclasses.replace(model, layers=layers), layout)[1].total + scores * (layers + 1)

    found = 1
    while needed(found + 1) <= gpu_bytes:
        found += 1
    return found


def throughput(model: Model, document: int, tokens: int, seconds: float, device: str) -> dict[str, float | None]:
    """Figures of a step: tokens per second, TFLOP per second, and MFU as a share of the peak where that is known.

    document: tokens of a document, within which attention stays; tokens: of the step.
    """
    work = flops_per_token(model, document) * tokens / seconds
    known = peak(device)
    return {"tokens_per_second": tokens / seconds, "tflops": work / TERA, "mfu": work / known if known else None}


def training_figures(way: str, found: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """What follows from the steps of a way of training: their median, and the figures of `throughput`."""
    model = dataclasses.replace(SHAPES[given["shape"]][0], layers=found["layers"])
    document = given["document"] if way in PACKED else given["sequence"]
    median = statistics.median(found["steps"])
    rates = throughput(model, document, given["sequence"] * given["micro_batch"], median, given["peak_of"])
    return rates | {"seconds": median}


def report(results: Mapping[str, Mapping[str, Any]], about: Mapping[str, Any]) -> str:
    """Markdown of all results so far: a section for each part, and last what was left out and why."""
    given = about["settings"]
    parts: dict[str, dict[str, Mapping[str, Any]]] = {}
    for name, one in results.items():
        parts.setdefault(one["part"], {})[name] = one
    sections = [SECTIONS[part](measured, given) for part, measured in parts.items()]
    left_out = [f"- {one['title']}: {one['left_out']}" for one in results.values() if "left_out" in one]
    if left_out:
        sections.append("## Left out\n\n" + "\n".join(left_out))
    versions = ", ".join(f"{name} {found}" for name, found in about["versions"].items())
    head = f"# {about['device']['name']}, {about['date']}\n\n`{about['command']}`\n\n{versions}"
    return "\n\n".join([head, *sections]) + "\n"


def _tests(results: Mapping[str, Mapping[str, Any]], given: Mapping[str, Any]) -> str:
    one = results["tests"]
    counts = ", ".join(f"{one.get(outcome, 0)} {outcome}" for outcome in ("passed", "failed", "skipped"))
    failed = "".join(f"\n- failed: {name}" for name in one.get("names_of_failed", []))
    return f"## tests/gpu\n\n{counts}{failed}"


def _training(results: Mapping[str, Mapping[str, Any]], given: Mapping[str, Any]) -> str:
    lines = [
        f"## Training: {given['shape']} shape, {given['dtype']}, {given['micro_batch']} x {given['sequence']} tokens a "
        f"step, packed rows of documents of {given['document']}",
        "",
        table(results),
        "",
        FORMULA,
    ]
    return "\n".join(lines)


def table(results: Mapping[str, Mapping[str, Any]], baseline: str = "ours") -> str:
    """A line of Markdown for each way of training; ratios are of TFLOP/s, as layers may differ."""
    lines = [
        "| | layers | seconds a step | tokens/s | TFLOP/s | MFU | peak memory, GiB | TFLOP/s against ours |",
        "|---|---|---|---|---|---|---|---|",
    ]
    ours = results.get(baseline, {}).get("tflops")
    for one in results.values():
        if "left_out" in one:
            lines.append(f"| {one['title']} | {one.get('layers', '')} | {one['left_out']} | | | | | |")
            continue
        mfu = f"{one['mfu']:.1%}" if one["mfu"] else ""
        ratio = f"{one['tflops'] / ours:.2f}x" if ours else ""
        lines.append(
            f"| {one['title']} | {one['layers']} | {one['seconds']:.3f} | {one['tokens_per_second']:,.0f} | "
            f"{one['tflops']:.3g} | {mfu} | {one['peak_bytes'] / memory.GIB:.2f} | {ratio} |"
        )
    return "\n".join(lines)


def _dialogues(results: Mapping[str, Mapping[str, Any]], given: Mapping[str, Any]) -> str:
    one, lines = results["dialogues"], [f"## {results['dialogues']['title']}"]
    if "left_out" in one:
        return "\n\n".join([*lines, one["left_out"]])
    lines += ["", "| | seconds | positions | real tokens/s |", "|---|---|---|---|"]
    for name in ("packed", "padded"):
        way = one[name]
        lines.append(f"| {name} | {way['seconds']:.3f} | {way['positions']:,} | {way['tokens_per_second']:,.0f} |")
    faster = one["padded"]["seconds"] / one["packed"]["seconds"]
    predicted = one["padded"]["positions"] / one["packed"]["positions"]
    lines += [
        "",
        f"{one['dialogues']} dialogues of {one['real_tokens']:,} tokens, {one['layers']} layers, forward and backward: "
        f"packed is {faster:.2f}x as fast; the positions predict {predicted:.2f}x.",
    ]
    return "\n".join(lines)


def _generation(results: Mapping[str, Mapping[str, Any]], given: Mapping[str, Any]) -> str:
    one, lines = results["generation"], [f"## {results['generation']['title']}"]
    if "left_out" in one:
        return "\n\n".join([*lines, one["left_out"]])
    lines += [
        "",
        "| batch | ours, tokens/s | transformers, tokens/s | ours is | equal texts |",
        "|---|---|---|---|---|",
    ]
    for size, batch in one["batches"].items():
        ours, theirs = (batch["tokens_per_second"][side] for side in ("ours", "transformers"))
        lines.append(
            f"| {size} | {ours:,.0f} | {theirs:,.0f} | {ours / theirs:.2f}x | {batch['equal']} of {batch['texts']} |"
        )
    lines += ["", f"{one['layers']} layers, {one['new_tokens']} new tokens a text, greedy, {given['dtype']}."]
    return "\n".join(lines)


SECTIONS = {"tests": _tests, "training": _training, "dialogues": _dialogues, "generation": _generation}
