"""PromptCBLUE's own metrics: facts, labels and sections, against slower ways to the same figures."""

import random

import numpy as np
import pytest
from sklearn.metrics import classification_report
from support.published_sets import EXTRACTED, promptcblue_row

from megatron_chimed.evaluation.kinds import facts, label, report

EXPECTED = {
    "CMeEE-V2": {("疾病", "胃炎3"), ("疾病", "贫血")},
    "IMCS-V2-NER": {("症状", "腹痛3"), ("药品名称", "奥美拉唑")},
    "CMeIE": {("药物治疗", "胃炎3", "奥美拉唑")},
    "CHIP-CDN": {("孕3周",), ("贫血",)},
    "CHIP-CDEE": {("痛3", "否定", "胀，钝", "腹")},
    "IMCS-V2-SR": {("腹痛3", "患有该症状"), ("发热", "没有患有该症状")},
    "CHIP-MDCFNPC": {("腹痛3", "没有患有该症状")},
}
NOTHING = {
    "CMeEE-V2": "上述句子中的实体包含：\n疾病实体：\n身体部位实体：",
    "CMeIE": "具有药物治疗关系的头尾实体对如下：",
    "CHIP-CDN": "没有对应的标准化实体",
}


def item_of(dataset: str) -> dict:
    row = promptcblue_row(dataset, 3)
    return {"dataset": dataset, "choices": row["answer_choices"] or [], "target": row["target"]}


@pytest.mark.parametrize("dataset", EXTRACTED)
def test_the_facts_of_an_answer_are_those_that_the_set_counts(dataset):
    item = item_of(dataset)
    assert facts.read_facts(item["target"], item) == EXPECTED[dataset]
    assert facts.score(item, item["target"]).scores == {"f1": [len(EXPECTED[dataset])] * 3, "unparsed": 0.0}
    assert facts.score(item, "我不知道").scores == {"f1": [0, 0, len(EXPECTED[dataset])], "unparsed": 1.0}
    if dataset in NOTHING:
        assert facts.read_facts(NOTHING[dataset], item) == set()


def test_f1_of_facts_is_that_of_precision_and_recall_over_all_rows():
    item = item_of("CMeEE-V2")
    answers = ["疾病实体：胃炎3", "疾病实体：胃炎3，贫血，肺炎", "身体部位实体：贫血", ""]
    values = [facts.score(item, answer).scores["f1"] for answer in answers]
    right, answered, gold = 1 + 2 + 0, 1 + 3 + 1, 4 * 2
    precision, recall = right / answered, right / gold
    assert facts.aggregate_f1(values) == pytest.approx(2 * precision * recall / (precision + recall))


def test_a_sign_that_is_no_choice_is_the_last_one_and_a_line_without_a_sign_none():
    item = item_of("IMCS-V2-SR")
    assert facts.read_facts("腹痛：可能\n发热：\n如下：a：b", item) == {("腹痛", item["choices"][-1])}


def test_averages_of_f1_are_those_of_sklearn():
    draw = random.Random(0)
    labels = ["诊断", "年龄", "性别", "饮食", "非上述类型"]
    gold = draw.choices(labels[:4], [6, 3, 2, 1], k=200)
    answers = [one if draw.random() < 0.6 else draw.choice([*labels, "不是标签"]) for one in gold]
    item = {"choices": labels[:4], "labels": sorted(labels)}
    scored = [label.score({**item, "target": one}, answer) for one, answer in zip(gold, answers, strict=True)]
    theirs = classification_report(gold, answers, output_dict=True, zero_division=0)
    for name, ours in (("macro avg", label.aggregate_macro), ("weighted avg", label.aggregate_weighted)):
        key = "f1_macro" if name == "macro avg" else "f1_weighted"
        assert ours([one.scores[key] for one in scored]) == pytest.approx(theirs[name]["f1-score"], abs=1e-12)
    assert np.mean([one.scores["acc"] for one in scored]) == pytest.approx(theirs["accuracy"])
    assert sum(one.scores["unparsed"] for one in scored) == answers.count("不是标签") > 0


def test_the_longest_label_counts_and_two_forms_of_one_label_are_one():
    item = {"choices": ["相关", "不相关"]}
    table = {
        "不相关": "不相关",
        "两者不相关。": "不相关",
        "相关": "相关",
        "相关，不相关": None,
        "": None,
        "非上述类型": "非上述类型",
    }
    assert {answer: label.parse_label(answer, item) for answer in table} == table
    same = {"choices": ["相同", "不同"], "labels": ["不同", "相同"], "target": "相同"}
    assert label.parse_label("是的", same) == label.parse_label("相同", same) == "是的"
    assert label.score(same, "是的").scores["acc"] == 1.0 == label.score(same, "相同").scores["acc"]


def test_a_report_is_scored_by_sections_and_one_without_any_is_0():
    row = promptcblue_row("IMCS-V2-MRG", 2)
    item = {"history": [row["input"]], "reference": row["target"]}
    assert report.score(item, row["target"]).scores["rougeL_chars"] == [6.0, 6.0]
    assert report.score(item, "腹痛").scores == {**dict.fromkeys(report.NAMES, [0.0, 6.0]), "unparsed": 1.0}
    one = report.score(item, "主诉：腹痛2天。").scores["rougeL_chars"]  # and the section that is empty in the reference
    assert one[0] >= 2 and one[1] == 6
