"""Draw the prompts of a round from the dialogues of supervised fine-tuning."""

import sys
from dataclasses import asdict
from pathlib import Path

from megatron_chimed.errors import InputError
from megatron_chimed.jsonl import write_json_lines
from megatron_chimed.rejection.context import RoundContext, as_paths
from megatron_chimed.rejection.prompts import EvaluationTexts, draw_prompts, read_prompts
from megatron_chimed.steps import StepResult


def inputs(ctx: RoundContext) -> dict[str, list[Path]]:
    """The dialogues, and the evaluation files that no prompt may come from."""
    paths = ctx.config.paths
    return as_paths({"dialogues": paths.dialogues, "exclude": [*paths.exclude, *paths.heldout]})


def settings(ctx: RoundContext) -> dict:
    """How many, how alike, how long."""
    return {**asdict(ctx.config.prompts), "seed": ctx.config.paths.seed, "room": _room(ctx), **ctx.rendering}


def outputs(ctx: RoundContext) -> list[Path]:
    """prompts.jsonl."""
    return [ctx.file("prompts.jsonl")]


def run(ctx: RoundContext, inputs_hash: str) -> StepResult:
    """Raises InputError when no prompt is left."""
    paths, options = ctx.config.paths, ctx.config.prompts
    drawn, dropped = draw_prompts(
        read_prompts(paths.dialogues),
        options.count,
        seed=paths.seed,
        round=ctx.number,
        evaluation=EvaluationTexts.read(inputs(ctx)["exclude"]),
        fits=lambda prompt: len(ctx.renderer.render_prompt(prompt.turns)) <= _room(ctx),
        near=options.dedup == "near",
    )
    if not drawn:
        raise InputError(f"{paths.dialogues[0]}: no prompt is left to draw ({dict(dropped)})")
    if len(drawn) < options.count:
        print(f"only {len(drawn)} prompts of the {options.count} asked for are there", file=sys.stderr)
    return StepResult(write_json_lines(ctx.file("prompts.jsonl"), (one.to_row() for one in drawn)), dict(dropped))


def _room(ctx: RoundContext) -> int:
    """Tokens that a prompt may have."""
    return ctx.shape.max_positions - ctx.config.sampling.max_tokens
