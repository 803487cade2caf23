"""Multiple choice by the likelihood of an option's text; the options are not in the prompt."""

from megatron_chimed.evaluation.kinds.choice import cue, target
from megatron_chimed.evaluation.kinds.kind import Kind, mean


def text(item: dict) -> str:
    """The question without its options."""
    return f"{item['question']}\n{cue(item)}"


KIND = Kind(
    "cloze",
    "Multiple choice by the likelihood of an option's text; the options are not in the prompt. It is the cloze "
    "formulation (OLMES, arXiv 2406.08446), for models too small to bind options to letters.",
    {
        "acc": mean("accuracy|by:likelihood of the option's text|shots:5"),
        "acc_norm": mean("accuracy|by:likelihood of the option's text per character|shots:5"),
    },
    target,
    {
        "output_type": "multiple_choice",
        "doc_to_choice": "options",
        "doc_to_target": "answer",
        "target_delimiter": "",
    },
    likelihood=True,
    main="acc_norm",
)
