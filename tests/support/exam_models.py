"""Models that need no weights: one that knows every answer, one that guesses, one that says nothing."""

import hashlib
import random

from lm_eval.api.model import LM

from megatron_chimed.evaluation.backends.models import EvaluatedModel
from megatron_chimed.evaluation.kinds import KINDS
from megatron_chimed.evaluation.readers.exams import CMMLU_SUBJECTS
from megatron_chimed.evaluation.readers.promptcblue import DATASETS
from support.exam_files import dialogue, page, write_ccks, write_ceval, write_cmmlu, write_lines, write_mcmle


def kind_of(item: dict) -> str:
    """The kind of the task that an item is of."""
    if "dataset" in item:
        return DATASETS[item["dataset"]]
    kinds = {"rubric": "rubric", "answers": "letters", "options": "letter", "mentions": "entities"}
    kinds |= {"history": "answers", "levels": "scale"}
    return next(kind for key, kind in kinds.items() if item.get(key) is not None)


def is_right(item: dict, option: str) -> bool:
    """Whether an option, a letter or its text, is the right one."""
    return option.strip() in (KINDS["choice"].gold(item), item["options"][item["answer"]])


class Scripted(LM):
    """Answers by a function of the item and the prompt; counts what it is asked."""

    def __init__(self, answer, likelihood=lambda item, prompt, option: 0.0):
        super().__init__()
        self.answer, self.likelihood, self.seed, self.cut, self.asked = answer, likelihood, 0, {}, []

    def loglikelihood(self, requests):
        """likelihood(item, prompt, option) of each."""
        self.asked += [request.args[0] for request in requests]
        return [(self.likelihood(request.doc, *request.args), False) for request in requests]

    def loglikelihood_rolling(self, requests):
        """Not asked for."""
        raise NotImplementedError

    def generate_until(self, requests):
        """answer(item, prompt) of each."""
        self.asked += [request.args[0] for request in requests]
        return [self.answer(request.doc, request.args[0]) for request in requests]


def oracle() -> Scripted:
    """Gives the gold answer; full agreement on a scale."""

    def answer(item: dict, prompt: str) -> str:
        return KINDS[kind_of(item)].gold(item) or item["levels"][-1]

    return Scripted(answer, lambda item, prompt, option: float(is_right(item, option)))


def empty() -> Scripted:
    """Says nothing, and finds all options equally likely but the right one, which it finds worse."""
    return Scripted(lambda item, prompt: "", lambda item, prompt, option: -float(is_right(item, option)))


def guess(prompt: str, more: str = "") -> random.Random:
    """Chance that depends on the prompt alone, to the last character."""
    return random.Random(hashlib.sha256((prompt + more).encode()).hexdigest())


def guesser() -> Scripted:
    """Guesses letters and levels."""

    def answer(item: dict, prompt: str) -> str:
        draw = guess(prompt)
        if kind_of(item) == "letter":
            return draw.choice("ABCD")
        return draw.choice(item["levels"]) if kind_of(item) == "scale" else ""

    return Scripted(answer, lambda item, prompt, option: guess(prompt, option).random())


def scripted(backend: Scripted, name: str = "scripted", likelihood: bool = True) -> EvaluatedModel:
    """The model of a --model flag, made already."""
    return EvaluatedModel(name, {"weights": name}, lambda: backend, likelihood)


def write_all(folder) -> list[str]:
    """Small files of every format; returns the --tasks flags."""
    pages = write_lines(folder / "chimed.jsonl", [page(number) for number in range(4)])
    (folder / "mc.dialog").write_text("".join(map(dialogue, range(3))), encoding="utf-8")
    (folder / "chimst.txt").write_text(
        "".join(f"第{n}例 O\n头 B-症状\n痛 I-症状\n。 O\n\n" for n in range(9)), encoding="utf-8"
    )
    return [
        f"ccks2019={write_ccks(folder / 'ccks')}",
        f"chimst={folder}/chimst.txt,{folder}/chimst.txt",
        f"ceval={write_ceval(folder / 'ceval')}",
        f"cmmlu={write_cmmlu(folder / 'cmmlu', list(CMMLU_SUBJECTS))}",
        f"mcmle={write_mcmle(folder / 'mcmle')}",
        f"chimed={pages}",
        f"mc={folder / 'mc.dialog'}",
        "scale=example",
    ]
