"""Published formats of test sets: every row is an item or a fault with its place."""

import json
import sys

import pytest
from support.exam_files import (
    SENTENCE,
    ccks_row,
    dialogue,
    page,
    question,
    write_ccks,
    write_ceval,
    write_cmmlu,
    write_csv,
    write_lines,
    write_mcmle,
)
from support.paths import ROOT

from megatron_chimed.errors import InputError
from megatron_chimed.evaluation.catalog import parse_tasks
from megatron_chimed.evaluation.readers.answers import read_chimed, read_mc
from megatron_chimed.evaluation.readers.entities import read_ccks2019, read_columns
from megatron_chimed.evaluation.readers.exams import CMMLU_SUBJECTS, read_ceval, read_cmmlu, read_mcmle


def test_ceval_is_answered_from_val_as_its_test_split_has_no_answers(tmp_path):
    loaded = read_ceval(str(write_ceval(tmp_path)), "basic_medicine")
    assert [len(loaded[split].items) for split in ("fewshot", "test")] == [5, 8]
    first = loaded["test"].items[1]
    assert first["id"] == "basic_medicine_val.csv:3" and first["group"] == "basic_medicine"
    assert [first["question"], *first["options"], "ABCD"[first["answer"]]] == question(1)
    (tmp_path / "val" / "basic_medicine_val.csv").unlink()
    with pytest.raises(InputError, match=r"basic_medicine_test\.csv:2: answer None.*without answers"):
        read_ceval(str(tmp_path), "basic_medicine")


def test_cmmlu_and_mcmle(tmp_path):
    subjects = list(CMMLU_SUBJECTS)
    assert len(subjects) == 7
    loaded = read_cmmlu(str(write_cmmlu(tmp_path / "cmmlu", subjects)), "virology")
    assert len(loaded["fewshot"].items) == 5 and len(loaded["test"].items) == 4
    assert [item["answer"] for item in loaded["test"].items] == [0, 1, 2, 3]
    loaded = read_mcmle(str(write_mcmle(tmp_path / "mcmle")))
    assert len(loaded["fewshot"].items) == 5
    assert [(len(item["options"]), item["answer"]) for item in loaded["test"].items[:3]] == [(5, 0), (5, 1), (5, 2)]


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        (["1", "", "a", "b", "c", "d", "A"], "no question"),
        (["1", "问", "a", "", "c", "d", "A"], "expected an option behind each letter"),
        (["1", "问", "a", "b", "c", "d", "E"], "answer 'E'; expected one of A, B, C, D"),
        (["1", "问", "a", "b", "c", "d"], "6 fields in a table of 7 columns"),
    ],
)
def test_a_malformed_question_is_a_fault_with_its_place(tmp_path, row, reason):
    write_ceval(tmp_path)
    path = tmp_path / "val" / "basic_medicine_val.csv"
    good = ["0", *question(0)]
    write_csv(path, ["id", "question", "A", "B", "C", "D", "answer"], [good, row, good])
    loaded = read_ceval(str(tmp_path), "basic_medicine")["test"]
    assert (loaded.rows, len(loaded.items), len(loaded.faults)) == (3, 2, 1)
    assert loaded.faults[0].startswith(f"{path}:3: {reason}"), loaded.faults


def test_ccks_2019_with_several_files_and_a_byte_order_mark(tmp_path):
    loaded = read_ccks2019(write_ccks(tmp_path))
    assert [len(loaded[split].items) for split in ("test", "fewshot")] == [6, 7]
    item = loaded["test"].items[2]
    assert item["types"] == ["疾病和诊断", "症状", "药物"] == sorted(item["types"])
    for mention in item["mentions"]:
        assert item["text"][mention["start"] : mention["end"]] == mention["text"]
    assert [mention["text"] for mention in item["mentions"]] == ["头痛", "胃炎", "奥美拉唑"]


def test_malformed_sentences_are_faults(tmp_path):
    bad = [
        "{",
        {"originalText": SENTENCE},
        {"originalText": "头痛", "entities": [{"label_type": "症状", "start_pos": 1, "end_pos": 9}]},
        {"originalText": "头痛", "entities": [{"start_pos": 0, "end_pos": 2}]},
    ]
    test = write_lines(tmp_path / "test.json", [ccks_row(SENTENCE, ("症状", "头痛")), *bad])
    loaded = read_ccks2019(f"{test},{test}")["test"]
    assert (loaded.rows, len(loaded.items)) == (5, 1)
    reasons = ["invalid JSON", "originalText", "from 1 to 9 lies outside a text of 2 characters", "no label_type"]
    assert all(
        f"{test}:{n}: " in fault and reason in fault
        for n, (fault, reason) in enumerate(zip(loaded.faults, reasons, strict=True), 2)
    )
    with pytest.raises(InputError, match="TEST,EXAMPLES"):
        read_ccks2019(str(test))


