"""Forms of rows that people have: told by their fields, read with all that they hold, or refused by name."""

import json
import re

import pytest
from support.paths import ROOT
from support.sft_sources import prepare, read_lines

from megatron_chimed.data.dialogue_readers import READERS, Unanswered
from megatron_chimed.data.documents import make_documents
from megatron_chimed.data.messages import LEARN, read_messages
from megatron_chimed.data.ranking_readers import READERS as RANKING_READERS
from megatron_chimed.data.turns import RawTurn
from megatron_chimed.errors import InputError

ASKED, SAID = {"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}
PAIR = [("user", "q"), ("assistant", "a")]
BEFORE = [("user", "h"), ("assistant", "i")]
TOLD, THOUGHT = [("system", "s")], [PAIR[0], RawTurn("assistant", "a", "t")]


def auto(row):
    return READERS["auto"].turns(row)


@pytest.mark.parametrize(
    ("row", "turns"),
    [
        ({"instruction": "q", "input": "", "output": "a", "history": [["h", "i"]]}, BEFORE + PAIR),
        ({"instruction": "q", "output": "a", "history": [], "system": "s"}, TOLD + PAIR),
        ({"instruction": "q", "output": "a", "history": [["h", "i"]], "system": "s"}, TOLD + BEFORE + PAIR),
        ({"instruction": "<user>: q", "output": "a", "history": [["h", "i"]]}, None),
        ({"instruction": "q", "output": "a", "history": [ASKED, SAID]}, PAIR + PAIR),
        ({"instruction": "q", "output": "a", "history": None, "input": None}, PAIR),
        ({"query": "q", "response": "a", "history": [["h", "i"]], "system": "s"}, TOLD + BEFORE + PAIR),
        ({"question": "q", "answer": "a"}, PAIR),
        ({"prompt": "q", "response": "a"}, PAIR),
        ({"prompt": "q", "completion": "a"}, PAIR),
        ({"prompt": [ASKED], "completion": [SAID]}, PAIR),
        ({"prompt": [ASKED], "completion": "a"}, PAIR),
        ({"conversations": [ASKED, SAID], "system": "s"}, TOLD + PAIR),
        ({"conversations": [{"from": "human", "content": "q"}, {"role": "gpt", "value": "a"}]}, PAIR),
        ({"messages": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]}, PAIR),
        ({"conversations": [], "messages": [ASKED, SAID]}, PAIR),
        ({"conversations": None, "messages": [ASKED, SAID]}, PAIR),
        ({"conversation": [{"human": "h", "assistant": "i"}, {"human": "q", "assistant": "a"}]}, BEFORE + PAIR),
        ({"conversation": [{"system": "s", "input": "q", "output": "a"}]}, TOLD + PAIR),
        ({"Question": "q", "Complex_CoT": "t", "Response": "a"}, THOUGHT),
        ({"question": "q", "reasoning (reasoning_content)": "t", "response (content)": "a"}, THOUGHT),
        ({"title": "q", "ask": "无", "answer": "a", "department": "x"}, PAIR),
        ({"title": "q", "question_content": "", "answers": [{"answer": "a"}]}, PAIR),
        ({"question": "q", "answer": "a", "response": None}, PAIR),  # a table has all columns in every row
    ],
)  # fmt: skip
def test_a_form_is_told_by_its_fields_and_read_whole(row, turns):
    found = [RawTurn(*turn) for turn in auto(row)]
    turns = turns or BEFORE + PAIR
    assert [turn._replace(text=turn.text.strip()) for turn in found] == [RawTurn(*turn) for turn in turns]


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"title": "q", "text": "a"}, "no form: no reader knows the fields title, text"),
        ({}, "no form"),
        ([], "expected a JSON object, found list"),
        ({"question": "q", "answer": "a", "response": "b"}, "two forms: question+response and question+answer of"),
        ({"messages": [ASKED, SAID], "prompt": "q", "response": "a"}, "two forms: messages and prompt+response"),
        ({"instruction": "q", "output": "a", "history": "h"}, "history: holds str; expected a list of pairs"),
        ({"instruction": "q", "output": "a", "history": [["h"]]}, "history: element 1 is no pair"),
        ({"instruction": "q", "output": "a", "history": [["h", "i"], ["h", 5]]}, "history: element 2 is no pair"),
        ({"instruction": "q", "output": "a", "history": ["h", "i"]}, "history: element 1 is no pair"),
        ({"instruction": "q", "output": "a", "history": [{"role": "tool", "content": "x"}]}, "tools: turn 1 of"),
        ({"instruction": "q", "output": "a", "tools": "[{}]"}, "tools: the row offers some"),
        ({"query": "q", "response": "a", "tools": [{}]}, "tools: the row offers some"),
        ({"prompt": [ASKED], "completion": [SAID], "tools": [{}]}, "tools: the row offers some"),
        ({"prompt": [ASKED], "completion": [{"role": "tool", "content": "x"}]}, "tools: turn 1 has the role 'tool'"),
        ({"conversation": [ASKED, {"from": "observation", "value": "x"}]}, "tools: turn 2 has the role 'observation'"),
        ({"prompt": [ASKED], "completion": 5}, "not a string: field 'completion' holds int"),
        ({"prompt": {"role": "user"}, "completion": "a"}, "not a string: field 'prompt' holds dict"),
        ({"messages": [ASKED, {**SAID, "train_detail": [{"begin_offset": 0}]}]}, "train_detail: turn 2 marks parts"),
    ],
)  # fmt: skip
def test_what_is_no_form_or_not_understood_is_refused_by_name(row, reason):
    with pytest.raises(InputError, match=re.escape(reason)) as refusal:
        auto(row)
    assert "\n" not in str(refusal.value) and not isinstance(refusal.value, Unanswered)


