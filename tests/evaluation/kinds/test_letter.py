"""The letter that an answer chooses, on a table of answers as models write them."""

import pytest

from megatron_chimed.evaluation.kinds.letter import parse_choice, score

ITEM = {"options": ["胃炎", "肺炎", "眼病", "骨折"], "answer": 1}

AT_ONCE = {
    "B": "B",
    " B. 肺炎": "B",
    "（C）": "C",
    "b": "B",
    "B.": "B",
    "B、肺炎": "B",
    "B：肺炎": "B",
    "【B】": "B",
    "**B**": "B",
    "B\n解析：A项不对。": "B",
    "B，因为B超显示肺部阴影": "B",
    "B 肺炎": "B",
    "“C”": "C",
    "(d)": "D",
    "C。": "C",
    "D选项": "D",
    "Ａ": "A",
    "（Ｄ）": "D",
    "Ｂ．肺炎": "B",
    "ｃ": "C",
    "B项": "B",
    "B is correct.": "B",
    "A is the answer": "A",
}
EXPLICIT = {
    "答案：D": "D",
    "答案：Ｂ": "B",
    "选Ｃ。": "C",
    "答案为C": "C",
    "正确答案是B项，因为B超显示……": "B",
    "因此应该选择 C。": "C",
    "这道题考查 A 项内容，故选D": "D",
    "故本题选B。": "B",
    "本题答案应为（C）": "C",
    "答案是“A”。": "A",
    "The answer is B.": "B",
    "Answer: (C)": "C",
    "\\boxed{D}": "D",
    "最终答案：**B**": "B",
    "A选项错误，正确答案是B。": "B",
    "答案选B": "B",
    "A是错误的。B也不对。答案为C。": "C",
    "A. 胃炎不符合。B. 肺炎符合。故选B": "B",
    "选B，C不对": "B",
    "答案是b": "B",
    "首先看A，胃炎多有反酸；再看B，肺炎有咳嗽。答案是B。": "B",
    "说法错误的是A": "A",
    "不正确的是C。": "C",
    "答案不是A而是B": "B",
    "不选A，选B": "B",
    "排除A、C、D，故选B": "B",
    "答案是A。B、C、D都不正确。": "A",
    "ABCD四项中选B": "B",
    "我选 D，理由如下": "D",
    "正确选项：C": "C",
    "选项是D": "D",
    "A正确吗？不，答案是C": "C",
    "缺乏维生素A，选B": "B",
    "A、B都不对，选C": "C",
}
JUDGED = {
    "A：错误。B：正确": "B",
    "A. 胃炎不符合。B. 肺炎符合。": "B",
    "A错，B错，C对，D错": "C",
    "选项A错误，选项B正确。": "B",
    "A不对，B对": "B",
    "A对": "A",
    "B正确": "B",
    "B是正确的。": "B",
    "B选项符合题意": "B",
    "A is wrong. C is correct.": "C",
    "A和B是错的，C对": "C",
    "A和B都有可能，但B更准确": "B",
    "综上，B": "B",
    "我认为是C": "C",
    "Option D": "D",
    "A错误，B错误，C错误，D": "D",
    "C. 胃炎错误": None,
    "A不完全正确，B才正确": "B",
}
SEVERAL = [
    "A、B",
    "A、C",
    "答案：A、C",
    "答案：A/C",
    "正确答案是A和B",
    "A B C D",
    "A和C都对",
    "答案是A，也可能答案是B",
    "ABD",
    "AB",
    "A或B",
    "A,C正确",
    "Ａ、Ｂ",
    "A and B",
    "选A和B",
    "A、B、C均正确",
    "答案：BC",
    "胃炎和肺炎",
    "A/B",
    "A对，B也对",
]
RULED_OUT = [
    "不选A",
    "答案不是A",
    "不能选B",
    "A不对",
    "A错误",
    "排除A",
    "选A是错误的",
    "不是胃炎",
    "别选C",
    "不应选D",
    "排除A和B",
]
NOTHING = [
    "",
    "E",
    "我不知道",
    "B超检查可以确诊",
    "患者为A型血",
    "缺乏维生素A",
    "C反应蛋白升高",
    "A patient with fever",
    "需要进一步检查",
    "维生素B1缺乏",
    "T细胞减少",
    "X线检查",
    "HBsAg阳性",
]
BY_TEXT = {"肺炎": "B", "骨折。": "D", "不是胃炎，是肺炎": "B", "患者得了眼病": "C"}
TABLE = AT_ONCE | EXPLICIT | JUDGED | BY_TEXT | dict.fromkeys([*SEVERAL, *RULED_OUT, *NOTHING])


@pytest.mark.parametrize(("answer", "letter"), TABLE.items())
def test_the_letter_that_an_answer_chooses(answer, letter):
    assert parse_choice(answer, ITEM) == letter


def test_the_table_is_large_and_knows_every_outcome():
    assert len(TABLE) >= 100 and set(TABLE.values()) == {"A", "B", "C", "D", None}


def test_the_words_of_an_option_do_not_rule_it_out():
    item = {"options": ["不能平卧", "诊断错误", "不符合手术指征", "排除肺炎"], "answer": 0}
    for letter, option in zip("ABCD", item["options"], strict=True):
        assert parse_choice(f"{letter}. {option}", item) == letter
        assert parse_choice(f"{letter}：{option}。", item) == letter


def test_a_letter_that_is_not_understood_is_counted():
    assert score(ITEM, "答案：B").scores == {"acc": 1.0, "unparsed": 0.0}
    assert score(ITEM, "A、B").scores == {"acc": 0.0, "unparsed": 1.0}