@pytest.mark.parametrize(
    "tags",
    [["O", "B-症状", "I-症状", "B-疾病", "I-疾病", "O"], ["O", "B_症状", "E_症状", "B_疾病", "E_疾病", "O"]],
    ids=["BIO", "BMES"],
)
def test_columns_of_tokens_and_tags(tmp_path, tags):
    lines = "\n".join(
        f"{token}\tx\t{tag}" for token, tag in zip(["患者", "头", "痛", "胃", "炎", "。"], tags, strict=True)
    )
    path = tmp_path / "test.txt"
    path.write_text(f"{lines}\n\n咳嗽 S-症状\n\n坏\n", encoding="utf-8")
    loaded = read_columns(f"{path},{path}")["test"]
    assert [item["text"] for item in loaded.items] == ["患者头痛胃炎。", "咳嗽"]
    assert [tuple(m.values()) for m in loaded.items[0]["mentions"]] == [("症状", "头痛", 2, 4), ("疾病", "胃炎", 4, 6)]
    assert [m["text"] for m in loaded.items[1]["mentions"]] == ["咳嗽"]
    assert len(loaded.faults) == 1 and "one column" in loaded.faults[0]


def test_chimed_pages_and_mc_dialogues(tmp_path):
    pages = write_lines(tmp_path / "chimed.jsonl", [page(1), page(2, answer=""), "[]", page(3)])
    loaded = read_chimed(str(pages))["test"]
    assert [item["reference"] for item in loaded.items] == ["建议多喝水，注意休息。"] * 2
    assert loaded.items[0]["history"] == ["第1个问题，胃炎怎么办？"] and loaded.items[0]["group"] == "消化科"
    assert [fault.split(": ", 1)[1][:20] for fault in loaded.faults] == ["no doctor's answer", "expected a JSON obje"]
    path = tmp_path / "test.dialog"
    path.write_text(dialogue(1) + "id\t2\nP\t只问不答\t1\n\n" + dialogue(3), encoding="utf-8")
    loaded = read_mc(str(path))["test"]
    assert [(item["id"], len(item["history"]), item["reference"]) for item in loaded.items[:2]] == [
        ("test.dialog:1.1", 1, "痛多久了？"),
        ("test.dialog:1.2", 3, "建议做胃镜。\n清淡饮食。"),
    ]
    assert len(loaded.items) == 4 and len(loaded.faults) == 1 and loaded.rows == 3


def test_a_file_without_an_item_is_an_error(tmp_path):
    path = write_lines(tmp_path / "chimed.jsonl", [page(1, answer="")])
    with pytest.raises(InputError, match=r"no test item in 1 rows; the first: .*chimed\.jsonl:1: no doctor"):
        read_chimed(str(path))
    with pytest.raises(InputError, match="no such file"):
        read_mc(str(tmp_path / "none.dialog"))


def test_the_quickstart_writes_what_the_readers_read(tmp_path):
    sys.path.insert(0, str(ROOT / "examples" / "quickstart"))
    import make_world

    make_world.write_world(tmp_path, seed=0, size=0.4)
    exams = [
        read_ceval(str(tmp_path / "multiple_choice"), subject) for subject in ("basic_medicine", "clinical_medicine")
    ]
    entities = read_ccks2019(f"{tmp_path}/ner_test.jsonl,{tmp_path}/ner_train.jsonl")
    free = [read_chimed(str(tmp_path / "chimed_test.jsonl")), read_mc(str(tmp_path / "mc_test.dialog"))]
    for loaded in (*exams, entities, *free):
        assert loaded["test"].items and not loaded["test"].faults
    assert all(len(exam["fewshot"].items) == 5 for exam in exams)
    files = json.loads((tmp_path / "world.json").read_text(encoding="utf-8"))["files"]
    assert len(entities["test"].items) == files["ner_test.jsonl"]["rows"]


@pytest.mark.parametrize("flag", ["ceval", "ceval=", "unheard=x", "=x"])
def test_a_wrong_task_is_one_clear_line(flag):
    with pytest.raises(InputError, match=r"expected NAME=PATH, one of ccks2019=TEST,EXAMPLES"):
        parse_tasks([flag])
    with pytest.raises(InputError, match="twice"):
        parse_tasks(["mc=a", "mc=b"])
