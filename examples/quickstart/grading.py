"""How good is an answer? Counted in gold facts, by a pure function of the world, the question and the answer.

It is no part of any training: the reward model never sees it. It is the yardstick that later measures whether
rejection sampling chose better answers.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

from answers import Question, all_questions
from world import World

from megatron_chimed.errors import InputError

FILLER_WEIGHT = 0.2


@dataclass(frozen=True)
class Grade:
    """recall: share of the required facts present; precision: share of true values among all values stated (1.0 if
    none is); filler: share of sentences without any true value. All from 0 to 1."""

    recall: float
    precision: float
    filler: float

    @property
    def quality(self) -> float:
        """One figure from 0 to 1: recall x precision, less up to a fifth for filler."""
        return self.recall * self.precision * (1 - FILLER_WEIGHT * self.filler)


def find_values(text: str, vocabulary: Mapping[str, str]) -> list[tuple[int, int, str]]:
    """Every value of the vocabulary in the text as (start, end, kind), by position; end is exclusive."""
    if not vocabulary:
        return []
    pattern = "|".join(map(re.escape, sorted(vocabulary, key=lambda value: (-len(value), value))))
    return [(m.start(), m.end(), vocabulary[m.group()]) for m in re.finditer(pattern, text)]


def grade_answer(
    answer: str, required: Mapping[str, str], true: frozenset[str], vocabulary: Mapping[str, str]
) -> Grade:
    """Grade one answer.

    required: fact name -> value that a complete answer states; true: all values that hold of the question's disease
    (stating one that was not asked for does no harm); vocabulary: all values of the world with their kinds.

    >>> grade_answer("应去眼科。", {"department": "骨科"}, frozenset({"骨科"}), {"骨科": "d", "眼科": "d"}).quality
    0.0
    """
    stated = {answer[start:end] for start, end, _ in find_values(answer, vocabulary)}
    recall = sum(value in stated for value in required.values()) / len(required)
    precision = len(stated & true) / len(stated) if stated else 1.0
    sentences = [part for part in re.split("[。！？；!?;\n]", answer) if part.strip()]
    empty = sum(not any(value in sentence for value in true) for sentence in sentences)
    return Grade(recall, precision, empty / len(sentences) if sentences else 1.0)


@dataclass(frozen=True)
class Grader:
    """Grades answers to any question of one world.

    >>> from world import build_world
    >>> grader = Grader(build_world(seed=0, size=0.4))
    >>> grader.grade("玄兰喘症应该挂什么科？", "您好，玄兰喘症一般由呼吸内科的医生接诊。").quality
    1.0
    """

    world: World

    @cached_property
    def questions(self) -> dict[str, Question]:
        """Every wording of every question -> the question."""
        return {question.text: question for question in all_questions(self.world)}

    def grade(self, question: str, answer: str) -> Grade:
        """Grade an answer to a question in the world's wording. Raises InputError for an unknown question."""
        known = self.questions.get(question.strip())
        if known is None:
            raise InputError(f"the synthetic world has no question {question!r}; take questions from its own files")
        return grade_answer(answer, known.required, known.disease.values, self.world.vocabulary)
