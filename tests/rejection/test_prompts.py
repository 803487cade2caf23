"""Prompts: drawn by seed and texts alone, without duplicates, without a question of an evaluation set."""

import json
import random
from collections import Counter
from dataclasses import replace

import pytest
from support.candidates import make_prompt
from support.dialogues import make_dialogues, write_dialogues

from megatron_chimed.errors import InputError
from megatron_chimed.records import Dialogue, Prompt, Turn
from megatron_chimed.rejection import prompts as drawing
from megatron_chimed.rejection.prompts import EvaluationTexts, draw_prompts, read_prompts

NOTHING = EvaluationTexts([])
LONG = "玄兰肺病的病人每天清晨空腹应该怎样服用益珂口服液"


def ask(prompts, count=20, seed=1, round=1, evaluation=NOTHING, **more):
    return draw_prompts(prompts, count, seed=seed, round=round, evaluation=evaluation, **more)


def numbered(count: int) -> list[Prompt]:
    """Prompts whose texts are far from each other."""
    draw = random.Random(0)
    texts = ("".join(chr(draw.randrange(0x4E00, 0x9FA5)) for _ in range(12)) for _ in range(count))
    return [make_prompt(text, id=f"p{number:03}") for number, text in enumerate(texts)]


def test_order_of_files_and_rows_does_not_change_the_draw():
    prompts = numbered(100)
    mixed = random.Random(1).sample(prompts, len(prompts))
    assert ask(prompts) == ask(mixed)
    assert len(ask(prompts)[0]) == 20 and ask(prompts)[1] == {drawing.NOT_DRAWN: 80}


def test_seed_and_round_draw_anew():
    prompts = numbered(100)
    draws = [ask(prompts)[0], ask(prompts, seed=2)[0], ask(prompts, round=2)[0]]
    assert all(one != other for one, other in [draws[:2], draws[1:], draws[::2]])
    counts = Counter(one.id for seed in range(200) for one in ask(prompts, 50, seed=seed, near=False)[0])
    assert len(counts) == 100 and all(abs(count - 100) < 36 for count in counts.values())  # five standard deviations


def test_one_text_is_drawn_once_and_the_smallest_id_stands_for_it():
    prompts = [
        make_prompt("头痛怎么办？", id="b"),
        make_prompt("头痛 怎么办？", id="a"),
        make_prompt("头痛怎么办?", id="c"),
    ]
    for order in (prompts, prompts[::-1]):
        drawn, counts = ask(order)
        assert [one.id for one in drawn] == ["a"] and counts == {drawing.DUPLICATE: 2}


def test_near_duplicates_are_dropped_unless_they_are_wanted():
    prompts = [make_prompt(LONG * 3 + end, id=end) for end in "甲乙"]
    assert ask(prompts)[1] == {drawing.NEAR_DUPLICATE: 1}
    assert len(ask(prompts, near=False)[0]) == 2


@pytest.mark.parametrize(
    ("texts", "held"),
    [
        (["头痛怎么"], False),
        (["头痛怎么办？"], True),
        (["您好", "请说", "头痛怎么办？ "], True),
        (["头痛怎么办？", "请说", "还有呢"], True),
        ([LONG + "呢？谢谢"], True),
        (["您好。" + LONG[:13]], True),
        ([LONG[:12]], False),
        (["您好", LONG, "谢谢"], False),  # what was answered before is no question
    ],
)
def test_no_prompt_asks_what_an_evaluation_set_asks(texts, held):
    drawn, counts = ask([make_prompt(*texts)], evaluation=EvaluationTexts(["头痛怎么办？", LONG]))
    assert (not drawn) == held and counts[drawing.EVALUATION] == held


def test_what_leaves_no_room_is_counted_and_replaced_by_the_next():
    prompts = numbered(30)
    first = ask(prompts, 5)[0]
    drawn, counts = ask(prompts, 5, fits=lambda prompt: prompt != first[0])
    assert len(drawn) == 5 and first[0] not in drawn and set(first[1:]) < set(drawn)
    assert counts == {drawing.TOO_LONG: 1, drawing.NOT_DRAWN: 24}


def test_every_prompt_is_drawn_or_counted():
    prompts = [*numbered(40), *numbered(5), *(make_prompt(LONG + end, id=f"long{end}") for end in "甲乙丙丁")]
    for count in (0, 7, 100):
        drawn, counts = ask(prompts, count, evaluation=EvaluationTexts([prompts[3].turns[0].text]))
        assert len(drawn) + sum(counts.values()) == len(prompts)


def test_a_dialogue_gives_its_history_and_last_question(tmp_path):
    dialogues = make_dialogues(20)
    path = write_dialogues(tmp_path / "in.jsonl", dialogues)
    prompts = list(read_prompts([path]))
    assert [one.turns for one in prompts] == [dialogue.turns[:-1] for dialogue in dialogues]
    assert [one.id for one in prompts] == [dialogue.id for dialogue in dialogues]


def test_a_prompt_keeps_the_system_turn_and_its_history_no_thinking(tmp_path):
    turns = [Turn("system", "s"), Turn("user", "一"), Turn("assistant", "二", "x", False), Turn("user", "三")]
    path = write_dialogues(tmp_path / "in.jsonl", [Dialogue("a", "b", (*turns, Turn("assistant", "四", "y")))])
    (prompt,) = read_prompts([path])
    assert prompt.turns == (*turns[:2], Turn("assistant", "二"), turns[3])
    path.write_text(json.dumps(prompt.to_row()))
    assert list(read_prompts([path])) == [prompt]


def test_a_long_system_turn_makes_no_near_duplicates_of_other_prompts():
    system = Turn("system", LONG * 9)
    prompts = [replace(one, turns=(system, *one.turns)) for one in numbered(9)]
    assert len(ask(prompts)[0]) == 9
    others = [replace(one, id=f"{one.id}b", turns=(Turn("system", "s"), *one.turns[1:])) for one in prompts]
    assert ask([*prompts, *others])[1] == {drawing.NEAR_DUPLICATE: 9}


def test_prompts_and_bare_questions_are_read_too(tmp_path):
    path = tmp_path / "valid.jsonl"
    rows = [make_prompt("一", "二", "三").to_row(), {"id": "q1", "question": "四？", "answer": "五"}]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert list(read_prompts([path])) == [make_prompt("一", "二", "三"), make_prompt("四？", id="q1", source="valid")]


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"id": "a", "source": "s", "turns": []}, "field 'turns'"),
        ({"id": "a", "question": " "}, "field 'turns'"),
        ({"question": "四？"}, "field 'id'"),
        ({"id": "p0", "question": "四？"}, "id 'p0' is there twice"),
        ({"id": "a", "source": "s", "turns": [{"role": "assistant", "text": "x"}]}, "turn 0 is the assistant's"),
    ],
)
def test_a_bad_row_is_named(tmp_path, row, reason):
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(one) + "\n" for one in [make_prompt("一").to_row(), row]))
    with pytest.raises(InputError, match=rf"rows.jsonl:2: {reason}"):
        list(read_prompts([path]))
