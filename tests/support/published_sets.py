"""Small files in the forms of the sets of 2023 to 2026; what they say is made up."""

import json
from pathlib import Path

from support.exam_files import question, write_csv, write_lines

KINDS_OF_EXAM = ("医师考试", "护理考试")
RIGHT = ("A", "B", "ABD", "C", "AC", "D", "BCD", "A")
"""The answers of the questions of an exam, in turn."""


def write_array(path: Path, rows: list[dict]) -> Path:
    """A JSON array."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(rows, ensure_ascii=False, indent=1), encoding="utf-8")
    return path


def cmb_row(number: int) -> dict:
    """A row of CMB-Exam; every third has options of one character, and a fifth option without a text."""
    text, *options, _ = question(number)
    if number % 3 == 0:
        options = ["心", "肝", "脾", "肾"]
    right = RIGHT[number % len(RIGHT)]
    return {
        "id": number,
        "exam_type": KINDS_OF_EXAM[number % 2],
        "exam_class": "执业医师",
        "exam_subject": "内科",
        "question": text,
        "question_type": "单项选择题" if len(right) == 1 else "多项选择题",
        "option": dict(zip("ABCDE", [*options, ""] if number % 3 == 0 else options, strict=False)),
        "answer": right,
    }


def write_cmb(folder: Path, count: int = 8) -> Path:
    """CMB's archive: val with answers and explanations, test without, the answers beside it."""
    exam = folder / "CMB-Exam"
    val = [cmb_row(100 + number) | {"explanation": "解析"} for number in range(16)]
    rows = [cmb_row(number) for number in range(count)]
    answers = [{name: row[name] for name in ("id", "question", "answer")} for row in rows]
    asked = [{name: value for name, value in row.items() if name != "answer"} for row in rows]
    write_array(exam / "CMB-val" / "CMB-val-merge.json", val)
    write_array(exam / "CMB-test" / "CMB-test-choice-question-merge.json", asked)
    write_array(folder / "CMB-test-choice-answer.json", answers)
    return folder


def write_cmb_clin(path: Path, count: int = 2) -> Path:
    """CMB-Clin's cases, two questions each."""
    pairs = [{"question": f"问题{n}：诊断是什么？", "solution": f"考虑胃炎{n}，建议做胃镜。"} for n in range(2)]
    rows = [
        {"id": str(number), "title": f"病例{number}", "description": f"患者{number}号，腹痛三天。", "QA_pairs": pairs}
        for number in range(count)
    ]
    return write_array(path, rows)


def cmexam_row(number: int) -> list[str]:
    """Question, Options, Answer, Explanation."""
    text, *options, _ = question(number)
    lines = "\n".join(f"{letter} {option}" for letter, option in zip("ABCD", options, strict=True))
    return [text, lines, RIGHT[number % len(RIGHT)], "解析"]


def write_cmexam(folder: Path, count: int = 8) -> Path:
    """CMExam's tables, the test with an annotation."""
    columns = ["Question", "Options", "Answer", "Explanation"]
    write_csv(folder / "val.csv", columns, [cmexam_row(100 + number) for number in range(16)])
    rows = [[*cmexam_row(number), ("临床医学", "中医学")[number % 2]] for number in range(count)]
    write_csv(folder / "test_with_annotations.csv", [*columns, "Medical Discipline"], rows)
    return folder


def write_medxpertqa(folder: Path, count: int = 10) -> Path:
    """MedXpertQA's folder Text: ten options, which the question repeats."""
    for split, first, size in (("dev", 100, 5), ("test", 0, count)):
        rows = []
        for number in range(first, first + size):
            options = {letter: f"drug {number}{letter}" for letter in "ABCDEFGHIJ"}
            repeated = " ".join(f"({letter}) {text}" for letter, text in options.items())
            rows.append(
                {
                    "id": f"Text-{number}",
                    "question": f"Case {number}: which drug is next?\nAnswer Choices: {repeated}",
                    "options": options,
                    "label": "ABCDEFGHIJ"[number % 10],
                    "medical_task": "Treatment",
                    "body_system": "Digestive",
                    "question_type": ("Reasoning", "Understanding")[number % 2],
                }
            )
        write_lines(folder / "Text" / f"{split}.jsonl", rows)
    return folder


def write_published(folder: Path) -> list[str]:
    """Small files of every set here; returns the --tasks flags."""
    return [
        f"cmb={write_cmb(folder / 'cmb')}",
        f"cmexam={write_cmexam(folder / 'cmexam')}",
        f"medxpertqa={write_medxpertqa(folder / 'medxpertqa')}",
        f"cmbclin={write_cmb_clin(folder / 'CMB-Clin-qa.json')}",
    ]
