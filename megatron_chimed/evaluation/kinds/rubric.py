"""Free answers to a conversation, scored by judges on the criteria of a rubric; `judged` asks them, behind lm-eval."""

import numpy as np

from megatron_chimed.evaluation.kinds.answers import text
from megatron_chimed.evaluation.kinds.kind import Kind, Metric, Scored, problem, results_of
from megatron_chimed.evaluation.statistics import mean_ratio

__all__ = ["KIND", "aggregate_score", "process_results", "score", "target", "text"]


def target(item: dict) -> str:
    """A rubric has no right answer."""
    return ""


def score(item: dict, answer: str) -> Scored:
    """What is known without a judge. score: [0, 1] for an answer of white space, which meets no criterion, else [0, 0],
    as it is not judged yet; empty, unjudged: 1 where that is so."""
    stripped = answer.strip()
    scores = {"score": [0.0, float(not stripped)], "empty": float(not stripped), "unjudged": float(bool(stripped))}
    return Scored(stripped or None, scores)


def clipped_mean(sums: np.ndarray) -> np.ndarray:
    """sums [..., 2] of (score, 1 where it counts) -> the mean as HealthBench gives it, from 0 to 1; nan of nothing."""
    return np.clip(mean_ratio(sums), 0.0, 1.0)


METRICS = {
    "score": Metric(
        tuple,
        clipped_mean,
        "points met/points above 0|agg:mean clipped to 0..1|by:judges|of:judged",
        aggregate="aggregate_score",
    ),
    "empty": problem(),
    "unjudged": problem(),
}


def aggregate_score(values: list[list[float]]) -> float:
    """The clipped mean of the answers that are judged; nan where none is, as by lm-eval alone."""
    return METRICS["score"].of(values)


process_results = results_of(score)
KIND = Kind(
    "rubric",
    "Free answers to a conversation by the criteria of a rubric. lm-eval alone writes the answers (--log_samples) and "
    "has no score; chimed evaluate asks the judges.",
    METRICS,
    lambda item: None,
    {
        "output_type": "generate_until",
        "generation_kwargs": {"until": ["[human]:"], "max_gen_toks": 1024, "do_sample": False},
    },
    main="score",
    turns=True,
    zero_shot=True,
    judged=True,
)
