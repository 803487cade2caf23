"""What PromptCBLUE has models extract: entities, relations, events, standard terms, symptoms with their signs.

An answer is read as the set's own scorer reads it, by lines and full-width signs, and counts as a set of facts.
Source: PromptCBLUE's README and evaluation (micro-F1 over facts).
"""

import re
from collections.abc import Callable

from megatron_chimed.evaluation.kinds.kind import Kind, Metric, Scored, problem, results_of
from megatron_chimed.evaluation.statistics import f1_ratio

Fact = tuple[str, ...]


def text(item: dict) -> str:
    """The question in words."""
    return item["question"]


def target(item: dict) -> str:
    """The published answer."""
    return item["target"]


def _entities(answer: str, choices: list[str]) -> set[Fact]:
    """(type, entity) of lines "TYPE实体：ENTITY，ENTITY"."""
    return {
        (kind, name.strip())
        for kind in choices
        for line in answer.splitlines()
        if line.startswith(f"{kind}实体：")
        for name in line.removeprefix(f"{kind}实体：").split("，")
        if name.strip()
    }


def _relations(answer: str, choices: list[str]) -> set[Fact]:
    """(relation, head, tail) of lines "具有RELATION关系的头尾实体对如下：头实体为HEAD，尾实体为TAIL。..."."""
    found = set()
    for line in answer.splitlines():
        if match := re.match(r"具有(.+?)关系的头尾实体对如下：(.*)", line):
            for pair in match[2].split("。"):
                head, comma, tail = pair.partition("，尾实体为")
                if comma:
                    found.add((match[1], head.strip().removeprefix("头实体为").strip(), tail.strip()))
    return found


def _terms(answer: str, choices: list[str]) -> set[Fact]:
    """(term,) of those of the choices that the last line names."""
    last = answer.strip().splitlines()[-1:] or [""]
    return {(term.strip(),) for term in last[0].split("，") if term.strip() in choices}


ATTRIBUTES = ("主体词", "发生状态", "描述词", "解剖部位")


def _events(answer: str, choices: list[str]) -> set[Fact]:
    """(subject, state, descriptions, sites) of lines "主体词：...；发生状态：...；描述词：...；解剖部位：..."."""
    found = set()
    for line in answer.splitlines():
        fields = dict(field.partition("：")[::2] for field in line.split("；"))
        if fields.keys() & set(ATTRIBUTES):
            values = (fields.get(name, "").strip() for name in ATTRIBUTES)
            found.add(tuple("，".join(part.strip() for part in value.split("，") if part.strip()) for value in values))
    return found


def _signs(answer: str, choices: list[str]) -> set[Fact]:
    """(symptom, sign) of lines "SYMPTOM：SIGN"; a sign that is none of the choices is the last of them."""
    pairs = (line.split("：") for line in answer.splitlines() if line.count("：") == 1)
    return {
        (name.strip(), sign.strip() if sign.strip() in choices else choices[-1]) for name, sign in pairs if sign.strip()
    }


READERS: dict[str, tuple[Callable[[str, list[str]], set[Fact]], str]] = {
    "CMeEE-V2": (_entities, "实体："),
    "IMCS-V2-NER": (_entities, "实体："),
    "CMeIE": (_relations, "头尾实体对如下"),
    "CHIP-CDN": (_terms, "没有对应"),
    "CHIP-CDEE": (_events, "主体词："),
    "IMCS-V2-SR": (_signs, "判断为"),
    "CHIP-MDCFNPC": (_signs, "判别如下"),
}
"""How the answers of a data set are read, and by which words one without a fact is understood."""


def read_facts(answer: str, item: dict) -> set[Fact] | None:
    """The facts of an answer; None where it has neither one nor the form of an answer without.

    >>> item = {"dataset": "CMeEE-V2", "choices": ["疾病", "身体部位"]}
    >>> sorted(read_facts("上述句子中的实体包含：\\n疾病实体：胃炎，贫血\\n身体部位实体：", item))
    [('疾病', '胃炎'), ('疾病', '贫血')]
    """
    read, sign = READERS[item["dataset"]]
    return read(answer, item["choices"]) or (set() if sign in answer else None)


def score(item: dict, answer: str) -> Scored:
    """f1: [right, answered, gold] facts; unparsed: 1 where no fact, nor the form of an answer, was understood."""
    found, gold = read_facts(answer, item), read_facts(item["target"], item) or set()
    counts = [len(gold & (found or set())), len(found or ()), len(gold)]
    shown = None if found is None else [list(fact) for fact in sorted(found)]
    return Scored(shown, {"f1": counts, "unparsed": float(found is None)})


METRICS = {
    "f1": Metric(tuple, f1_ratio, "micro-f1|unit:fact per row|parse:PromptCBLUE", aggregate="aggregate_f1"),
    "unparsed": problem(),
}


def aggregate_f1(values: list[list[int]]) -> float:
    """Micro-F1 over items, from 0 to 1."""
    return METRICS["f1"].of(values)


process_results = results_of(score)
KIND = Kind(
    "facts",
    "PromptCBLUE's extraction tasks, five-shot: entities, relations, events, standard terms, symptoms; micro-F1.",
    METRICS,
    target,
    {
        "output_type": "generate_until",
        "target_delimiter": "\n",
        "generation_kwargs": {"until": ["\n\n"], "max_gen_toks": 512, "do_sample": False},
    },
    main="f1",
)
