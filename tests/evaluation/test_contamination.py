"""Test items that stand in training data, against a slow search for common 13-grams."""

import random

import pytest
from support.exam_files import write_lines

from megatron_chimed.data.decontamination import GRAM, tokens
from megatron_chimed.errors import InputError
from megatron_chimed.evaluation.contamination import contaminated, item_texts
from megatron_chimed.jsonl import expand


def grams(text: str, short: bool = True) -> set[tuple]:
    """All 13 tokens in a row; a shorter text as a whole."""
    found = tokens(text)
    if len(found) < GRAM:
        return {tuple(found)} if short and found else set()
    return {tuple(found[i : i + GRAM]) for i in range(len(found) - GRAM + 1)}


def test_the_flags_are_those_of_a_search_for_every_gram(tmp_path):
    draw = random.Random(0)
    words = ["头痛", "胃炎", "患者", "三天", "建议", "检查", "血压120", "您好"]
    texts = ["".join(draw.choices(words, k=draw.randint(1, 25))) for _ in range(400)]
    training, tests = texts[:150], texts[150:]
    for number in range(0, 60, 3):  # some share a part, some a whole short text
        place = draw.randrange(20)
        tests[number] = tests[number] + "，" + training[number][place : place + 30]
        tests[number + 1] = training[number + 1]
    items = [{"question": text} for text in tests[:100]]
    items += [{"history": [a, b, a], "reference": c} for a, b, c in zip(*[iter(tests[100:])] * 3, strict=False)]
    files = [write_lines(tmp_path / f"{n}.jsonl", [{"text": text} for text in training[n::3]]) for n in range(3)]
    known = set().union(*map(grams, training))
    expected = []
    for item in items:
        first, others = item_texts(item)
        expected.append(bool(known & grams(first)) or any(known & grams(text, short=False) for text in others))
    assert contaminated(items, list(map(str, files)), progress=False) == expected
    assert any(expected) and not all(expected)


def test_a_short_answer_that_everybody_gives_is_no_contamination(tmp_path):
    file = write_lines(tmp_path / "a.jsonl", [{"text": "好的，谢谢"}])
    items = [{"history": ["胃痛怎么办？", "注意饮食", "好的，谢谢"], "reference": "不客气"}, {"question": "好的谢谢！"}]
    assert contaminated(items, [str(file)], progress=False) == [False, True]


def test_a_pattern_without_a_file_is_refused(tmp_path):
    with pytest.raises(InputError, match="no such file"):
        expand([str(tmp_path / "*.jsonl")], "--training-data ")
