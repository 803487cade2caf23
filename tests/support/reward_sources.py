"""Small sources of ranked answers for tests: the same groups written in each form that is read."""

import json
import random
from pathlib import Path

from megatron_chimed.data.rankings import RankingOptions, prepare_rankings
from megatron_chimed.records import RankedGroup
from support.sft_sources import make_dialogues

FORMS = {
    "cmd": "cmd", "preference": "preference", "ranked": "ranked", "record": "ranked", "medicalgpt": "cmd",
    "trl": "preference", "trl_messages": "preference", "implicit": "preference", "human": "preference",
    "alpaca": "preference", "swift": "swift",
}  # fmt: skip
"""The reader of each form; "record" is a `RankedGroup` as a row."""


def make_groups(count: int, num_answers: int = 4, seed: int = 0) -> list[tuple[str, list[str]]]:
    """(question, answers from the best to the worst), no two questions alike."""
    draw = random.Random(seed)
    groups = []
    for number, dialogue in enumerate(make_dialogues(count, num_turns=2 * num_answers, seed=seed)):
        answers = [f"{text}（{draw.randint(100, 999)}）" for role, text in dialogue if role == "assistant"]
        groups.append((f"第{number}问：{dialogue[0][1]}", answers))
    return groups


def row_of(form: str, question: str, answers: list[str]) -> dict:
    """A row; forms of pairs take the best and the worst answer."""
    ranks, turn = list(range(len(answers))), {"role": "user", "text": question}
    return {
        "cmd": {"question": question, "response_chosen": answers[0], "response_rejected": answers[-1]},
        "preference": {
            "conversations": [{"from": "human", "value": question}],
            "chosen": answers[0],
            "rejected": {"from": "gpt", "value": answers[-1]},
        },
        "ranked": {"question": question, "responses": answers, "ranks": ranks},
        "record": {"id": "x", "source": "y", "turns": [turn], "responses": answers, "ranks": ranks},
        **_published_rows(question, answers[0], answers[-1]),
    }[form]


def _published_rows(question: str, chosen: str, rejected: str) -> dict[str, dict]:
    """Rows of the forms of MedicalGPT, TRL, HH-RLHF, LLaMA-Factory and MS-Swift."""
    asked, good, bad = (
        {"role": role, "content": text}
        for role, text in (("user", question), ("assistant", chosen), ("assistant", rejected))
    )
    said = f"\n\nHuman: {question}\n\nAssistant: "
    return {
        "medicalgpt": {"system": "", "history": [], "question": question, "response_chosen": chosen,
                       "response_rejected": rejected},
        "trl": {"prompt": question, "chosen": chosen, "rejected": rejected},
        "trl_messages": {"prompt": [asked], "chosen": [good], "rejected": [bad]},
        "implicit": {"prompt": question, "chosen": [asked, good], "rejected": [asked, bad], "score_chosen": 8.5},
        "human": {"chosen": said + chosen, "rejected": said + rejected},
        "alpaca": {"instruction": question, "input": "", "chosen": chosen, "rejected": rejected},
        "swift": {"messages": [asked, good], "rejected_response": rejected},
    }  # fmt: skip


def write_rows(path: Path, rows: list[dict]) -> Path:
    """JSON lines."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


def write_groups(path: Path, form: str, groups: list) -> Path:
    """`row_of` for each group."""
    return write_rows(path, [row_of(form, *group) for group in groups])


def prepare(specs: list[str], output: Path, **settings) -> dict:
    """`prepare_rankings` in this process without a bar; clean, redact and dedup are its options."""
    options = {name: settings.pop(name) for name in ("clean", "redact", "dedup") if name in settings}
    return prepare_rankings(specs, output, RankingOptions(**options), **{"progress": False, **settings})


def read_groups(path: Path) -> list[RankedGroup]:
    """The records of an output, each valid."""
    lines = path.read_text(encoding="utf-8").split("\n")[:-1]
    return [RankedGroup.from_row(json.loads(line)) for line in lines]


def check_report(content: dict, outputs: list[Path], rejected: Path) -> None:
    """Assert that rows in = groups out + dropped for each source, and that every group can be compared."""
    groups = [group for path in outputs for group in read_groups(path)]
    reasons = [json.loads(line) for line in rejected.read_text(encoding="utf-8").split("\n")[:-1]]
    assert len({group.id for group in groups}) == len(groups) == content["rows"]
    assert content["input_rows"] == content["rows"] + sum(content["dropped"].values())
    for label, one in content["sources"].items():
        mine = [group for group in groups if group.source == label]
        texts = [text for group in mine for text in group.responses if text is not None]
        assert one["rows"] == one["groups"] + sum(one["dropped"].values()) and one["groups"] == len(mine)
        assert one["answers"] == len(texts)
        assert one["characters"] == sum(map(len, texts)) + sum(len(t.text) for group in mine for t in group.turns)
        silent = sum(n for reason, n in one["dropped"].items() if reason.endswith(("duplicate", "by the split")))
        assert sum(row["source"] == label for row in reasons) == sum(one["dropped"].values()) - silent
    for group in groups:
        assert len({rank for rank in group.preference_ranks if rank >= 0}) > 1
    for row in reasons:
        assert set(row) == {"source", "file", "line", "reason", "excerpt"} and row["line"] >= 1
        assert row["reason"] and "\n" not in row["reason"] and len(row["excerpt"]) <= 200
