"""Named entities in an answer, and how many of them are right.

An answer is free text, so entities have a type and a text, no position. What counts is the set of (type, text) of a
sentence: the same mention twice is one entity, in the gold annotation as in the answer.

- strict: type and text are those of a gold entity;
- relaxed: the type is right, and an occurrence of the text in the sentence overlaps with a gold mention of that type.
  One gold entity pairs with one entity of the answer, in the way that makes the most pairs.

Micro-F1 adds up the counts of all sentences. Source: paper, section on evaluation (F1 on CCKS-2019 and ChiMST); strict
and relaxed as in the task description of CCKS-2019.
"""

import json
import re
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

NOTHING = ("无", "没有", "未提及", "无实体", "没有实体", "none", "[]", "{}")
TYPE_KEYS = ("type", "label", "label_type", "类型", "实体类型", "category")
TEXT_KEYS = ("text", "entity", "name", "实体", "实体名称", "word", "span")
_NUMBERING = re.compile(r"^\s*(?:[-*•·]|[(（]?\d{1,2}[)）.、．])\s*")
_BETWEEN = re.compile(r"[、，,；;]")
_LINE_END = "。．. \t"


class Entity(NamedTuple):
    """An entity of an answer: its type and its text."""

    type: str
    text: str


class Mention(NamedTuple):
    """A gold entity in a sentence: type, text, first character and the one behind the last."""

    type: str
    text: str
    start: int
    end: int


def write_answer(mentions: Iterable[Mention]) -> str:
    """The gold answer, one entity a line in order of appearance: ``类型：实体``; 无 where there is none."""
    entities = dict.fromkeys((mention.type, mention.text) for mention in sorted(mentions, key=lambda m: m.start))
    return "\n".join(f"{kind}：{text}" for kind, text in entities) or NOTHING[0]


def parse_answer(answer: str, types: Sequence[str], sentence: str) -> set[Entity] | None:
    """The entities that an answer names, or None if it neither names any nor says that there is none.

    Understood are lines of ``类型：实体``, bullets and numbers in front or not, lines of ``实体（类型）``, and JSON:
    {type: [texts]}, [{"type": ..., "text": ...}], [[type, text]], in a fence or with words around it. A line names one
    entity, as the examples in the prompt do; what does not stand in the sentence is taken apart at 、 and ；. A type
    that is none of `types` makes no entity.

    >>> sorted(parse_answer("1. 症状：头痛、恶心\\n药物：无", ["症状", "药物"], "头痛三天，今日恶心"))
    [Entity(type='症状', text='头痛'), Entity(type='症状', text='恶心')]
    """
    text = re.sub(r"```\w*", "", answer).strip()
    if text.strip(_LINE_END).lower() in NOTHING:
        return set()
    found = list(_of_json(_find_json(text), types))
    if not found:
        found = [entity for line in text.splitlines() for entity in _of_line(line, types, sentence)]
    if not found:
        return None
    return {Entity(kind, name) for kind, name in found if name and name.lower() not in NOTHING}


def _find_json(text: str) -> Any:
    """The JSON object or array that begins at the first bracket, or None."""
    start = min((place for place in (text.find("{"), text.find("[")) if place >= 0), default=-1)
    if start < 0:
        return None
    try:
        return json.JSONDecoder().raw_decode(text[start:])[0]
    except (ValueError, RecursionError):
        return None


def _of_json(value: Any, types: Sequence[str]) -> Iterable[tuple[str, str]]:
    """(type, text) of a JSON answer."""
    if isinstance(value, dict):
        kind = next((value[key] for key in TYPE_KEYS if isinstance(value.get(key), str)), None)
        name = next((value[key] for key in TEXT_KEYS if isinstance(value.get(key), str)), None)
        if kind in types and name is not None:
            yield kind, name.strip()
            return
        for key, inner in value.items():
            if key in types:
                yield from ((key, name.strip()) for name in _strings(inner))
            else:
                yield from _of_json(inner, types)
    elif isinstance(value, list):
        if len(value) == 2 and all(isinstance(one, str) for one in value) and set(value) & set(types):
            kind, name = value if value[0] in types else reversed(value)
            yield kind, name.strip()
            return
        for inner in value:
            yield from _of_json(inner, types)


def _strings(value: Any) -> list[str]:
    """The texts below a type: one, or a list of them, or of objects that hold one."""
    if isinstance(value, str):
        return [value]
    if isinstance(value, dict):
        return [value[key] for key in TEXT_KEYS if isinstance(value.get(key), str)]
    return [text for inner in value for text in _strings(inner)] if isinstance(value, list) else []


def _of_line(line: str, types: Sequence[str], sentence: str) -> Iterable[tuple[str, str]]:
    """(type, text) of a line; the text is "" where the line has a type and names nothing."""
    line = _NUMBERING.sub("", line).strip().replace("**", "")
    kind, colon, names = re.sub("[:：]", "：", line, count=1).partition("：")
    kind, names = kind.strip(" 【】[]"), names.strip(" 。")
    if colon and kind in types:
        for name in [names] if names in sentence else _BETWEEN.split(names):
            yield kind, name if name in sentence else name.strip(_LINE_END + "\"'“”《》")
    elif (match := re.fullmatch(rf"(.+?)\s*[(（]([^()（）]+)[)）][{_LINE_END}]*", line)) and match[2] in types:
        yield match[2], match[1].strip()


class Counts(NamedTuple):
    """right: pairs of answer and gold; answered, gold: entities. `f1` is 2 x right / (answered + gold)."""

    right: int
    answered: int
    gold: int


def count_entities(
    answered: Iterable[Entity], gold: Iterable[Mention], sentence: str, types: Sequence[str], *, relaxed: bool
) -> dict[str, Counts]:
    """{type: Counts} of one sentence; types without an entity are left out."""
    answered, gold = set(answered), list(gold)
    counts = {}
    for kind in types:
        given = sorted({entity.text for entity in answered if entity.type == kind})
        mentions: dict[str, list[Mention]] = {}
        for mention in gold:
            if mention.type == kind:
                mentions.setdefault(mention.text, []).append(mention)
        if not given and not mentions:
            continue
        if relaxed:
            right = _most_pairs([[_overlaps(text, spans, sentence) for spans in mentions.values()] for text in given])
        else:
            right = len(set(given) & set(mentions))
        counts[kind] = Counts(right, len(given), len(mentions))
    return counts


def _overlaps(text: str, mentions: Iterable[Mention], sentence: str) -> bool:
    """Whether an occurrence of the text in the sentence shares a character with one of the mentions."""
    starts = (match.start() for match in re.finditer(f"(?={re.escape(text)})", sentence)) if text else ()
    spans = [(start, start + len(text)) for start in starts]
    return any(start < mention.end and mention.start < end for start, end in spans for mention in mentions)


def _most_pairs(fits: list[list[bool]]) -> int:
    """How many rows can each have a column of their own that fits (maximum bipartite matching, by augmenting paths)."""
    owner: dict[int, int] = {}

    def place(row: int, seen: set[int]) -> bool:
        for column, fit in enumerate(fits[row]):
            if fit and column not in seen:
                seen.add(column)
                if column not in owner or place(owner[column], seen):
                    owner[column] = row
                    return True
        return False

    return sum(place(row, set()) for row in range(len(fits)))
