"""Multiple choice by the likelihood of an option's letter; and what all multiple choice has in common."""

import string

from megatron_chimed.evaluation.kinds.kind import Kind, mean


def letters(item: dict) -> list[str]:
    """A, B, C, ..., one for each option."""
    return list(string.ascii_uppercase[: len(item["options"])])


def text(item: dict) -> str:
    """The question with its options, as lm-evaluation-harness writes it for C-Eval and CMMLU."""
    options = (f"{letter}. {option}" for letter, option in zip(letters(item), item["options"], strict=True))
    return "\n".join([item["question"], *options, cue(item)])


def cue(item: dict) -> str:
    """What stands in front of the answer: the item's own "cue", as for a set in English."""
    return item.get("cue", "答案：")


def target(item: dict) -> str:
    """The right letter."""
    return letters(item)[item["answer"]]


KIND = Kind(
    "choice",
    "Multiple choice by likelihood: prompt, choices and accuracy as in lm-evaluation-harness's own C-Eval and CMMLU.",
    {"acc": mean("accuracy|by:likelihood of ' A', ' B', ...|shots:5")},
    target,
    {"output_type": "multiple_choice", "doc_to_choice": letters, "doc_to_target": "answer"},
    likelihood=True,
)
