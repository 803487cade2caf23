"""Write the report of a round."""

from dataclasses import asdict
from pathlib import Path

from megatron_chimed.rejection.context import RoundContext, as_paths
from megatron_chimed.rejection.graders import grade_answers
from megatron_chimed.rejection.report import write_report
from megatron_chimed.rejection.scorers.options import describe, files_of
from megatron_chimed.rejection.store import read_candidates
from megatron_chimed.steps import StepResult

STATED = ("prompts", "generate", "score", "select")
"""Steps whose manifests the report shows."""


def inputs(ctx: RoundContext) -> dict[str, list[Path]]:
    """Held-out answers and likelihoods of all models, the round's answers, the manifests of its steps."""
    measured = _measured(ctx)
    found = {"heldout": list(measured.values()), "drift": list(map(_likelihood_of, measured.values()))}
    found |= {"scored": [ctx.file("scored.jsonl")], "prompts": [ctx.file("prompts.jsonl")]}
    found |= {"selected": ctx.files("{}.jsonl"), "manifests": ctx.files("{}.manifest.json", STATED)}
    if ctx.config.grader:
        read = files_of(ctx.config.grader, ctx.config.paths.reward)
        found |= as_paths({"questions": ctx.config.paths.heldout}) | {f"grader's {name}": read[name] for name in read}
    return found


def settings(ctx: RoundContext) -> dict:
    """The rule, and the grader beside the reward."""
    found = {"rule": asdict(ctx.config.selection), "yardstick": ctx.config.paths.external_grader}
    return found | ({"grader": describe(ctx.config.grader)} if ctx.config.grader else {})


def outputs(ctx: RoundContext) -> list[Path]:
    """report.md, report.json, report.png."""
    return ctx.files("report.{}", ["md", "json", "png"])


def run(ctx: RoundContext, inputs_hash: str) -> StepResult:
    """Raises InputError when the grader fails."""
    measured = _measured(ctx)
    likelihoods = {name: _likelihood_of(path) for name, path in measured.items()}
    heldout = {name: read_candidates(path) for name, path in measured.items()}
    graded = grade_answers(ctx, measured, heldout)
    return StepResult(write_report(ctx.config, ctx.folder, ctx.number, ctx.prompts, heldout, likelihoods, graded))


def _measured(ctx: RoundContext) -> dict[str, Path]:
    """Scored answers to held-out prompts by the model's part."""
    first = RoundContext(ctx.config, ctx.renderer, 0)
    measured = {"start": first.file("heldout.start.jsonl")}
    if ctx.number > 1:
        measured["before"] = ctx.previous.file("heldout.selected.jsonl")
    measured["after"] = ctx.file("heldout.selected.jsonl")
    if ctx.config.paths.control:
        measured["random control"] = ctx.file("heldout.control.jsonl")
    return measured


def _likelihood_of(answers: Path) -> Path:
    """drift.NAME.json beside heldout.NAME.jsonl."""
    return answers.with_name(answers.name.replace("heldout.", "drift.").replace(".jsonl", ".json"))
