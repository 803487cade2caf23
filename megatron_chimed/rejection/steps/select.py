"""Select what a round trains on, and as much at random for the control."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

from megatron_chimed.errors import InputError
from megatron_chimed.jsonl import write_json_lines
from megatron_chimed.records import Candidate, Dialogue, Prompt
from megatron_chimed.rejection.context import RoundContext
from megatron_chimed.rejection.prompts import answered, question_of
from megatron_chimed.rejection.select import filter_candidates, random_control, select
from megatron_chimed.rejection.store import read_candidates, write_candidates
from megatron_chimed.steps import StepResult


def inputs(ctx: RoundContext) -> dict[str, list[Path]]:
    """The scored answers and their prompts."""
    return {"scored": [ctx.file("scored.jsonl")], "prompts": [ctx.file("prompts.jsonl")]}


def settings(ctx: RoundContext) -> dict:
    """The rule, the filters, the sets."""
    config = ctx.config
    return {**asdict(config.selection), **asdict(config.filters), "seed": config.paths.seed, "sets": ctx.sets}


def outputs(ctx: RoundContext) -> list[Path]:
    """SET.jsonl with the answers and SET.dialogues.jsonl, what is trained of them."""
    return ctx.files("{}.jsonl") + ctx.files("{}.dialogues.jsonl")


def run(ctx: RoundContext, inputs_hash: str) -> StepResult:
    """Raises InputError when no answer is left."""
    rule = ctx.config.selection
    scored = read_candidates(ctx.file("scored.jsonl"))
    questions = {name: question_of(prompt) for name, prompt in ctx.prompts.items()}
    _require_prompts(scored, questions, ctx.file("scored.jsonl"))
    pool, dropped = filter_candidates(scored, questions, ctx.config.filters)
    chosen = {"selected": select(pool, rule)}
    if not chosen["selected"]:
        raise InputError(f"round {ctx.number}: no answer is left to train on ({dict(dropped)})")
    if ctx.config.paths.control:
        chosen["control"] = random_control(pool, rule, ctx.config.paths.seed)
    for name, answers in chosen.items():
        write_candidates(ctx.file(f"{name}.jsonl"), answers)
        rows = (_dialogue(ctx.prompts[one.prompt], one).to_row() for one in answers)
        write_json_lines(ctx.file(f"{name}.dialogues.jsonl"), rows)
    dropped["not selected"] = len(pool) - len(chosen["selected"])
    counts = {reason: count for reason, count in dropped.items() if count}
    return StepResult(len(chosen["selected"]), counts, {"pool": len(pool)})


def _dialogue(prompt: Prompt, answer: Candidate) -> Dialogue:
    """What is trained of a selected answer."""
    name = f"{prompt.id}#round-{answer.round}-sample-{answer.sample}"
    return Dialogue(name, prompt.source, answered(prompt, answer.response, answer.thinking))


def _require_prompts(candidates: Sequence[Candidate], questions: Mapping[str, str], path: Path) -> None:
    """Raise InputError for a candidate whose prompt is not there."""
    for one in candidates:
        if one.prompt not in questions:
            raise InputError(f"{path}: candidate {one.key} answers a prompt that is not there; generate again")
