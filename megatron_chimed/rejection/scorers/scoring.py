"""Score answers by all scorers of a configuration, and add up what they say.

What a scorer has found is kept beside the answers, each scorer in files of its own, so that a kill costs one batch of a
reward model or one verdict of a judge, and other weights cost nothing. Commands are called again.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

from megatron_chimed.errors import InputError
from megatron_chimed.jsonl import read_lines, sha256_json
from megatron_chimed.judging.options import JudgeOptions
from megatron_chimed.records import Candidate, Prompt
from megatron_chimed.rejection.scorers.command import score_by_command
from megatron_chimed.rejection.scorers.options import Options, RulesOptions, ScorerOptions
from megatron_chimed.rejection.scorers.reward_model import open_scorer, score_into
from megatron_chimed.rejection.store import CandidateStore, Key, count_stored
from megatron_chimed.steps import identify
from megatron_chimed.text.renderer import Renderer


class Scored(NamedTuple):
    """Answers with their rewards, in the order given, and what each scorer has to tell of them."""

    candidates: list[Candidate]
    figures: list[dict[str, Any]]


@dataclass(frozen=True)
class Scoring:
    """How answers are scored: the scorers, the configuration's ``reward`` for those that name no model of their own,
    and the renderer of what a reward model reads."""

    scorers: tuple[Options, ...]
    reward: str
    renderer: Renderer

    def score(self, candidates: Sequence[Candidate], prompts: Mapping[str, Prompt], place: Path) -> Scored:
        """The candidates with their rewards: the sum of the scores, each times its weight; None where one has no score.

        place: with what the names of the files begin that keep scores, ``PLACE.store`` and ``PLACE.verdicts.jsonl``.
        Raises InputError as the scorers do, and for a candidate whose prompt is not there.
        """
        for one in candidates:
            if one.prompt not in prompts:
                raise InputError(f"candidate {one.key}: there is no prompt {one.prompt!r}")
        candidates = [replace(one, reward=None) for one in candidates]  # a grader is not told what another has found
        rewards: dict[Key, float | None] = {one.key: 0.0 for one in candidates}
        figures = []
        for number, scorer in enumerate(self.scorers):
            own = _beside(place, f".{number}") if number else place  # another scorer behind the first costs it nothing
            scores, told = self._score_by(scorer, candidates, prompts, own)
            missing = sum(score is None for score in scores.values())
            about = {"engine": scorer.engine, "weight": scorer.weight, "answers": len(scores), "not scored": missing}
            figures.append(about | told)
            for key, score in scores.items():
                known = rewards[key]
                rewards[key] = None if score is None or known is None else known + scorer.weight * score
        return Scored([replace(one, reward=rewards[one.key]) for one in candidates], figures)

    def _score_by(
        self, scorer: Options, candidates: Sequence[Candidate], prompts: Mapping[str, Prompt], place: Path
    ) -> tuple[dict[Key, float | None], dict[str, Any]]:
        if isinstance(scorer, JudgeOptions):
            from megatron_chimed.judging.judge import score_by_judges  # openai takes a second to import

            return score_by_judges(scorer, candidates, prompts, _beside(place, ".verdicts.jsonl"))
        if isinstance(scorer, RulesOptions):
            return score_by_command(scorer.command, candidates, prompts), {}
        return self._score_by_model(scorer, candidates, prompts, _beside(place, ".store")), {}

    def _score_by_model(
        self, scorer: ScorerOptions, candidates: Sequence[Candidate], prompts: Mapping[str, Prompt], store_path: Path
    ) -> dict[Key, float | None]:
        """The reward model's scores. The store goes by all that decides them, but not by the weights of a sum."""
        asked = [one.to_row() for one in candidates], [one.to_row() for one in prompts.values()]
        rendering = [self.renderer.tokenizer.fingerprint, self.renderer.template.fingerprint]
        models = map(identify, scorer.files(self.reward))
        with CandidateStore(store_path, sha256_json([*asked, rendering, scorer.decisive(), *models])) as store:
            if len(store.candidates) < len(candidates):
                with open_scorer(scorer, scorer.reward or self.reward) as engine:
                    score_into(store, candidates, prompts, engine, self.renderer, scorer.batch_size)
            return {key: one.reward for key, one in store.candidates.items()}


def _beside(place: Path, ending: str) -> Path:
    return place.with_name(place.name + ending)


def describe_kept(place: Path) -> str:
    """What unfinished scorers have kept, for a status; "" for nothing."""
    answers = sum(count_stored(path) for path in place.parent.glob(f"{place.name}*.store"))
    logs = place.parent.glob(f"{place.name}*.verdicts.jsonl")
    verdicts = sum(1 for path in logs for _ in read_lines(path))
    told = [f"{count} {what}" for count, what in ((answers, "answers"), (verdicts, "verdicts")) if count]
    return ", ".join(told)
