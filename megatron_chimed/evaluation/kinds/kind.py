"""The record of a kind of task, and its metrics."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from megatron_chimed.evaluation.statistics import mean_ratio


class Scored(NamedTuple):
    """parsed: what was understood of an answer, None where nothing was; scores: {metric: value of this item}."""

    parsed: Any
    scores: dict[str, Any]


@dataclass(frozen=True)
class Metric:
    """One figure of a kind of task.

    row: an item's value as lm-eval keeps it -> numbers to be summed; ratio: sums [..., numbers] -> the metric [...];
    signature: how it is computed. problem: counts items that were not understood, a figure of its own in the report.
    aggregate: the name of the function in the kind's module that lm-eval alone aggregates by, else it takes the mean.
    """

    row: Callable[[Any], tuple[float, ...]]
    ratio: Callable[[np.ndarray], np.ndarray]
    signature: str
    problem: bool = False
    aggregate: str = "mean"
    higher_is_better: bool = True

    def of(self, values: list) -> float:
        """The metric over items."""
        return float(self.ratio(np.array([self.row(value) for value in values]).sum(axis=0)))


def mean(signature: str) -> Metric:
    """A metric that is the mean of a number in each item."""
    return Metric(lambda value: (float(value), 1.0), mean_ratio, signature)


def problem() -> Metric:
    """The share of items that were not understood."""
    return Metric(lambda value: (float(value), 1.0), mean_ratio, "share", problem=True, higher_is_better=False)


@dataclass(frozen=True)
class Kind:
    """A kind of task: items to prompts, answers to scores, figures of scores.

    The functions that lm-eval calls are in the kind's module by fixed names: text, target, and where answers are texts
    process_results.
    """

    name: str
    comment: str
    """What stands at the head of its task file."""

    metrics: Mapping[str, Metric]
    gold: Callable[[dict], Any]
    """The right answer of an item, for the record."""

    settings: Mapping[str, Any]
    """What lm-eval needs besides, by its names."""

    likelihood: bool = False
    """Decided by likelihoods, which chat APIs do not give."""

    main: str = "acc"
    """The metric that stands for it in plots, in tables of its parts and in comparisons."""

    turns: bool = False
    """Whether its items have a "history", which becomes turns of the prompt."""

    judged: bool = False
    """Whether judges score its answers, behind lm-eval."""

    zero_shot: bool = False
    """Without examples, so that a run of another seed is another one only where answers are sampled."""

    module: str = field(init=False, default="")

    def __post_init__(self):
        object.__setattr__(self, "module", f"megatron_chimed.evaluation.kinds.{self.name}")


def results_of(score: Callable[[dict, str], Scored]) -> Callable[[dict, list[str]], dict]:
    """lm-eval's process_results: what `score` finds, the parsed answer among it, so that the record needs no second
    look."""

    def process_results(doc: dict, results: list[str]) -> dict:
        parsed, scores = score(doc, results[0])
        return {**scores, "parsed": parsed}

    return process_results


def share_parsed(values: list) -> float:
    """The share of answers that were understood."""
    return sum(value is not None for value in values) / len(values)
