"""Judges, rubrics and rules for tests."""

import json
from pathlib import Path

import yaml

from megatron_chimed.records import Candidate
from support.candidates import make_prompt

CRITERIA = [("names a department", 3, ["care"]), ("says 多喝水", 1, ["style"]), ("recommends a dose", -2, ["care"])]
"""(Criterion, points, tags)."""

HEALTHBENCH = [
    {
        "prompt_id": "h0",
        "prompt": [{"role": "user", "content": "头痛怎么办"}],
        "rubrics": [{"criterion": "says 休息", "points": 7, "tags": ["level:example", "axis:accuracy"]},
                    {"criterion": "recommends a dose", "points": -10, "tags": ["axis:completeness"]}],
        "example_tags": ["theme:hedging"],
        "ideal_completions_data": None,
    },
    {
        "prompt_id": "h1",
        "prompt": [{"role": "user", "content": "胃痛"}, {"role": "assistant", "content": "多久了？"},
                   {"role": "user", "content": "三天"}],
        "rubrics": [{"criterion": "says 休息", "points": 2, "tags": ["axis:accuracy"]},
                    {"criterion": "asks back", "points": 6, "tags": ["axis:completeness"]}],
        "example_tags": ["theme:context_seeking"],
        "ideal_completions_data": None,
    },
]  # fmt: skip
"""Rows of the form in which HealthBench is published; what they say is made up."""

PROMPTS = {f"p{number}": make_prompt(f"头痛{number * '很'}怎么办", id=f"p{number}") for number in range(3)}


def candidates_of(answers: dict[str, list[str]], round: int = 1) -> list[Candidate]:
    """Answers by prompt."""
    return [
        Candidate(round, name, sample, text, len(text), True)
        for name, texts in answers.items()
        for sample, text in enumerate(texts)
    ]


def write_rubric(path: Path, criteria: list[tuple] = CRITERIA) -> str:
    """A rubric as YAML."""
    rows = [{"criterion": text, "points": points, "tags": tags} for text, points, tags in criteria]
    path.write_text(yaml.safe_dump({"criteria": rows}, allow_unicode=True), encoding="utf-8")
    return str(path)


def write_healthbench(path: Path, rows: list[dict] = HEALTHBENCH) -> str:
    """Rows of HealthBench's form as JSON lines, or as an array where the name ends in .json."""
    lines = "\n".join(json.dumps(row, ensure_ascii=False) for row in rows)
    path.write_text(json.dumps(rows, ensure_ascii=False) if path.suffix == ".json" else lines, encoding="utf-8")
    return str(path)


def parts_of(body: dict) -> tuple[str, str, str]:
    """(Last question, answer, criterion) that a judge is asked about."""
    content = body["messages"][-1]["content"]
    conversation, _, rest = content.partition("# Conversation\n\n")[2].partition("\n\n# Criterion\n\n")
    criterion = rest.partition("\n\n# Your verdict")[0]
    before, _, answer = conversation.rpartition("assistant: ")
    return before.rpartition("user: ")[2].strip(), answer, criterion


def verdict(met: bool) -> dict:
    """What a good judge writes."""
    return {"text": json.dumps({"explanation": "a reason with a {brace}", "criteria_met": met})}


def is_met(answer: str, criterion: str) -> bool:
    """What an honest judge of these rubrics says."""
    signs = {"names a department": "科", "says 多喝水": "多喝水", "recommends a dose": "片", "says 休息": "休息",
             "asks back": "？"}  # fmt: skip
    return signs[criterion] in answer


def honest(body: dict, attempt: int) -> dict:
    """The behaviour of an honest judge behind `support.chat_server.ChatServer`."""
    _, answer, criterion = parts_of(body)
    return verdict(is_met(answer, criterion))


def score_of(answer: str) -> float:
    """The score of an answer by CRITERIA, the slow way."""
    reached = most = 0
    for text, points, _ in CRITERIA:
        reached += points if is_met(answer, text) else 0
        most += points if points > 0 else 0
    return reached / most
