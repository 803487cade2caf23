"""Small fine-tuning sources for tests: the same dialogues written in each of the published formats."""

import csv
import io
import json
import random
from pathlib import Path

from megatron_chimed.data.dialogues import DialogueOptions, prepare_dialogues

PLACES = ["头", "背", "腰", "膝盖", "胃", "喉咙", "手腕", "脚踝", "眼睛", "耳朵"]
FEELINGS = ["疼痛", "发麻", "肿胀", "发痒", "灼热", "无力"]
ADVICE = [
    "多喝温水",
    "卧床休息",
    "复查血常规",
    "口服布洛芬",
    "热敷患处",
    "避免久坐",
    "清淡饮食",
    "做一次核磁共振",
    "按时复诊",
]
NAMES = {
    "chimed": "pages.jsonl", "cmd": "cmd.json", "mc": "talk.dialog", "meddialog": "talk.txt",
    "multi_turn": "multi.json",
    "safety": "safety.json", "sharegpt": "share.jsonl", "toyhom": "table.csv", "meddialog.json": "talk.json",
}  # fmt: skip
FORMS = {
    "cmd.history": "history.jsonl", "sharegpt.roles": "roles.jsonl", "auto.values": "values.jsonl",
    "auto.cmtmedqa": "cmtmedqa.json", "auto.conversation": "conversation.jsonl", "auto.query": "query.jsonl",
    "auto.table": "answers.csv", "auto.reasoning": "o1.json", "auto.completion": "completion.jsonl",
}  # fmt: skip
NAMES |= FORMS
"""By reader, and a form of what it reads behind a dot: "meddialog.json" is the processed form of meddialog."""


def make_dialogues(count: int, num_turns: int = 4, seed: int = 0) -> list[list[tuple[str, str]]]:
    """Dialogues of (role, text), no two of them alike."""
    draw = random.Random(seed)

    def question() -> str:
        days, age = draw.randint(2, 99), draw.randint(18, 90)
        return f"{draw.choice(PLACES)}{draw.choice(FEELINGS)}{days}天了，年龄{age}，怎么办？"

    def answer() -> str:
        return "，".join(draw.sample(ADVICE, draw.randint(2, 6))) + f"，{draw.randint(2, 30)}天后再来。"

    return [[(("user", question()), ("assistant", answer()))[n % 2] for n in range(num_turns)] for _ in range(count)]


def content_of(reader: str, dialogues: list[list[tuple[str, str]]]) -> str:
    """The text of a source file; question-and-answer formats take the first two turns of each dialogue."""
    pairs = [(turns[0][1], turns[1][1]) for turns in dialogues]
    if reader == "toyhom":
        table = io.StringIO()
        rows = [("内科", question.split("，")[0], question, answer) for question, answer in pairs]
        csv.writer(table).writerows([("department", "title", "ask", "answer"), *rows])
        return table.getvalue()
    if reader == "mc":
        letters = {"user": "P", "assistant": "D"}
        blocks = ("".join(f"{letters[role]}\t{text}\t0\n" for role, text in turns) for turns in dialogues)
        head = "id\t{}\tdepartment\t内科\tdisease\t胃炎\n"
        return "".join(head.format(n) + block + "SUM1\t摘要\nSUM2.0\t建议\n\n" for n, block in enumerate(blocks))
    speakers = {"user": "病人", "assistant": "医生"}
    if reader == "meddialog":
        head = "id={}\nhttps://example.com/1.htm\nDoctor faculty\n内科\n\nDescription\n病情描述：\n{}\n\nDialogue\n"
        blocks = ("".join(f"{speakers[role]}：\n{text}\n" for role, text in turns) for turns in dialogues)
        return "".join(head.format(n, dialogues[n][0][1]) + block + "\n\n" for n, block in enumerate(blocks))
    if reader == "safety":
        rows = [{"prompt": question, "response": answer, "type": "x"} for question, answer in pairs]
        return json.dumps({"Insult": rows[::2], "Privacy": rows[1::2]}, ensure_ascii=False, indent=1)
    if reader == "auto.table":
        table = io.StringIO()
        csv.writer(table).writerows([("id", "question", "answer"), *((n, *pair) for n, pair in enumerate(pairs))])
        return table.getvalue()
    if reader in FORMS:
        return _lines(reader, [form_row(reader, turns) for turns in dialogues])
    return _json_content(reader, dialogues, pairs, speakers)


