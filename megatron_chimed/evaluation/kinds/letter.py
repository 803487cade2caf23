"""Multiple choice by the letter that a model writes."""

import re

from megatron_chimed.evaluation.kinds.choice import letters, target, text
from megatron_chimed.evaluation.kinds.kind import Kind, Scored, mean, problem, results_of

__all__ = ["KIND", "parse_choice", "process_results", "score", "target", "text"]

# What may follow a letter that is a choice: not the rest of a word such as B超 or A型.
_END = r"(?=$|[^\w]|[项选是])"
MARKED = re.compile(
    r"(?:答案|选项|选择|选|answer)\s*(?:应?该?[是为]|is|[:：])*\s*[(（【\[“\"]?\s*([A-Z])(?![A-Za-z超型族])", re.I
)
ALONE = re.compile(r"(?<![A-Za-z])([A-Z])" + _END)
FIRST = re.compile(r"[(（【\[“\"]?([A-Za-z])" + _END)
SEVERAL = re.compile(r"\s*[、,，/和或]\s*[A-Z](?![A-Za-z])")


def parse_choice(answer: str, item: dict) -> str | None:
    """The letter that an answer chooses: at its beginning, behind 答案是 and the like, or the only one in it.

    Without a letter, the one option whose text is in the answer. None where nothing, or more than one thing, is chosen.

    >>> item = {"options": ["胃炎", "肺炎", "眼病", "骨折"]}
    >>> parse_choice("B. 肺炎", item), parse_choice("因此答案是（C）。", item), parse_choice("骨折", item)
    ('B', 'C', 'D')
    """
    known, text = letters(item), answer.strip()
    at_once = FIRST.match(text)
    if at_once and at_once[1].upper() in known and not SEVERAL.match(text[at_once.end() :]):
        return at_once[1].upper()
    for found in (MARKED.findall(text), ALONE.findall(text)):
        chosen = {letter.upper() for letter in found if letter.upper() in known}
        if len(chosen) == 1:
            return chosen.pop()
        if chosen:
            return None
    named = [letter for letter, option in zip(known, item["options"], strict=True) if option in text]
    return named[0] if len(named) == 1 else None


def score(item: dict, answer: str) -> Scored:
    """acc: 1 for the right letter; unparsed: 1 where no letter was understood."""
    letter = parse_choice(answer, item)
    return Scored(letter, {"acc": float(letter == target(item)), "unparsed": float(letter is None)})


process_results = results_of(score)
KIND = Kind(
    "letter",
    "Multiple choice by the letter that a model writes.",
    {"acc": mean("accuracy|by:generated letter|shots:5"), "unparsed": problem()},
    target,
    {
        "output_type": "generate_until",
        "generation_kwargs": {"until": ["\n\n"], "max_gen_toks": 32, "do_sample": False},
    },
)
