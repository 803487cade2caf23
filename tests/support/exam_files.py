"""Small data sets in the formats in which they are published."""

import csv
import json
from pathlib import Path

SENTENCE = "患者头痛三天，诊断为胃炎，予奥美拉唑。"


def write_csv(path: Path, columns: list[str], rows: list[list]) -> Path:
    """A CSV file with a header."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([columns, *rows])
    return path


def question(number: int) -> list[str]:
    """Question and four options; the right letter is ABCD[number % 4]."""
    return [f"第{number}题，下列正确的是", *(f"选项{number}{letter}" for letter in "甲乙丙丁"), "ABCD"[number % 4]]


def write_ceval(
    folder: Path, count: int = 8, subjects: tuple[str, ...] = ("basic_medicine", "clinical_medicine")
) -> Path:
    """C-Eval's archive: dev with answers and explanations, val with answers, test without."""
    columns = ["id", "question", "A", "B", "C", "D"]
    for subject in subjects:
        rows = [[number, *question(number)] for number in range(count)]
        dev = [[number, *question(100 + number), "解析"] for number in range(5)]
        write_csv(folder / "dev" / f"{subject}_dev.csv", [*columns, "answer", "explanation"], dev)
        write_csv(folder / "val" / f"{subject}_val.csv", [*columns, "answer"], rows)
        write_csv(folder / "test" / f"{subject}_test.csv", columns, [row[:-1] for row in rows])
    return folder


def write_cmmlu(folder: Path, subjects: list[str], count: int = 4) -> Path:
    """CMMLU's archive."""
    columns = ["", "Question", "A", "B", "C", "D", "Answer"]
    for subject in subjects:
        for split, first, size in (("dev", 100, 5), ("test", 0, count)):
            rows = [[number, *question(first + number)] for number in range(size)]
            write_csv(folder / split / f"{subject}.csv", columns, rows)
    return folder


def write_lines(path: Path, rows: list) -> Path:
    """JSON lines; a text stands as it is."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = (row if isinstance(row, str) else json.dumps(row, ensure_ascii=False) for row in rows)
    path.write_text("".join(line + "\n" for line in lines), encoding="utf-8")
    return path


def write_mcmle(folder: Path, count: int = 6) -> Path:
    """MedQA's Mainland folder, with five options."""
    for split, first, size in (("dev", 100, 5), ("test", 0, count), ("train", 200, 1)):
        rows = []
        for number in range(first, first + size):
            text, *options, letter = question(number)
            options = dict(zip("ABCDE", [*options, "以上都不是"], strict=True))
            rows.append(
                {"question": text, "options": options, "answer": options[letter], "answer_idx": letter, "meta_info": ""}
            )
        write_lines(folder / f"{split}.jsonl", rows)
    return folder


def ccks_row(text: str, *entities: tuple[str, str]) -> dict:
    """A row of CCKS-2019 with (type, text) at their first places."""
    spans = [
        {"label_type": kind, "overlap": 0, "start_pos": text.index(name), "end_pos": text.index(name) + len(name)}
        for kind, name in entities
    ]
    return {"originalText": text, "entities": spans}


def write_ccks(folder: Path, count: int = 6) -> str:
    """``TEST,EXAMPLES`` of CCKS-2019, with the published names and byte-order mark."""
    entities = [("症状", "头痛"), ("疾病和诊断", "胃炎"), ("药物", "奥美拉唑")]
    rows = [ccks_row(f"第{number}例。{SENTENCE}", *entities[: number % 3 + 1]) for number in range(count + 7)]
    test = write_lines(folder / "subtask1_test_set_with_answer.json", rows[:count])
    test.write_bytes(b"\xef\xbb\xbf" + test.read_bytes())
    write_lines(folder / "subtask1_training_part1.txt", rows[count : count + 3])
    write_lines(folder / "subtask1_training_part2.txt", rows[count + 3 :])
    return f"{test},{folder}/subtask1_training_part*.txt"


def page(number: int, answer: str = "建议多喝水，注意休息。") -> dict:
    """A page of ChiMed."""
    answers = [{"mid": "1", "adopted": "True", "recommended": "False", "answer": answer}] if answer else []
    return {
        "id": str(number),
        "department": "内科>消化科",
        "title": f"第{number}个问题",
        "question_content": f"第{number}个问题，胃炎怎么办？",
        "answers": answers,
    }


def dialogue(number: int) -> str:
    """A dialogue of MC, with two answers of the doctor, the second in two messages."""
    lines = [
        f"id\t{number}\tdepartment\t消化科\tdisease\t胃炎",
        f"P\t第{number}位，胃痛怎么办？\t1",
        "D\t痛多久了？\t0",
    ]
    lines += [
        "P\t三天了。\t0",
        "D\t建议做胃镜。\t2",
        "D\t清淡饮食。\t2",
        "P\t谢谢\t0",
        "SUM1\t胃痛",
        "SUM2.0\t做胃镜。",
    ]
    return "\n".join(lines) + "\n\n"