def form_row(form: str, turns: list[tuple[str, str]]) -> dict:
    """A row of one of FORMS; in "auto.reasoning" the first question and answer, with thinking."""
    texts = [text for _, text in turns]
    history = [list(pair) for pair in zip(texts[:-2:2], texts[1:-2:2], strict=True)]
    messages = [{"role": role, "content": text} for role, text in turns]
    if form == "auto.cmtmedqa":
        return {"id": 7, "cate": "内科", **form_row("cmd.history", turns)}
    if form == "auto.conversation":
        pairs = zip(texts[::2], texts[1::2], strict=True)
        return {"conversation": [{"human": question, "assistant": answer} for question, answer in pairs]}
    return {
        "cmd.history": {"instruction": texts[-2], "input": "", "output": texts[-1], "history": history},
        "sharegpt.roles": {"conversations": messages},
        "auto.values": {"messages": [{"from": role, "value": text} for role, text in turns]},
        "auto.query": {"query": texts[-2], "response": texts[-1], "history": history},
        "auto.reasoning": {"Question": texts[0], "Complex_CoT": "先问病史，再想诊断。", "Response": texts[1]},
        "auto.completion": {"prompt": messages[:-1], "completion": messages[-1:]},
    }[form]


def _lines(reader: str, rows: list) -> str:
    """JSON lines, or an array for a name that ends in .json."""
    if NAMES[reader].endswith(".jsonl") or reader == "cmd":
        return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    return json.dumps(rows, ensure_ascii=False, indent=1)


def _json_content(reader, dialogues, pairs, speakers) -> str:
    """The formats with one JSON value for each dialogue."""
    marks, names = {"user": " <user>: ", "assistant": " <bot>: "}, {"user": "human", "assistant": "gpt"}
    no, yes = {"adopted": "False", "recommended": "False"}, {"adopted": "True", "recommended": "False"}
    rows = {
        "cmd": [{"instruction": q, "input": "", "output": a} for q, a in pairs],
        "multi_turn": [
            {"instruction": "".join(marks[role] + text for role, text in turns[:-1]), "output": turns[-1][1]}
            for turns in dialogues
        ],
        "sharegpt": [
            {"conversations": [{"from": names[role], "value": text} for role, text in turns]} for turns in dialogues
        ],
        "chimed": [
            {"id": "1", "title": q, "question_content": q, "answers": [no | {"answer": "不"}, yes | {"answer": a}]}
            for q, a in pairs
        ],
        "meddialog.json": [[f"{speakers[role]}：{text}" for role, text in turns] for turns in dialogues],
    }[reader]  # fmt: skip
    return _lines(reader, rows)


def write_source(folder: Path, reader: str, dialogues: list, encoding: str = "utf-8") -> Path:
    """Write `content_of` under the name that the format has."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / NAMES[reader]
    path.write_text(content_of(reader, dialogues), encoding=encoding, newline="")
    return path


def expected_turns(reader: str, dialogues: list) -> list[list[tuple[str, str]]]:
    """The turns that a reader must find in `content_of`, in its order."""
    if reader == "safety":
        dialogues = dialogues[::2] + dialogues[1::2]
    whole = reader in ("mc", "meddialog", "meddialog.json", "multi_turn", "sharegpt")
    whole |= reader in FORMS and reader not in ("auto.table", "auto.reasoning")
    return [turns if whole else turns[:2] for turns in dialogues]


def prepare(specs: list[str], output: Path, **settings) -> dict:
    """`prepare_dialogues` in this process without a bar; clean, redact and dedup are its options."""
    options = {name: settings.pop(name) for name in ("clean", "redact", "dedup") if name in settings}
    return prepare_dialogues(specs, output, DialogueOptions(**options), **{"progress": False, **settings})


def read_lines(path: Path) -> list[dict]:
    """The rows of a JSON-lines file."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line]


def check_report(content: dict, output: Path) -> None:
    """Assert that rows in = out + dropped for each source, that the outputs agree, and that all dialogues are valid."""
    from megatron_chimed.records import Dialogue

    rows = [Dialogue.from_row(row) for row in read_lines(output)]
    rejected = read_lines(output.with_suffix(".rejected.jsonl"))
    assert len({row.id for row in rows}) == len(rows) == content["rows"]
    for label, one in content["sources"].items():
        mine = [row for row in rows if row.source == label]
        assert one["rows"] == one["dialogues"] + sum(one["dropped"].values())
        assert one["dialogues"] == len(mine) and one["turns"] == sum(len(row.turns) for row in mine)
        assert one["characters"] == sum(len(turn.text) + len(turn.thinking) for row in mine for turn in row.turns)
        duplicates = sum(number for reason, number in one["dropped"].items() if reason.endswith("duplicate"))
        assert sum(row["source"] == label for row in rejected) == sum(one["dropped"].values()) - duplicates
    assert content["input_rows"] == content["rows"] + sum(content["dropped"].values())
    for row in rejected:
        assert set(row) == {"source", "file", "line", "reason", "excerpt"} and row["line"] >= 1
        assert row["reason"] and "\n" not in row["reason"] and len(row["excerpt"]) <= 200
