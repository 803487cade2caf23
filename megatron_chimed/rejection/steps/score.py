"""Score the answers of a round by the reward model."""

from pathlib import Path

from megatron_chimed.rejection.context import RoundContext, describe_stored, folders_of
from megatron_chimed.rejection.engines import open_scorer
from megatron_chimed.rejection.scorers import score_into
from megatron_chimed.rejection.store import CandidateStore, read_candidates
from megatron_chimed.steps import StepResult


def inputs(ctx: RoundContext) -> dict[str, list[Path]]:
    """The answers, their prompts and the reward model."""
    found = {"candidates": [ctx.file("candidates.jsonl")], "prompts": [ctx.file("prompts.jsonl")]}
    return found | {"reward": folders_of(ctx.config.paths.reward)}


def settings(ctx: RoundContext) -> dict:
    """What decides the rewards."""
    options = ctx.config.scorer
    return {"engine": options.engine, "dtype": options.dtype, **ctx.rendering}


def outputs(ctx: RoundContext) -> list[Path]:
    """scored.jsonl."""
    return [ctx.file("scored.jsonl")]


def run(ctx: RoundContext, inputs_hash: str) -> StepResult:
    """Score what the store lacks, and publish all. Raises InputError."""
    options = ctx.config.scorer
    candidates = read_candidates(ctx.file("candidates.jsonl"))
    with CandidateStore(_store(ctx), inputs_hash) as store:
        if len(store.candidates) < len(candidates):
            with open_scorer(options, ctx.config.paths.reward) as scorer:
                score_into(store, candidates, ctx.prompts, scorer, ctx.renderer, options.batch_size)
        return StepResult(store.publish(ctx.file("scored.jsonl")))


def progress(ctx: RoundContext) -> str:
    """What an unfinished run has scored."""
    return describe_stored([_store(ctx)])


def _store(ctx: RoundContext) -> Path:
    return ctx.file("scored.store")
