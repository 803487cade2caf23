"""The tasks by the names that --tasks takes: where the data comes from, its kind, its metrics, its name in lm-eval."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import numpy as np

from megatron_chimed.errors import InputError
from megatron_chimed.evaluation import text_metrics
from megatron_chimed.evaluation.readers.answers import read_chimed, read_mc
from megatron_chimed.evaluation.readers.bias import read_scale
from megatron_chimed.evaluation.readers.entities import read_ccks2019, read_columns
from megatron_chimed.evaluation.readers.exams import (
    CEVAL_SUBJECTS,
    CMMLU_SUBJECTS,
    read_ceval,
    read_cmmlu,
    read_mcmle,
)
from megatron_chimed.evaluation.readers.items import Loaded
from megatron_chimed.evaluation.statistics import f1_ratio, mean_ratio


@dataclass(frozen=True)
class Source:
    """A data set. read: (path, subject) -> {"test", "fewshot"}; subjects: name -> Chinese name, for exams in parts.

    files: what `NAME=PATH` expects, for a message.
    """

    title: str
    files: str
    read: Callable[[str, str], dict[str, Loaded]]
    subjects: dict[str, str] | None = None


SOURCES = {
    "ccks2019": Source("CCKS-2019", "TEST,EXAMPLES", lambda path, subject: read_ccks2019(path)),
    "chimst": Source("ChiMST", "TEST,EXAMPLES", lambda path, subject: read_columns(path)),
    "ceval": Source("C-Eval", "FOLDER", read_ceval, CEVAL_SUBJECTS),
    "cmmlu": Source("CMMLU", "FOLDER", read_cmmlu, CMMLU_SUBJECTS),
    "mcmle": Source("MedQA (MCMLE)", "FOLDER", lambda path, subject: read_mcmle(path)),
    "chimed": Source("ChiMed", "FILE", lambda path, subject: read_chimed(path)),
    "mc": Source("MC", "FILE", lambda path, subject: read_mc(path)),
    "cami": Source("CAMI", "SCALE.yaml", lambda path, subject: read_scale(path, "cami")),
    "mica": Source("MICA", "SCALE.yaml", lambda path, subject: read_scale(path, "mica")),
    "scale": Source("Scale", "SCALE.yaml or the word example", lambda path, subject: read_scale(path)),
}


LIKELIHOODS = ("choice", "cloze")
"""The kinds of tasks that are decided by likelihoods."""


@dataclass(frozen=True)
class Task:
    """What is measured on a source. harness: its name in lm-eval; kind: as in `prompts`; likelihood: needs a model that
    gives likelihoods, which chat APIs do not; percent: scores are shown times 100."""

    source: str
    harness: str
    kind: str
    title: str
    likelihood: bool = False
    percent: bool = True


TASKS = {
    "ccks2019": Task("ccks2019", "chimed_ccks2019", "entities", "Named entities, five-shot"),
    "chimst": Task("chimst", "chimed_chimst", "entities", "Named entities, five-shot"),
    **{
        name + suffix: Task(name, f"chimed_{name}{suffix}", kind, title, likelihood=kind in LIKELIHOODS)
        for name in ("ceval", "cmmlu", "mcmle")
        for suffix, kind, title in (
            ("", "choice", "Multiple choice by likelihood of the letter, five-shot"),
            ("_cloze", "cloze", "Multiple choice by likelihood of the option's text, five-shot"),
            ("_letter", "letter", "Multiple choice by generated letter, five-shot"),
        )
    },
    "chimed": Task("chimed", "chimed_qa", "answers", "Open questions, zero-shot"),
    "mc": Task("mc", "chimed_mc", "answers", "Dialogues, zero-shot"),
    **{
        name: Task(name, f"chimed_{name}", "scale", "Bias scale, zero-shot (higher is more biased)", percent=False)
        for name in ("cami", "mica", "scale")
    },
}


@dataclass(frozen=True)
class Metric:
    """row: an item's value as lm-eval keeps it -> numbers to be summed; ratio: sums -> the metric; signature: how it is
    computed. problem: counts items that were not understood, a figure of its own in the report."""

    row: Callable[[object], tuple[float, ...]]
    ratio: Callable[[np.ndarray], np.ndarray]
    signature: str
    problem: bool = False


def _mean(signature: str, problem: bool = False) -> Metric:
    """A metric that is the mean of a number in each item."""
    return Metric(lambda value: (float(value), 1.0), mean_ratio, signature, problem)


def _f1(name: str) -> Metric:
    """Micro-F1 of counts by type."""
    return Metric(
        lambda value: tuple(float(sum(column)) for column in zip((0, 0, 0), *value.values(), strict=True)),
        f1_ratio,
        f"micro-f1|match:{name}|unit:(type,text) per sentence",
    )


METRICS: dict[str, dict[str, Metric]] = {
    "choice": {"acc": _mean("accuracy|by:likelihood of ' A', ' B', ...|shots:5")},
    "cloze": {
        "acc": _mean("accuracy|by:likelihood of the option's text|shots:5"),
        "acc_norm": _mean("accuracy|by:likelihood of the option's text per character|shots:5"),
    },
    "letter": {"acc": _mean("accuracy|by:generated letter|shots:5"), "unparsed": _mean("share", problem=True)},
    "entities": {
        "f1_strict": _f1("strict"),
        "f1_relaxed": _f1("relaxed"),
        "unparsed": _mean("share", problem=True),
    },
    "answers": {
        **{name: _mean(text_metrics.signature(name)) for name in text_metrics.NAMES},
        "empty": _mean("share", problem=True),
    },
    "scale": {
        "points": Metric(lambda value: tuple(value), mean_ratio, "mean|keyed:higher is more biased|of:answered"),
        "refused": _mean("share", problem=True),
    },
}
"""By kind of task."""


@cache
def read_source(name: str, path: str, subject: str = "") -> dict[str, Loaded]:
    """The items of a source; `subject` where it has subjects. Raises InputError."""
    return SOURCES[name].read(path, subject)


def parse_tasks(flags: list[str]) -> dict[str, str]:
    """{source: path} of flags ``NAME=PATH``. Raises InputError for an unknown name, a missing path, a name given twice.

    >>> parse_tasks(["ceval=exams"])
    {'ceval': 'exams'}
    """
    paths: dict[str, str] = {}
    known = "; ".join(f"{name}={source.files}" for name, source in SOURCES.items())
    for flag in flags:
        name, equals, path = flag.partition("=")
        if name not in SOURCES or not equals or not path:
            raise InputError(f"--tasks {flag}: expected NAME=PATH, one of {known}")
        if name in paths:
            raise InputError(f"--tasks {flag}: {name} is given twice")
        paths[name] = path
    return paths
