"""The human evaluation: a blinded form for annotators, and what their files say.

Answers of several evaluated models to the same questions and dialogues are drawn by seed and put into one HTML file
that works offline. It shows no model's name; which code is whose stands in key.json, which stays with the organizer.
Each answer is rated from 1 to 3, higher is better, for three criteria.

Source: paper, section on human evaluation (50 question-answer pairs and 50 dialogues, two annotators).
"""

import csv
import io
import json
import random
from pathlib import Path
from typing import Any

from megatron_chimed.data.sources import Fault, read_rows, suffix_of
from megatron_chimed.errors import InputError
from megatron_chimed.jsonl import atomic_output, read_json, read_json_lines, sha256_json, write_json

CRITERIA = {
    "fluency": "流畅性：回答对患者来说是否简明、清楚",
    "completeness": "完整性：回答是否涵盖了患者所问的内容",
    "precision": "准确性：回答的内容是否准确",
}
LEVELS = (1, 2, 3)
KINDS = {"chimed": "qa", "mc": "dialogue"}
"""The tasks that are drawn from, and what the report calls them."""

PAPER = {
    "qa": {"fluency": 2.57, "completeness": 2.45, "precision": 2.57},
    "dialogue": {"fluency": 2.44, "completeness": 2.38, "precision": 2.50},
}
"""ChiMed-GPT in the paper's table."""

Ratings = dict[str, dict[str, int]]
"""{code: {criterion: 1, 2 or 3}}"""


def make_form(folders: list[str | Path], output: str | Path, *, count: int = 50, seed: int = 0) -> dict[str, Any]:
    """Write OUTPUT/form.html and OUTPUT/key.json; returns the key.

    folders: outputs of `chimed evaluate` with the tasks chimed or mc; the answers are those of their first run. count:
    items of each task, fewer where there are no more. Raises InputError if no item is common to all models.
    """
    output, draw = Path(output), random.Random(seed)
    names = [read_json(Path(folder) / "results.json")["model"]["name"] for folder in folders]
    if len(set(names)) < len(names):
        raise InputError(f"two of the models have one name ({', '.join(names)}); evaluate one again with --name")
    groups = []
    for task, kind in KINDS.items():
        answers = [_answers(Path(folder) / "samples" / f"{task}.0.jsonl") for folder in folders]
        common = sorted(set(answers[0]).intersection(*answers[1:])) if answers else []
        for item in draw.sample(common, min(count, len(common))):
            order = draw.sample(range(len(folders)), len(folders))
            groups.append([(kind, item, names[number], *answers[number][item]) for number in order])
    if not groups:
        raise InputError("no question or dialogue that all models have answered; evaluate them with chimed= or mc=")
    draw.shuffle(groups)
    entries, answers = [], {}
    for place, group in enumerate(groups, start=1):
        for number, (kind, item, name, prompt, answer) in enumerate(group):
            code = f"{place}{'abcdefghijklmnopqrstuvwxyz'[number]}"
            entries.append({"code": code, "prompt": prompt, "answer": answer})
            answers[code] = {"kind": kind, "item": item, "model": name}
    form = sha256_json(entries)[:12]
    key = {"form": form, "seed": seed, "models": names, "answers": answers}
    with atomic_output(output / "form.html") as file:
        file.write(_form({"form": form, "entries": entries, "criteria": CRITERIA, "levels": LEVELS}))
    write_json(output / "key.json", key)
    return key


def _answers(path: Path) -> dict[str, tuple[str, str]]:
    """{item: (prompt, answer)} of a samples file; nothing where a model has not done the task."""
    if not path.is_file():
        return {}
    return {row["id"]: (row["prompt"], row["answer"]) for _, row in read_json_lines(path)}


def _form(content: dict) -> str:
    """The page with its content inside. No text of a model can end the script element that holds it."""
    template = (Path(__file__).parent / "form.html").read_text(encoding="utf-8")
    return template.replace("CONTENT", json.dumps(content, ensure_ascii=False).replace("<", "\\u003c"))


def read_ratings(path: str | Path, key: dict[str, Any]) -> tuple[str, Ratings, list[str]]:
    """(annotator, ratings, faults) of a JSON or CSV file that the form has saved.

    faults: answers without a whole rating, and rows of unknown codes; both are counted, none is made up. Raises
    InputError for a file of another form, or one that is not readable.
    """
    if suffix_of(path) == ".csv":
        rows = [(line, row) for line, row in read_rows(path)]
        forms = {row["form"] for _, row in rows if not isinstance(row, Fault) and "form" in row}
        annotators = {row["annotator"] for _, row in rows if not isinstance(row, Fault) and "annotator" in row}
        given = [(f"line {line}", {} if isinstance(row, Fault) else row) for line, row in rows]
    else:
        content = read_json(path)
        if not isinstance(content, dict) or not isinstance(content.get("ratings"), dict):
            raise InputError(f"{path}: not a file that the form has saved")
        forms, annotators = {content.get("form")}, {content.get("annotator")}
        given = [(code, {"code": code, **row}) for code, row in content["ratings"].items() if isinstance(row, dict)]
    if forms != {key["form"]} or len(annotators) != 1:
        raise InputError(f"{path}: of the form {forms or 'unknown'}; the key is of {key['form']}")
    ratings, faults = {}, []
    for where, row in given:
        code = row.get("code")
        values = {name: _level(row.get(name)) for name in CRITERIA}
        if code not in key["answers"] or code in ratings:
            faults.append(f"{where}: unknown code, or one that is given twice")
        elif None in values.values():
            faults.append(f"{where}: {', '.join(name for name, value in values.items() if value is None)} is not rated")
        else:
            ratings[code] = values
    unrated = set(key["answers"]) - set(ratings) - {where for where, _ in given} - {row.get("code") for _, row in given}
    faults += [f"{code}: not rated" for code in sorted(unrated)]
    return str(annotators.pop()), ratings, faults


def _level(value: Any) -> int | None:
    """1, 2 or 3, given as a number or a text; else None."""
    text = str(value).strip()
    return int(text) if text in map(str, LEVELS) else None


def ratings_csv(form: str, annotator: str, ratings: Ratings) -> str:
    """The CSV that the form saves: form,annotator,code,fluency,completeness,precision."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["form", "annotator", "code", *CRITERIA])
    writer.writerows([form, annotator, code, *row.values()] for code, row in ratings.items())
    return text.getvalue()
