"""CMB, CMExam and MedXpertQA: answers from a file beside the test, several right letters, faults with their places."""

import json

import pytest
from support.exam_files import write_csv, write_lines
from support.published_sets import (
    RIGHT,
    cmb_row,
    cmexam_row,
    write_array,
    write_cmb,
    write_cmb_clin,
    write_cmexam,
    write_medxpertqa,
)

from megatron_chimed.errors import InputError
from megatron_chimed.evaluation.readers.cmb import read_cmb, read_cmb_clin
from megatron_chimed.evaluation.readers.cmexam import read_cmexam
from megatron_chimed.evaluation.readers.exams import ONE, letters_item
from megatron_chimed.evaluation.readers.medxpertqa import read_medxpertqa

TEST = "CMB-Exam/CMB-test/CMB-test-choice-question-merge.json"
ANSWERS = "CMB-test-choice-answer.json"


def letters(item: dict) -> str:
    return "".join("ABCDEFGHIJ"[place] for place in item["answers"])


def test_cmb_takes_its_answers_from_the_file_beside_the_test(tmp_path):
    write_cmb(tmp_path)
    loaded = read_cmb(str(tmp_path))
    assert [letters(item) for item in loaded["test"].items] == list(RIGHT)
    assert len(loaded["fewshot"].items) == 16 and not loaded["test"].faults
    assert {item["group"] for item in loaded["test"].items} == {"医师考试", "护理考试"}
    rows = json.loads((tmp_path / ANSWERS).read_text(encoding="utf-8"))
    write_array(tmp_path / ANSWERS, rows[::-1])  # it goes by id, not by place
    assert read_cmb(str(tmp_path)) == loaded
    (tmp_path / ANSWERS).unlink()
    with pytest.raises(InputError, match=r"question-merge\.json:1: answer None; .*without answers"):
        read_cmb(str(tmp_path))


def test_an_option_of_one_character_is_an_option_and_one_without_a_text_at_the_end_is_none(tmp_path):
    first = read_cmb(str(write_cmb(tmp_path)))["test"].items[0]
    assert first["options"] == ["心", "肝", "脾", "肾"]


def test_the_part_with_one_right_letter_is_what_likelihoods_can_decide(tmp_path):
    for read, folder in ((read_cmb, write_cmb(tmp_path / "a")), (read_cmexam, write_cmexam(tmp_path / "b"))):
        part, whole = read(str(folder), ONE), read(str(folder))
        assert [letters(item) for item in part["test"].items] == [right for right in RIGHT if len(right) == 1]
        assert all(item["answers"] == [item["answer"]] for one in part.values() for item in one.items)
        assert len(part["fewshot"].items) == 10 and len(whole["test"].items) == len(RIGHT)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"question": " "}, "no question"),
        ({"option": {"A": "心", "B": "", "C": "肾"}}, "expected an option behind each letter"),
        ({"option": {"A": "心", "C": "肾"}}, "the options are no object with the keys A, B, C"),
        ({"option": ["心", "肾"]}, "the options are no object"),
        ({"id": 99}, "id 99 has no answer in the file of answers"),
        ({"id": 6, "option": {"A": "心", "B": "肾"}}, "answer 'BCD'; expected letters of AB, each once"),
    ],
)
def test_a_damaged_question_of_cmb_is_a_fault_with_its_place(tmp_path, change, reason):
    write_cmb(tmp_path)
    path = tmp_path / TEST
    rows = json.loads(path.read_text(encoding="utf-8"))
    rows[2] |= change
    write_array(path, rows)
    loaded = read_cmb(str(tmp_path))["test"]
    assert (loaded.rows, len(loaded.items), len(loaded.faults)) == (8, 7, 1)
    assert loaded.faults[0].startswith(f"{path}:3: {reason}"), loaded.faults


def test_answers_that_cannot_be_trusted_end_the_reading(tmp_path):
    write_cmb(tmp_path)
    rows = [{"id": 1, "answer": "A"}, {"id": 1, "answer": "B"}]
    write_array(tmp_path / ANSWERS, rows)
    with pytest.raises(InputError, match=r"answer\.json:2: id 1, answer 'B'; expected an id of its own"):
        read_cmb(str(tmp_path))
    write_array(tmp_path / "more-test-answer.json", rows)
    with pytest.raises(InputError, match="2 files"):
        read_cmb(str(tmp_path))
    with pytest.raises(InputError, match=r"0 files CMB-val/\*merge\.json; expected one"):
        read_cmb(str(tmp_path / "nowhere"))


