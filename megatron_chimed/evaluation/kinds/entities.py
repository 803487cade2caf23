"""Named entities: description, five gold examples, the sentence."""

from typing import Any

from megatron_chimed.evaluation import entities
from megatron_chimed.evaluation.entities import Mention
from megatron_chimed.evaluation.kinds.kind import Kind, Metric, Scored, problem, results_of
from megatron_chimed.evaluation.statistics import f1_ratio


def text(item: dict) -> str:
    """A sentence to be annotated."""
    return f"病历：{item['text']}\n实体："


def target(item: dict) -> str:
    """The gold entities, one a line."""
    return entities.write_answer(Mention(**mention) for mention in item["mentions"])


def score(item: dict, answer: str) -> Scored:
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


def _f1(name: str) -> Metric:
    """Micro-F1 of counts by type."""
    return Metric(
        lambda value: tuple(float(sum(column)) for column in zip((0, 0, 0), *value.values(), strict=True)),
        f1_ratio,
        f"micro-f1|match:{name}|unit:(type,text) per sentence",
        aggregate="aggregate_f1",
    )


METRICS = {"f1_strict": _f1("strict"), "f1_relaxed": _f1("relaxed"), "unparsed": problem()}


def aggregate_f1(values: list[dict]) -> float:
    """Micro-F1 over items, from 0 to 1."""
    return METRICS["f1_strict"].of(values)


process_results = results_of(score)
KIND = Kind(
    "entities",
    "Named entities: description, five gold examples, the sentence.",
    METRICS,
    target,
    {
        "output_type": "generate_until",
        "description": "请找出病历中的医学实体，类型有：{{types | join('、')}}。每行写一个实体，"
        "格式为“类型：实体”，实体要与原文一致；没有实体时回答“无”。\n\n",
        "target_delimiter": "\n",
        "generation_kwargs": {"until": ["\n\n"], "max_gen_toks": 256, "do_sample": False},
    },
    main="f1_strict",
)
