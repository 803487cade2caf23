"""Turns put into order: thinking apart from answers, one system turn in front, marks that survive a merge."""

import pytest

from megatron_chimed.data.dialogue_worker import Unanswered, arrange
from megatron_chimed.data.turns import RawTurn, merge_turns, preprocess_turns, split_thinking
from megatron_chimed.errors import InputError


def turns(*given):
    return [RawTurn(*turn) for turn in given]


@pytest.mark.parametrize(
    ("text", "thinking", "answer"),
    [
        ("休息", None, "休息"),
        ("<think>先问</think>休息", "先问", "休息"),
        (" \n<think>\n先问\n</think>\n\n休息", "\n先问\n", "\n\n休息"),
        ("<think>\n\n</think>\n\n休息", "\n\n", "\n\n休息"),
        ("先问</think>休息", "先问", "休息"),  # the prompt had opened it
        ("标签 <think> 是什么", None, "标签 <think> 是什么"),
    ],
)
def test_a_think_block_at_the_beginning_is_thinking(text, thinking, answer):
    assert split_thinking(text) == (thinking, answer)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("<think>先问", "unclosed <think>: "),
        ("休息<think>先问</think>", "think marks inside an answer: "),
        ("<think>a</think>b<think>c</think>", "think marks inside an answer: "),
        ("<think>a<think>b</think>c", "think marks inside an answer: "),
        ("<think>a</think>b</think>", "think marks inside an answer: "),
    ],
)
def test_a_block_that_is_not_one_in_front_is_refused_by_name(text, reason):
    with pytest.raises(InputError, match=f"^{reason}"):
        split_thinking(text)


def test_thinking_is_an_assistants_and_an_empty_block_is_none():
    said = [("user", "<think>a</think>b"), ("assistant", "<think> \n</think>c"), ("assistant", "d</think>e"),
            ("assistant", "f", "g"), ("assistant", "<think>g</think>f", "g")]  # fmt: skip
    found, changes = preprocess_turns(said, str.strip)
    assert found == turns(
        ("user", "<think>a</think>b"), ("assistant", "c"), ("assistant", "e", "d"), *[("assistant", "f", "g")] * 2
    )
    assert changes == {"empty think blocks left out": 1, "think blocks without <think>": 1}
    with pytest.raises(InputError, match="^thinking twice: "):
        preprocess_turns([("assistant", "<think>a</think>b", "c")], str.strip)


def test_system_turns_before_the_first_answer_are_one_in_front():
    given = turns(("system", "s"), ("system", "t"), ("user", "q"), ("system", "u"), ("assistant", "a"), ("user", "r"),
                  ("system", "t"), ("assistant", "b"))  # fmt: skip
    arranged, changes = arrange(given)
    assert arranged == turns(
        ("system", "s\nt\nu"), ("user", "q"), ("assistant", "a"), ("user", "r"), ("assistant", "b")
    )
    assert changes == {
        "system turns merged": 2, "system turns moved to the front": 1, "repeated system turns left out": 1,
    }  # fmt: skip
    assert arrange(arranged) == (arranged, {})
    greeted, changes = arrange(turns(("assistant", "您好"), ("system", "s"), ("user", "q"), ("assistant", "a")))
    assert greeted == turns(("system", "s"), ("user", "q"), ("assistant", "a"))
    assert changes == {"leading answers cut": 1, "system turns moved to the front": 1}


def test_no_answer_stays_without_the_system_turn_that_it_obeys():
    kept = [("system", "s"), ("user", "q"), ("assistant", "a")]
    arranged, changes = arrange(turns(*kept, ("user", "r"), ("system", "t"), ("assistant", "b")))
    assert arranged == turns(*kept)
    assert changes == {"turns cut from a later system turn on": 2, "trailing questions cut": 1}


def test_a_merged_answer_is_learnt_only_where_all_of_it_is():
    answers = [("assistant", "a", "x"), ("assistant", "b", "", False), ("assistant", "c", "z")]
    merged, changes = merge_turns(turns(("user", "q"), *answers))
    assert merged == turns(("user", "q"), ("assistant", "a\nb\nc", "x\nz", False))
    assert changes == {"turns merged": 2, "answers merged with one not to be learnt": 2}


def test_a_thought_without_an_answer_is_none():
    merged, changes = merge_turns(turns(("user", "q"), ("assistant", "", "x"), ("assistant", ""), ("assistant", "a")))
    assert merged == turns(("user", "q"), ("assistant", "a"))
    assert changes == {"turns of thinking alone left out": 1, "empty turns left out": 1}


def test_a_dialogue_without_an_answer_to_learn_is_dropped_by_name():
    given = turns(("user", "q"), ("assistant", "a", "", False), ("user", "r"), ("assistant", "b", "", False))
    with pytest.raises(Unanswered, match="^nothing to learn: "):
        arrange(given)
    given[1] = given[1]._replace(learn=True)
    assert arrange(given) == (given, {})