@pytest.mark.parametrize(
    "row", [{"query": "q", "response": " "}, {"query": "q", "response": None}, {"prompt": "q", "completion": ""}]
)
def test_a_form_without_its_answer_is_no_malformed_row(row):
    with pytest.raises(Unanswered):
        auto(row)


@pytest.mark.parametrize("mark", LEARN)
def test_every_mark_is_honoured_in_every_spelling(mark):
    for speaker, words in (("from", "value"), ("role", "content")):
        turns = read_messages([{speaker: "user", words: "q"}, {speaker: "assistant", words: "a", mark: 0}])
        assert turns == [("user", "q"), RawTurn("assistant", "a", learn=False)]


def write(path, *rows):
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


def test_a_history_and_fields_that_are_not_read_are_in_the_account(tmp_path):
    row = {
        "id": 1,
        "cate": "用药",
        "instruction": "那孕妇呢？",
        "input": "",
        "output": "孕妇不要自己用药，先问产科医生。",
    }
    row["history"] = [["布洛芬一次吃多少？", "成人一次0.2克。"]]
    rows = [row, {**row, "instruction": "小孩呢？"}, {**row, "output": ""}]
    content = prepare([f"cmd={write(tmp_path / 'a.jsonl', *rows)}"], tmp_path / "out.jsonl", dedup="none")
    first, _ = read_lines(tmp_path / "out.jsonl")
    assert [turn["text"] for turn in first["turns"]] == [*row["history"][0], row["instruction"], row["output"]]
    assert content["sources"]["cmd"]["unread_fields"] == {"id": 2, "cate": 2}
    report = json.loads((tmp_path / "out.report.json").read_text(encoding="utf-8"))
    assert report["sources"] == content["sources"]


def test_a_system_column_and_a_system_turn_give_the_same(tmp_path):
    talk = [{"from": "human", "value": "孩子不肯吃青菜怎么办"}, {"from": "gpt", "value": "换种做法，慢慢来。"}]
    inline = {"conversations": [{"from": "system", "value": "你只回答儿科问题。"}, *talk]}
    column = {"system": "你只回答儿科问题。", "conversations": talk}
    found = []
    for row in (inline, column):
        content = prepare([f"auto={write(tmp_path / 'a.jsonl', row)}"], tmp_path / "out.jsonl")
        found.append((read_lines(tmp_path / "out.jsonl")[0]["turns"], content["sources"]))
    assert found[0] == found[1] and found[0][0][0]["role"] == "system"


def test_what_cleaning_changes_is_counted_by_rule(tmp_path):
    row = {
        "instruction": "体温&gt;38&deg;C怎么办？<br/>急",
        "input": "",
        "output": "<p>先补液&amp;观察。。</p>祝您健康！",
    }
    path = write(tmp_path / "a.jsonl", row)
    content = prepare([f"cmd={path}"], tmp_path / "out.jsonl")
    assert [turn["text"] for turn in read_lines(tmp_path / "out.jsonl")[0]["turns"]] == [
        "体温>38°C怎么办？\n急",
        "先补液&观察。",
    ]
    assert content["sources"]["cmd"]["changes"] == {
        "HTML entities": 3, "HTML tags": 3, "courtesy sentences": 1, "repeated punctuation": 1,
    }  # fmt: skip
    assert not prepare([f"cmd={path}"], tmp_path / "out.jsonl", clean=False)["sources"]["cmd"]["changes"]


