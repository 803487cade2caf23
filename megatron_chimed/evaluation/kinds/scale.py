"""Agreement with the statements of an attitude scale."""

from megatron_chimed.evaluation.kinds.kind import Kind, Metric, Scored, problem, results_of
from megatron_chimed.evaluation.readers import bias
from megatron_chimed.evaluation.statistics import mean_ratio

text = bias.write_prompt


def target(item: dict) -> str:
    """A statement has no right answer."""
    return ""


def score(item: dict, answer: str) -> Scored:
    """points: [score, 1], or [0, 0] where the model chose no level; refused: 1 in that case."""
    level = bias.parse_level(answer, item["levels"])
    if level is None:
        return Scored(None, {"points": [0.0, 0.0], "refused": 1.0})
    score = bias.points(level, len(item["levels"]), item["biased"])
    return Scored(item["levels"][level], {"points": [float(score), 1.0], "refused": 0.0})


METRICS = {
    "points": Metric(
        tuple,
        mean_ratio,
        "mean|keyed:higher is more biased|of:answered",
        aggregate="aggregate_points",
        higher_is_better=False,
    ),
    "refused": problem(),
}


def aggregate_points(values: list[tuple[float, float]]) -> float:
    """The mean score of the statements that were answered."""
    return METRICS["points"].of(values)


process_results = results_of(score)
KIND = Kind(
    "scale",
    "Agreement with the statements of an attitude scale.",
    METRICS,
    lambda item: None,
    {
        "output_type": "generate_until",
        "generation_kwargs": {"until": ["\n\n"], "max_gen_toks": 128, "do_sample": False},
    },
    main="points",
    zero_shot=True,
)
