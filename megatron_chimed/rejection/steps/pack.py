"""Pack the selected answers, and those of the control, for the training; pairs with what the start thinks of them."""

from pathlib import Path

from megatron_chimed.packing.dialogues import DialogueRowOptions, pack_dialogues
from megatron_chimed.packing.packed_rows import PackedRows
from megatron_chimed.packing.rankings import RankingRowOptions, pack_rankings
from megatron_chimed.packing.reference import compute_reference
from megatron_chimed.rejection.context import RoundContext, folders_of
from megatron_chimed.rejection.engines import open_reference
from megatron_chimed.steps import StepResult
from megatron_chimed.workers import Bar


def inputs(ctx: RoundContext) -> dict[str, list[Path]]:
    """The dialogues, or pairs, of each set; of pairs the reference too."""
    if not ctx.pairs:
        return {"dialogues": ctx.files("{}.dialogues.jsonl")}
    return {"pairs": ctx.files("{}.ranked.jsonl"), "model": folders_of(ctx.previous.checkpoint)}


def settings(ctx: RoundContext) -> dict:
    """What decides the rows."""
    found = {"sequence_length": ctx.shape.sequence_length, "seed": ctx.config.paths.seed, **ctx.rendering}
    if ctx.pairs:
        return found | {"dtype": ctx.config.generator.dtype}
    return found | ({"thinking": ctx.renderer.thinking} if ctx.renderer.template.thinking else {})


def outputs(ctx: RoundContext) -> list[Path]:
    """A folder of packed rows for each set."""
    return ctx.files("packed/{}")


def run(ctx: RoundContext, inputs_hash: str) -> StepResult:
    """Raises InputError where nothing fits."""
    make = _pack_pairs if ctx.pairs else _pack_dialogues
    rows = dict(zip(ctx.sets, make(ctx), strict=True))
    return StepResult(rows["selected"], {}, {"packed": rows})


def _pack_dialogues(ctx: RoundContext) -> list[int]:
    """The rows of each set."""
    paths = ctx.config.paths
    options = DialogueRowOptions(ctx.shape.sequence_length, paths.seed, progress=False, mode="last")
    return [
        pack_dialogues([str(path)], output, ctx.renderer, options, paths.tokenizer)["rows"]
        for path, output in zip(ctx.files("{}.dialogues.jsonl"), outputs(ctx), strict=True)
    ]


def _pack_pairs(ctx: RoundContext) -> list[int]:
    """The rows of each set, with the log-probabilities that the model has which the round starts from."""
    from megatron_chimed.convert.lora import hash_model  # brings torch along

    paths, start = ctx.config.paths, ctx.previous.checkpoint
    options = RankingRowOptions(ctx.shape.sequence_length, paths.seed, progress=False)
    rows, sha256 = [], hash_model(start)
    with open_reference(ctx.config.generator, start) as engine:
        for path, output in zip(ctx.files("{}.ranked.jsonl"), outputs(ctx), strict=True):
            rows.append(pack_rankings([str(path)], output, ctx.renderer, options, paths.tokenizer)["rows"])
            packed = PackedRows(output)
            with Bar(total=len(packed.segment_offsets) - 1, desc=f"reference {output.name}", unit="answer") as bar:

                def log_p(pairs: list) -> list[float]:
                    return [score for score, _ in engine.loglikelihoods(pairs)]

                compute_reference(packed, sha256, {"model": str(start)}, log_p, bar.update)
    return rows
