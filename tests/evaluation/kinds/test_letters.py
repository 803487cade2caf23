"""The letters that an answer chooses where several may be right."""

import itertools

import pytest

from megatron_chimed.evaluation.kinds.letter import parse_choice
from megatron_chimed.evaluation.kinds.letters import METRICS, parse_choices, score, target

ITEM = {"options": ["胃炎", "肺炎", "眼病", "骨折", "贫血"], "answers": [0, 1, 3]}
TABLE = {
    "ABD": "ABD",
    "abd": "ABD",
    "DBA": "ABD",
    "ＡＢＤ。": "ABD",
    "A": "A",
    "A、B、D": "ABD",
    "A,B,D": "ABD",
    "A B D": "ABD",
    "A和B": "AB",
    "（A、D）": "AD",
    "答案：ABD": "ABD",
    "答案是A、B、D。": "ABD",
    "正确答案为ABDE，因为……": "ABDE",
    "故选BCD": "BCD",
    "The answer is AB.": "AB",
    "\\boxed{ACD}": "ACD",
    "A对，B错，C对，D错，E错": "AC",
    "A、B正确，C错误": "AB",
    "ABD均正确": "ABD",
    "ABD\n解析：C不对。": "ABD",
    "不选C，选ABD": "ABD",
    "排除C、E，故选ABD": "ABD",
    "胃炎和肺炎": "AB",
    "A. 胃炎；B. 肺炎": "AB",
    "以上都对": "ABCDE",
    "全选": "ABCDE",
    "答案：B": "B",
    "我认为是A、D": "AD",
    "": None,
    "我不知道": None,
    "不选A": None,
    "AZ": None,
    "DNA检查": None,
    "CBD结石": None,
    "ACE抑制剂": None,
    "患者为AB型血": None,
    "以上都不对": None,
}


@pytest.mark.parametrize(("answer", "letters"), TABLE.items())
def test_the_letters_that_an_answer_chooses(answer, letters):
    assert parse_choices(answer, ITEM) == letters


def test_every_set_of_letters_is_read_back_in_every_order_and_form():
    for size in range(1, 6):
        for chosen in itertools.combinations("ABCDE", size):
            wanted = "".join(chosen)
            assert target({**ITEM, "answers": ["ABCDE".index(letter) for letter in chosen]}) == wanted
            for order in itertools.islice(itertools.permutations(chosen), 6):
                for between in ("", "、", ",", " ", "和"):
                    assert parse_choices(between.join(order), ITEM) == wanted, (order, between)
                assert parse_choices(f"答案：{'、'.join(order)}。", ITEM) == wanted


def test_only_the_exact_set_is_right_and_both_kinds_of_question_have_their_own_figure():
    assert score(ITEM, "ABD").scores == {"acc": 1.0, "acc_one": [0.0, 0.0], "acc_several": [1.0, 1.0], "unparsed": 0.0}
    for wrong in ("AB", "ABDE", "A", ""):
        assert score(ITEM, wrong).scores["acc_several"] == [0.0, 1.0], wrong
    one = {**ITEM, "answers": [1]}
    assert score(one, "B").scores["acc_one"] == [1.0, 1.0] and score(one, "BC").scores["acc"] == 0.0
    assert METRICS["acc_several"].of([score(item, "B").scores["acc_several"] for item in (ITEM, one, one)]) == 0.0
    assert METRICS["acc_one"].of([score(item, "B").scores["acc_one"] for item in (ITEM, one, one)]) == 1.0


def test_of_ten_options_one_is_i_and_the_pronoun_is_none():
    item = {"options": [f"drug {number}" for number in range(10)]}
    assert parse_choice("I think that B is right.", item) == "B"
    assert parse_choice("I'm sure, B", item) == "B"
    assert parse_choice("I", item) == parse_choice("Answer: I", item) == parse_choice("I. drug", item) == "I"
