"""Reports of a consultation by sections, each compared with its own (PromptCBLUE's IMCS-V2-MRG), by ROUGE.

Source: PromptCBLUE's evaluation: the mean over all sections of all reports, a section without a text counts as 无。
"""

from megatron_chimed.evaluation import text_metrics
from megatron_chimed.evaluation.kinds.answers import target, text
from megatron_chimed.evaluation.kinds.kind import Kind, Metric, Scored, problem, results_of
from megatron_chimed.evaluation.statistics import mean_ratio

__all__ = ["KIND", "aggregate_sections", "process_results", "score", "target", "text"]

SECTIONS = ("主诉", "现病史", "辅助检查", "既往史", "诊断", "建议")
NOTHING = "无。"
NAMES = ("rouge1_chars", "rouge2_chars", "rougeL_chars")


def read_sections(answer: str) -> dict[str, str]:
    """{section: its text} of lines "主诉：..."; {} for an answer without.

    >>> read_sections("报告如下：\\n主诉：腹痛。\\n诊断：")
    {'主诉': '腹痛。', '诊断': ''}
    """
    lines = (line.strip().partition("：") for line in answer.splitlines())
    return {name: text.strip() for name, colon, text in lines if colon and name in SECTIONS}


def score(item: dict, answer: str) -> Scored:
    """rouge*_chars: [sum over sections, sections]; unparsed: 1 where there is no section, and then all are 0."""
    found, gold = read_sections(answer), read_sections(item["reference"])
    sums = dict.fromkeys(NAMES, 0.0)
    for name in SECTIONS if found else ():
        scores = text_metrics.text_scores(found.get(name) or NOTHING, gold.get(name) or NOTHING)
        sums = {metric: value + scores[metric] for metric, value in sums.items()}
    values = {metric: [value, float(len(SECTIONS))] for metric, value in sums.items()}
    return Scored(found or None, {**values, "unparsed": float(not found)})


METRICS = {
    name: Metric(
        tuple,
        mean_ratio,
        text_metrics.signature(name) + "|unit:section",
        aggregate="aggregate_sections",
    )
    for name in NAMES
} | {"unparsed": problem()}


def aggregate_sections(values: list[tuple[float, float]]) -> float:
    """The mean over sections."""
    return METRICS["rougeL_chars"].of(values)


process_results = results_of(score)
KIND = Kind(
    "report",
    "Reports of a consultation by sections, each compared with its own, by ROUGE.",
    METRICS,
    target,
    {
        "output_type": "generate_until",
        "generation_kwargs": {"until": ["[human]:"], "max_gen_toks": 512, "do_sample": False},
    },
    main="rougeL_chars",
    turns=True,
    zero_shot=True,
)
