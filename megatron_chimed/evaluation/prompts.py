"""Items to prompts, answers to scores: the part of each task that is neither files nor models.

A kind of task has four functions: the text of an item, its gold answer as the examples of a few-shot prompt show it,
what an answer is parsed into, and the scores of an answer. They are what `tasks/*.yaml` names.
"""

import re
import string
from collections.abc import Callable
from typing import Any, NamedTuple

from megatron_chimed.evaluation import entities
from megatron_chimed.evaluation.entities import Mention
from megatron_chimed.evaluation.readers import bias
from megatron_chimed.evaluation.text_metrics import text_scores
from megatron_chimed.text.template import Template

# What may follow a letter that is a choice: not the rest of a word such as B超 or A型.
_END = r"(?=$|[^\w]|[项选是])"
MARKED = re.compile(
    r"(?:答案|选项|选择|选|answer)\s*(?:应?该?[是为]|is|[:：])*\s*[(（【\[“\"]?\s*([A-Z])(?![A-Za-z超型族])", re.I
)
ALONE = re.compile(r"(?<![A-Za-z])([A-Z])" + _END)
FIRST = re.compile(r"[(（【\[“\"]?([A-Za-z])" + _END)
SEVERAL = re.compile(r"\s*[、,，/和或]\s*[A-Z](?![A-Za-z])")


class Scored(NamedTuple):
    """parsed: what was understood of an answer, None where nothing was; scores: {metric: value of this item}."""

    parsed: Any
    scores: dict[str, Any]


# Multiple choice.


def letters(item: dict) -> list[str]:
    """A, B, C, ..., one for each option."""
    return list(string.ascii_uppercase[: len(item["options"])])


def choice_text(item: dict) -> str:
    """The question with its options, as lm-evaluation-harness writes it for C-Eval and CMMLU."""
    options = (f"{letter}. {option}" for letter, option in zip(letters(item), item["options"], strict=True))
    return "\n".join([item["question"], *options, "答案："])


def cloze_text(item: dict) -> str:
    """The question without its options."""
    return f"{item['question']}\n答案："


def choice_target(item: dict) -> str:
    """The right letter."""
    return letters(item)[item["answer"]]


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


def score_choice(item: dict, answer: str) -> Scored:
    """acc: 1 for the right letter; unparsed: 1 where no letter was understood."""
    letter = parse_choice(answer, item)
    return Scored(letter, {"acc": float(letter == choice_target(item)), "unparsed": float(letter is None)})


# Named entities.


def entity_text(item: dict) -> str:
    """A sentence to be annotated."""
    return f"病历：{item['text']}\n实体："


def entity_target(item: dict) -> str:
    """The gold entities, one a line."""
    return entities.write_answer(Mention(**mention) for mention in item["mentions"])


def score_entities(item: dict, answer: str) -> Scored:
    """f1_strict, f1_relaxed: {type: [right, answered, gold]}; unparsed: 1 where no entity, nor 无, was understood.

    An answer that is not understood counts as one without entities.
    """
    found = entities.parse_answer(answer, item["types"], item["text"])
    gold = [Mention(**mention) for mention in item["mentions"]]
    scores: dict[str, Any] = {}
    for name, relaxed in (("f1_strict", False), ("f1_relaxed", True)):
        counts = entities.count_entities(found or (), gold, item["text"], item["types"], relaxed=relaxed)
        scores[name] = {kind: list(one) for kind, one in counts.items()}
    shown = None if found is None else [list(entity) for entity in sorted(found)]
    return Scored(shown, {**scores, "unparsed": float(found is None)})


# Free answers.


def answer_text(item: dict) -> str:
    """History and last question in the plain form of the released model, for models without a chat template."""
    return Template().plain(item["history"])


def score_answer(item: dict, answer: str) -> Scored:
    """BLEU and ROUGE against the reference; empty: 1 for an answer of white space."""
    text = answer.strip()
    return Scored(text or None, {**text_scores(text, item["reference"]), "empty": float(not text)})


# Bias scales.


def score_level(item: dict, answer: str) -> Scored:
    """points: [score, 1], or [0, 0] where the model chose no level; refused: 1 in that case."""
    level = bias.parse_level(answer, item["levels"])
    if level is None:
        return Scored(None, {"points": [0.0, 0.0], "refused": 1.0})
    score = bias.points(level, len(item["levels"]), item["biased"])
    return Scored(item["levels"][level], {"points": [float(score), 1.0], "refused": 0.0})


SCORERS: dict[str, Callable[[dict, str], Scored]] = {
    "letter": score_choice,
    "entities": score_entities,
    "answers": score_answer,
    "scale": score_level,
}
"""By the kind of a task whose answers are text."""

GOLD: dict[str, Callable[[dict], Any]] = {
    "choice": choice_target,
    "cloze": choice_target,
    "letter": choice_target,
    "entities": entity_target,
    "answers": lambda item: item["reference"],
    "scale": lambda item: None,
}
"""The right answer to an item, by the kind of its task; None where there is none."""
