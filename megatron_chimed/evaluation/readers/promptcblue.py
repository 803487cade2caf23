"""PromptCBLUE: sixteen tasks of CBLUE as questions in words, a row each, all of them in one file.

Source: Zhu et al., "PromptCBLUE: A Chinese Prompt Tuning Benchmark for the Medical Domain" (arXiv 2310.14151).
"""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from megatron_chimed.data.sources import read_rows
from megatron_chimed.errors import InputError
from megatron_chimed.evaluation.readers.items import Loaded, load
from megatron_chimed.jsonl import expand

FACTS, LABEL, ANSWER, REPORT = "facts", "label", "answers", "report"
DATASETS = {
    "CMeEE-V2": FACTS,
    "CMeIE": FACTS,
    "CHIP-CDN": FACTS,
    "CHIP-CDEE": FACTS,
    "IMCS-V2-NER": FACTS,
    "CHIP-MDCFNPC": FACTS,
    "IMCS-V2-SR": FACTS,
    "IMCS-V2-DAC": LABEL,
    "CHIP-CTC": LABEL,
    "CHIP-STS": LABEL,
    "KUAKE-IR": LABEL,
    "KUAKE-QIC": LABEL,
    "KUAKE-QQR": LABEL,
    "KUAKE-QTR": LABEL,
    "MedDG": ANSWER,
    "IMCS-V2-MRG": REPORT,
}
"""The sixteen, and the kind of each."""

RENAMED = {"CMeIE-V2": "CMeIE"}


def read_promptcblue(paths: str, part: str = "") -> dict[str, Loaded]:
    """``TEST,EXAMPLES``: two files or globs of rows {"input", "target", "answer_choices", "task_dataset"}, as JSON
    lines or arrays, the first to be answered, the second to draw examples from.

    part: one of `DATASETS`, which the files need not have; "" for all. The test file that is published with empty
    targets cannot be scored; take dev for it then, and train for examples. Raises InputError.
    """
    patterns = [one.strip() for one in paths.split(",")]
    if len(patterns) != 2:
        raise InputError(f"{paths}: expected two files or globs, TEST,EXAMPLES (the examples come from the second)")
    loaded = {}
    for split, pattern in zip(("test", "fewshot"), patterns, strict=True):
        whole = load(_rows(pattern), _item)
        loaded[split] = replace(whole, items=[one for one in whole.items if part in ("", one["dataset"])])
    labels = _labels(item for one in loaded.values() for item in one.items)
    for one in loaded.values():
        for item in one.items:
            if DATASETS[item["dataset"]] == LABEL:
                item["labels"] = labels[item["dataset"]]
    return loaded


def _rows(pattern: str) -> Iterator[tuple[str, Any]]:
    """(file:line, row or Fault)."""
    for path in expand([pattern]):
        for line, row in read_rows(path):
            yield f"{path}:{line}", row


def _labels(items: Iterator[dict]) -> dict[str, list[str]]:
    """{data set: all labels of its rows}: a class that no row has as its target may be answered all the same."""
    found: dict[str, set[str]] = {}
    for item in items:
        if DATASETS[item["dataset"]] == LABEL:
            found.setdefault(item["dataset"], set()).update([*item["choices"], item["target"]])
    return {name: sorted(labels) for name, labels in found.items()}


def _item(row: dict) -> dict:
    """The item of a row. Raises InputError with the reason."""
    name = RENAMED.get(row.get("task_dataset"), row.get("task_dataset"))
    if name not in DATASETS:
        raise InputError(f"task_dataset {name!r}; expected one of {', '.join(DATASETS)}")
    asked, target, choices = row.get("input"), row.get("target"), row.get("answer_choices")
    if not isinstance(asked, str) or not asked.strip():
        raise InputError("no input")
    if not isinstance(target, str) or not target.strip():
        raise InputError("no target (a test split without answers?)")
    if DATASETS[name] in (ANSWER, REPORT):
        return {"history": [asked.strip()], "reference": target.strip(), "dataset": name, "templated": True}
    needed = name != "CHIP-CDEE"  # whose events are of one form
    choices = choices if needed else []
    if not isinstance(choices, list) or not all(isinstance(one, str) for one in choices) or (needed and not choices):
        raise InputError(f"answer_choices {choices!r}; expected a list of texts"[:200])
    item = {"question": asked.strip(), "target": target.strip(), "choices": [one.strip() for one in choices]}
    return {**item, "dataset": name, "templated": True}