def test_a_later_question_of_a_case_follows_the_solutions_before_it(tmp_path):
    items = read_cmb_clin(str(write_cmb_clin(tmp_path / "CMB-Clin-qa.json")))["test"].items
    assert [len(item["history"]) for item in items] == [1, 3, 1, 3]
    assert items[0]["history"] == ["患者0号，腹痛三天。\n问题0：诊断是什么？"]
    assert items[1]["history"][1] == items[0]["reference"] and items[1]["history"][2] == "问题1：诊断是什么？"
    assert read_cmb_clin(str(tmp_path))["test"].items == items
    good, bad = {"description": "患者", "QA_pairs": [{"question": "q", "solution": "s"}]}, {"description": "患者"}
    path = write_array(tmp_path / "bad.json", [good, bad, good | {"QA_pairs": [{"question": "q"}]}])
    loaded = read_cmb_clin(str(path))["test"]
    assert len(loaded.items) == 1 and [fault.split(": ", 1)[0] for fault in loaded.faults] == [f"{path}:2", f"{path}:3"]
    assert "number 1: expected question and solution" in loaded.faults[1]


def test_cmexam_reads_the_lines_of_its_options_and_an_annotation(tmp_path):
    loaded = read_cmexam(str(write_cmexam(tmp_path)))
    assert [letters(item) for item in loaded["test"].items] == list(RIGHT)
    assert loaded["test"].items[1]["group"] == "中医学" and loaded["fewshot"].items[0]["group"] == ""
    text, options, *_ = cmexam_row(3)
    item = loaded["test"].items[3]
    assert item["question"] == text and [f"{a} {b}" for a, b in zip("ABCD", item["options"], strict=True)] == (
        options.splitlines()
    )


@pytest.mark.parametrize(
    ("options", "answer", "reason"),
    [
        ("A 心\nC 肾", "A", "option 'C 肾' where B is expected"),
        ("心\nB 肾", "A", "option '心' where A is expected"),
        ("", "A", "expected an option behind each letter"),
        ("A 心\nB 肾", "", "answer ''; expected letters of AB"),
        ("A 心\nB 肾", "AA", "answer 'AA'; expected letters of AB, each once"),
    ],
)
def test_a_damaged_row_of_cmexam_is_a_fault_with_its_place(tmp_path, options, answer, reason):
    write_cmexam(tmp_path)
    path = write_csv(
        tmp_path / "val.csv", ["Question", "Options", "Answer"], [cmexam_row(0)[:3], ["问", options, answer]]
    )
    loaded = read_cmexam(str(tmp_path))["fewshot"]
    assert len(loaded.items) == 1 and len(loaded.faults) == 1
    assert loaded.faults[0].partition(": ")[2].startswith(reason) and loaded.faults[0].startswith(f"{path}:")


def test_a_table_without_the_columns_says_which(tmp_path):
    write_csv(write_cmexam(tmp_path) / "val.csv", ["question", "Options"], [["问", "A 心\nB 肾"]])
    with pytest.raises(InputError, match=r"val\.csv:2: no column Question"):
        read_cmexam(str(tmp_path))


def test_medxpertqa_shows_its_ten_options_once(tmp_path):
    loaded = read_medxpertqa(str(write_medxpertqa(tmp_path)))
    assert [len(loaded[split].items) for split in ("fewshot", "test")] == [5, 10]
    item = loaded["test"].items[7]
    assert item["question"] == "Case 7: which drug is next?" and len(item["options"]) == 10 and item["answer"] == 7
    assert item["cue"] == "Answer:" and item["group"] == "Understanding"
    test = tmp_path / "Text" / "test.jsonl"
    row = json.loads(test.read_text(encoding="utf-8").splitlines()[0])
    write_lines(
        test, [row, row | {"label": "K"}, row | {"options": row["options"] | {"K": None}}, row | {"options": None}]
    )
    loaded = read_medxpertqa(str(tmp_path / "Text"))["test"]
    assert len(loaded.items) == 2 and [fault.split(": ", 1)[0] for fault in loaded.faults] == [f"{test}:2", f"{test}:4"]
    test.unlink()
    with pytest.raises(InputError, match=r"0 files test\*; expected one"):
        read_medxpertqa(str(tmp_path))


def test_letters_are_read_in_any_order_and_with_signs_between_them():
    for right in ("DA", "A,D", "a、d", " A D "):
        assert letters_item("问", ["心", "肝", "脾", "肾"], right)["answers"] == [0, 3]
    assert cmb_row(2)["answer"] == "ABD"