LINES = "title,ask,answer\n感冒怎麼辦,我咳嗽發燒三天了，夜裡咳得睡不著,多休息，多喝溫水，必要時去醫院檢查。\n"
LINES += "膝蓋痛怎麼辦,走路的時候膝蓋會痛，已經兩個星期,少爬樓梯，先做檢查。\n"


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "big5hkscs", "gb18030", "utf-16"])
def test_encodings_that_are_not_utf_8_are_named_in_the_report(tmp_path, encoding):
    table, held = tmp_path / "a.csv", tmp_path / "held.csv"
    table.write_text(LINES, encoding=encoding)
    held.write_text("question\n" + LINES.splitlines()[2].replace(",", "，") + "\n", encoding=encoding)
    content = prepare([f"toyhom={table}"], tmp_path / "out.jsonl", exclude=[str(held)])
    assert read_lines(tmp_path / "out.jsonl")[0]["turns"][0]["text"].startswith("感冒怎麼辦\n我咳嗽發燒三天了")
    assert content["dropped"] == {"overlaps evaluation set": 1}
    named = {} if encoding.startswith("utf-8") else {str(table): encoding, str(held): encoding}
    assert content["encodings"] == named
    assert json.loads((tmp_path / "out.report.json").read_text(encoding="utf-8"))["encodings"] == named


def test_documents_name_encodings_too(tmp_path):
    table = tmp_path / "a.csv"
    table.write_text(LINES, encoding="big5hkscs")
    made = make_documents([str(table)], "{ask}", tmp_path / "out.jsonl")
    assert made["documents"] == 2 and made["encodings"] == {str(table): "big5hkscs"}


@pytest.mark.parametrize("content", ["", "\n\n", "[]", "，。！\n", '{"a": 1}\n'])
def test_an_evaluation_set_without_a_text_is_refused(tmp_path, content):
    path, held = write(tmp_path / "a.jsonl", {"query": "q", "response": "a"}), tmp_path / "test.json"
    held.write_text(content if content.strip() not in ("", "，。！") else json.dumps([content]), encoding="utf-8")
    with pytest.raises(InputError, match=r"test\.json: holds no text; give an evaluation set, or leave the file out"):
        prepare([f"auto={path}"], tmp_path / "out.jsonl", exclude=[str(held)])
    empty = tmp_path / "test.jsonl"
    empty.write_bytes(b"")
    with pytest.raises(InputError, match=r"test\.jsonl: holds no text"):
        prepare([f"auto={path}"], tmp_path / "out.jsonl", exclude=[str(empty)])
    assert not list(tmp_path.glob("out*"))


def documented_rows():
    """(reader, row) of every row of JSON that docs/data.md shows for a reader."""
    dialogues, rankings = (ROOT / "docs" / "data.md").read_text(encoding="utf-8").split("## Ranked answers")
    for text, readers in ((dialogues, READERS), (rankings, RANKING_READERS)):
        for line in text.splitlines():
            cells = [cell.strip() for cell in line.split("|")]
            for row in re.findall(r"`([{\[].*?)`", cells[3] if len(cells) == 5 else ""):
                yield from (pytest.param(readers[name], json.loads(row)) for name in re.findall(r"`(\w+)`", cells[2]))


@pytest.mark.parametrize(("reader", "row"), list(documented_rows()))
def test_the_rows_of_the_documentation_are_read_by_their_readers(reader, row):
    if "Insult" in row:  # sections of rows
        (row,) = row["Insult"]
    made = (
        reader.group(row).responses if hasattr(reader, "group") else [RawTurn(*turn).text for turn in reader.turns(row)]
    )
    assert len(made) > 1 and made[-1]


def test_every_reader_is_documented():
    found = {id(one.values[0]) for one in documented_rows()}
    missing = [name for name, reader in {**READERS, **RANKING_READERS}.items() if id(reader) not in found]
    assert missing == ["mc"] or missing == ["mc", "toyhom"], missing  # lines of text and of a table
