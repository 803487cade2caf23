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
    """Small files of every set here that needs no judge; returns the --tasks flags."""
    return [
        f"promptcblue={write_promptcblue(folder / 'promptcblue')}",
        f"cmb={write_cmb(folder / 'cmb')}",
        f"cmexam={write_cmexam(folder / 'cmexam')}",
        f"medxpertqa={write_medxpertqa(folder / 'medxpertqa')}",
        f"cmbclin={write_cmb_clin(folder / 'CMB-Clin-qa.json')}",
    ]


CLASSES = {
    "IMCS-V2-DAC": ["关于症状的询问", "关于症状的回答"],
    "CHIP-CTC": ["诊断", "年龄", "性别"],
    "CHIP-STS": ["是的", "不是"],
    "KUAKE-IR": ["相关", "不相关"],
    "KUAKE-QIC": ["病情诊断", "治疗方案"],
    "KUAKE-QQR": ["完全一致", "语义无直接关联"],
    "KUAKE-QTR": ["完全不匹配或者没有参考价值", "部分匹配", "完全匹配"],
}
SIGNS = ["患有该症状", "没有患有该症状", "无法根据上下文确定病人是否患有该症状"]
REPORT = "报告如下：\n主诉：腹痛{n}天。\n现病史：腹痛。\n辅助检查：\n既往史：不详。\n诊断：胃炎。\n建议：多喝水。"
EXTRACTED = {
    "CMeEE-V2": (["疾病", "身体部位"], "上述句子中的实体包含：\n疾病实体：胃炎{n}，贫血\n身体部位实体："),
    "IMCS-V2-NER": (["症状", "药品名称"], "上述句子中的实体包含：\n症状实体：腹痛{n}\n药品名称实体：奥美拉唑"),
    "CMeIE": (["药物治疗"], "具有药物治疗关系的头尾实体对如下：头实体为胃炎{n}，尾实体为奥美拉唑。"),
    "CHIP-CDN": (["胃炎", "贫血", "孕{n}周"], "孕{n}周，贫血"),
    "CHIP-CDEE": (None, "上述句子中的临床发现事件如下：\n主体词：痛{n}；发生状态：否定；描述词：胀，钝；解剖部位：腹"),
    "IMCS-V2-SR": (SIGNS, "当前对话中的症状及其阴阳性判断为：\n腹痛{n}：患有该症状\n发热：没有患有该症状"),
    "CHIP-MDCFNPC": (SIGNS, "上述对话中临床发现实体以及其阴阳性判别如下：\n腹痛{n}：没有患有该症状"),
}


def promptcblue_row(dataset: str, number: int) -> dict:
    """A row of one of PromptCBLUE's sixteen."""
    if dataset in CLASSES:
        choices = CLASSES[dataset]
        target = [*choices, "非上述类型"][number % (len(choices) + (dataset in ("IMCS-V2-DAC", "CHIP-CTC")))]
    elif dataset in EXTRACTED:
        choices, target = EXTRACTED[dataset]
        choices, target = choices and [one.format(n=number) for one in choices], target.format(n=number)
    else:
        choices, target = None, (REPORT if dataset == "IMCS-V2-MRG" else "建议做胃镜{n}次。").format(n=number)
    asked = f"{dataset}：以下是一段说明，用来写出全部问题的固定格式。\n第{number}段。\n答："
    return {
        "input": asked,
        "target": target,
        "answer_choices": choices,
        "task_type": "x",
        "task_dataset": dataset,
        "sample_id": f"test-{number}",
    }


def write_promptcblue(folder: Path, count: int = 6, without: str = "") -> str:
    """``TEST,EXAMPLES`` with all sixteen."""
    datasets = [*CLASSES, *EXTRACTED, "MedDG", "IMCS-V2-MRG"]
    for name, first, size in (("dev", 0, count), ("train", 100, 6)):
        numbers = range(first, first + size)
        rows = [promptcblue_row(one, number) for number in numbers for one in datasets if one != without]
        write_lines(folder / f"{name}.json", rows)
    return f"{folder / 'dev.json'},{folder / 'train.json'}"
