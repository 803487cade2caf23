"""Score the answers of a round."""

from pathlib import Path

from megatron_chimed.rejection.context import RoundContext
from megatron_chimed.rejection.scorers.options import describe, files_of, is_plain
from megatron_chimed.rejection.scorers.scoring import describe_kept
from megatron_chimed.rejection.store import read_candidates, write_candidates
from megatron_chimed.steps import StepResult


def inputs(ctx: RoundContext) -> dict[str, list[Path]]:
    """The answers, their prompts and what the scorers read."""
    found = {"candidates": [ctx.file("candidates.jsonl")], "prompts": [ctx.file("prompts.jsonl")]}
    return found | files_of(ctx.config.scorer, ctx.config.paths.reward)


def settings(ctx: RoundContext) -> dict:
    """What decides the rewards."""
    scorers = ctx.config.scorer
    # Of a reward model alone as in the first loops, so that those that were begun go on.
    return (scorers[0].decisive() if is_plain(scorers) else {"scorers": describe(scorers)}) | ctx.rendering


def outputs(ctx: RoundContext) -> list[Path]:
    """scored.jsonl."""
    return [ctx.file("scored.jsonl")]


def run(ctx: RoundContext, inputs_hash: str) -> StepResult:
    """Score what has no score yet, and publish all. Raises InputError."""
    candidates = read_candidates(ctx.file("candidates.jsonl"))
    scored = ctx.scoring.score(candidates, ctx.prompts, ctx.file("scored"))
    count = write_candidates(ctx.file("scored.jsonl"), scored.candidates)
    return StepResult(count, figures={"scorers": scored.figures})


def progress(ctx: RoundContext) -> str:
    """What an unfinished run has scored."""
    return describe_kept(ctx.file("scored"))
