"""Select what a round trains on, and as much at random for the control."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

from megatron_chimed.errors import InputError
from megatron_chimed.jsonl import write_json_lines
from megatron_chimed.records import Candidate, Dialogue, Prompt, RankedGroup
from megatron_chimed.rejection.context import RoundContext
from megatron_chimed.rejection.prompts import answered, question_of
from megatron_chimed.rejection.select import best_and_worst, filter_candidates, random_control, random_pairs, select
from megatron_chimed.rejection.store import read_candidates, write_candidates
from megatron_chimed.steps import StepResult


def inputs(ctx: RoundContext) -> dict[str, list[Path]]:
    """The scored answers and their prompts."""
    return {"scored": [ctx.file("scored.jsonl")], "prompts": [ctx.file("prompts.jsonl")]}


def settings(ctx: RoundContext) -> dict:
    """The rule, the filters, the sets."""
    config = ctx.config
    found = {**asdict(config.selection), **asdict(config.filters), "seed": config.paths.seed, "sets": ctx.sets}
    return found | ({"method": config.training.method} if ctx.pairs else {})


def outputs(ctx: RoundContext) -> list[Path]:
    """SET.jsonl with the answers and what is trained of them: SET.dialogues.jsonl, or pairs in SET.ranked.jsonl."""
    return ctx.files("{}.jsonl") + ctx.files("{}.ranked.jsonl" if ctx.pairs else "{}.dialogues.jsonl")


def run(ctx: RoundContext, inputs_hash: str) -> StepResult:
    """Raises InputError when no answer is left."""
    scored = read_candidates(ctx.file("scored.jsonl"))
    questions = {name: question_of(prompt) for name, prompt in ctx.prompts.items()}
    _require_prompts(scored, questions, ctx.file("scored.jsonl"))
    pool, dropped = filter_candidates(scored, questions, ctx.config.filters)
    chosen, trained, rows = _pairs(ctx, pool) if ctx.pairs else _answers(ctx, pool)
    if not chosen["selected"]:
        raise InputError(f"round {ctx.number}: no answer is left to train on ({dict(dropped)})")
    for name in ctx.sets:
        write_candidates(ctx.file(f"{name}.jsonl"), chosen[name])
        write_json_lines(ctx.file(f"{name}.{trained}.jsonl"), (row.to_row() for row in rows[name]))
    dropped["not selected"] = len(pool) - len(chosen["selected"]) * (2 if ctx.pairs else 1)
    counts = {reason: count for reason, count in dropped.items() if count}
    return StepResult(len(chosen["selected"]), counts, {"pool": len(pool)})


def _answers(ctx: RoundContext, pool: Sequence[Candidate]) -> tuple[dict, str, dict]:
    """(the answers of each set, how what is trained of them is called, the dialogues of each set)."""
    rule, seed = ctx.config.selection, ctx.config.paths.seed
    chosen = {"selected": select(pool, rule), "control": random_control(pool, rule, seed)}
    rows = {name: [_dialogue(ctx.prompts[one.prompt], one) for one in answers] for name, answers in chosen.items()}
    return chosen, "dialogues", rows


def _pairs(ctx: RoundContext, pool: Sequence[Candidate]) -> tuple[dict, str, dict]:
    """(the better answers of each set, how what is trained is called, the pairs of each set)."""
    best = best_and_worst(pool)
    pairs = {"selected": best, "control": random_pairs(pool, best, ctx.config.paths.seed)}
    rows = {name: [_ranked(ctx.prompts[pair[0].prompt], *pair) for pair in found] for name, found in pairs.items()}
    return {name: [better for better, _ in found] for name, found in pairs.items()}, "ranked", rows


def _ranked(prompt: Prompt, better: Candidate, worse: Candidate) -> RankedGroup:
    """What is trained of a pair."""
    name = f"{prompt.id}#round-{better.round}-samples-{better.sample}-{worse.sample}"
    return RankedGroup(name, prompt.source, prompt.turns, (better.response, worse.response), (0, 1))


def _dialogue(prompt: Prompt, answer: Candidate) -> Dialogue:
    """What is trained of a selected answer."""
    name = f"{prompt.id}#round-{answer.round}-sample-{answer.sample}"
    return Dialogue(name, prompt.source, answered(prompt, answer.response, answer.thinking))


def _require_prompts(candidates: Sequence[Candidate], questions: Mapping[str, str], path: Path) -> None:
    """Raise InputError for a candidate whose prompt is not there."""
    for one in candidates:
        if one.prompt not in questions:
            raise InputError(f"{path}: candidate {one.key} answers a prompt that is not there; generate again")
