"""Classification by the label that a model writes; F1 over classes, macro or weighted by their size, and accuracy.

Source: PromptCBLUE's evaluation, which takes both averages of F1 from sklearn's classification_report.
"""

import re

import numpy as np

from megatron_chimed.evaluation.kinds.kind import Kind, Metric, Scored, mean, problem, results_of

OTHER = "非上述类型"
SAME = {"相同": "是的", "不同": "不是"}
"""Labels of CHIP-STS that are one for the set's own scorer."""


def text(item: dict) -> str:
    """The question in words."""
    return item["question"]


def target(item: dict) -> str:
    """The right label."""
    return item["target"]


def parse_label(answer: str, item: dict) -> str | None:
    """The label that an answer is, or else the only one that it names; the longest name counts (不相关 is not 相关).

    >>> item = {"choices": ["相关", "不相关"]}
    >>> parse_label("不相关。", item), parse_label("答案：相关", item), parse_label("相关或不相关", item)
    ('不相关', '相关', None)
    """
    names = {*item["choices"], OTHER}
    names |= {name for pair in SAME.items() if names & {*pair} for name in pair}
    stripped = answer.strip().strip("。.“”\"'")
    pattern = "|".join(map(re.escape, sorted(names, key=len, reverse=True)))
    found = {SAME.get(one, one) for one in ([stripped] if stripped in names else re.findall(pattern, answer))}
    return found.pop() if len(found) == 1 else None


def score(item: dict, answer: str) -> Scored:
    """acc: 1 for the right label; f1_macro, f1_weighted: [place of the right label, of the answered one, number of
    classes], the last class for what is no label; unparsed: 1 where no label was understood."""
    label, labels = parse_label(answer, item), [SAME.get(one, one) for one in item["labels"]]
    right = SAME.get(item["target"], item["target"])
    answered = labels.index(label) if label in labels else len(labels)
    places = [labels.index(right), answered, len(labels) + 1]
    found = {"acc": float(label == right), "f1_macro": places, "f1_weighted": places}
    return Scored(label, {**found, "unparsed": float(label is None)})


def _counts(value: list[int]) -> tuple[float, ...]:
    """(right, answered, right label) for each class, one behind the other."""
    gold, answered, classes = value
    counts = np.zeros((classes, 3))
    counts[gold, 2] += 1
    counts[answered, 1] += 1
    counts[gold, 0] += gold == answered
    return tuple(counts.ravel())


def _f1(sums: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(F1 of each class [..., classes], whether it is there, as a label or as an answer)."""
    right, answered, gold = np.moveaxis(sums.reshape(*sums.shape[:-1], -1, 3), -1, 0)
    size = answered + gold
    return np.divide(2 * right, size, out=np.zeros_like(size), where=size > 0), size > 0


def macro_f1(sums: np.ndarray) -> np.ndarray:
    """sums [..., 3 x classes] -> the mean of the F1 of the classes that are there."""
    scores, there = _f1(sums)
    return scores.sum(axis=-1) / np.maximum(1, there.sum(axis=-1))


def weighted_f1(sums: np.ndarray) -> np.ndarray:
    """sums [..., 3 x classes] -> the mean of the F1 of the classes, each as often as it is right."""
    scores, _ = _f1(sums)
    gold = sums.reshape(*sums.shape[:-1], -1, 3)[..., 2]
    return (scores * gold).sum(axis=-1) / np.maximum(1, gold.sum(axis=-1))


METRICS = {
    "acc": mean("accuracy|by:generated label"),
    "f1_macro": Metric(_counts, macro_f1, "f1|avg:macro|no label:a class of its own", aggregate="aggregate_macro"),
    "f1_weighted": Metric(_counts, weighted_f1, "f1|avg:weighted by class size", aggregate="aggregate_weighted"),
    "unparsed": problem(),
}


def aggregate_macro(values: list[list[int]]) -> float:
    """Macro-F1 over items, from 0 to 1."""
    return METRICS["f1_macro"].of(values)


def aggregate_weighted(values: list[list[int]]) -> float:
    """F1 over items, classes weighted by their size, from 0 to 1."""
    return METRICS["f1_weighted"].of(values)


process_results = results_of(score)
KIND = Kind(
    "label",
    "Classification by the label that a model writes, five-shot.",
    METRICS,
    target,
    {
        "output_type": "generate_until",
        "target_delimiter": "\n",
        "generation_kwargs": {"until": ["\n\n"], "max_gen_toks": 64, "do_sample": False},
    },
    main="f1_weighted",
)
