"""Grades of the answers to held-out prompts, beside their rewards, so that a reward that is only gamed shows."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from megatron_chimed.records import Candidate
from megatron_chimed.rejection.context import RoundContext
from megatron_chimed.rejection.heldout import by_prompt
from megatron_chimed.rejection.prompts import read_prompts
from megatron_chimed.rejection.scorers.command import grade
from megatron_chimed.rejection.scorers.scoring import Scoring

Grades = Mapping[str, Sequence[float]]
"""{prompt: the grades of its answers}."""


@dataclass(frozen=True)
class Graded:
    """grades: by the model's part; None without a grader. figures: what each grader tells, likewise."""

    grades: dict[str, Grades] | None = None
    figures: dict[str, list[dict[str, Any]]] = field(default_factory=dict)


def grade_answers(
    ctx: RoundContext, measured: Mapping[str, Path], heldout: Mapping[str, Sequence[Candidate]]
) -> Graded:
    """The grades of all models by ``external_grader`` or ``grader``. Raises InputError as they do.

    measured: files of answers by the model's part; heldout: the answers in them. What a grader keeps lies beside its
    file, so that an answer of an earlier round is graded once.
    """
    paths, graders = ctx.config.paths, ctx.config.grader
    if paths.external_grader:
        return Graded({name: grade(paths.external_grader, path) for name, path in measured.items()})
    if not graders:
        return Graded()
    prompts = {prompt.id: prompt for prompt in read_prompts(paths.heldout)}
    scoring, grades, figures = Scoring(graders, paths.reward, ctx.renderer), {}, {}
    for name, path in measured.items():
        asked = {one.prompt: prompts[one.prompt] for one in heldout[name] if one.prompt in prompts}
        scored = scoring.score(heldout[name], asked, path.with_name(f"{path.stem}.graded"))
        grades[name], figures[name] = by_prompt(scored.candidates), scored.figures
    return Graded(grades, figures)
