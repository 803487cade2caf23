"""Each published format, and what its reader makes of it."""

import json
import re

import pytest
from support.sft_sources import NAMES, content_of, expected_turns, make_dialogues, write_source

from megatron_chimed import jsonl
from megatron_chimed.data.dialogue_readers import READERS, Unanswered, join_question
from megatron_chimed.data.json_values import read_json_values
from megatron_chimed.data.sources import Fault
from megatron_chimed.data.turns import RawTurn
from megatron_chimed.errors import InputError


def read(reader, path):
    """(line, turns or Fault or error) of each row."""
    reader, found = READERS[reader.split(".")[0]], []
    for line, row in reader.rows(path):
        try:
            found.append((line, row if isinstance(row, Fault) else reader.turns(row)))
        except InputError as error:
            found.append((line, error))
    return found


def one(reader, row):
    return READERS[reader].turns(row)


@pytest.mark.parametrize("reader", NAMES)
def test_every_format_gives_the_turns_that_were_written(tmp_path, reader):
    dialogues = make_dialogues(7)
    found = [turns for _, turns in read(reader, write_source(tmp_path, reader, dialogues))]
    assert [[(turn[0], turn[1].strip()) for turn in turns] for turns in found] == expected_turns(reader, dialogues)


@pytest.mark.parametrize("reader", ["toyhom", "mc", "meddialog"])
@pytest.mark.parametrize("encoding", ["gb18030", "utf-8-sig"])
def test_the_encoding_of_a_table_or_text_is_found(tmp_path, reader, encoding):
    dialogues = make_dialogues(5)
    found = [turns for _, turns in read(reader, write_source(tmp_path, reader, dialogues, encoding))]
    assert [[(role, text.strip()) for role, text in turns] for turns in found] == expected_turns(reader, dialogues)


@pytest.mark.parametrize(
    ("title", "body", "expected"),
    [
        ("胃炎怎么办？", "", "胃炎怎么办？"),
        ("胃炎怎么办？", "无", "胃炎怎么办？"),
        ("胃炎怎么办？", "胃炎怎么办？", "胃炎怎么办？"),
        ("胃炎怎么办？", "胃炎怎么办，疼了两天", "胃炎怎么办，疼了两天"),
        ("胃炎怎么办？", "疼了两天，胃炎怎么办", "胃炎怎么办？\n疼了两天，胃炎怎么办"),
        ("", "疼了两天", "疼了两天"),
        ("无", "疼了两天", "疼了两天"),
    ],
)
def test_a_title_is_not_said_twice(title, body, expected):
    assert join_question(title, body) == expected
    row = {"department": "内科", "title": title, "ask": body, "answer": " 休息 "}
    assert one("toyhom", row) == [("user", expected), ("assistant", "休息")]


def test_the_adopted_answer_wins_then_the_recommended_then_the_first():
    def page(*answers):
        rows = [{"adopted": a, "recommended": r, "answer": text} for a, r, text in answers]
        return one("chimed", {"title": "问", "question_content": "", "answers": rows})[1][1]

    assert page(("False", "False", "a"), ("False", "True", "b"), ("True", "False", "c")) == "c"
    assert page(("False", "False", "a"), ("False", "True", "b"), ("False", "False", "c")) == "b"
    assert page(("False", "False", "a"), (False, None, "b")) == "a"
    assert page(("False", "False", "a"), (True, False, "b")) == "b"
    assert page(("True", "False", " "), ("False", "False", "b")) == "b"  # an adopted answer without text
    for answers in ([], [{"adopted": "True", "answer": ""}]):
        with pytest.raises(Unanswered, match="no doctor's answer"):
            one("chimed", {"title": "问", "question_content": "", "answers": answers})


def test_instruction_and_input_make_the_question():
    assert one("cmd", {"instruction": "请回答。", "input": "胃疼", "output": "休息"})[0] == ("user", "请回答。\n胃疼")
    assert one("cmd", {"instruction": "胃疼", "input": "", "output": "休息"})[0] == ("user", "胃疼")
    assert one("cmd", {"instruction": "胃疼", "output": "休息"})[0] == ("user", "胃疼")
    for output in ("", " ", None):
        with pytest.raises(Unanswered):
            one("cmd", {"instruction": "胃疼", "input": "", "output": output})
    with pytest.raises(InputError, match="missing key: 'output'"):
        one("cmd", {"instruction": "胃疼", "input": ""})


def test_a_dialogue_inside_an_instruction_is_found_by_cmd_and_required_by_multi_turn():
    turns = [("user", "胃疼"), ("assistant", "多久？"), ("user", "两天"), ("assistant", "休息")]
    row = {"instruction": " <user>: 胃疼 <bot>: 多久？ <user>：两天", "input": "", "output": "休息"}
    for reader in ("cmd", "multi_turn"):
        assert [(role, text.strip()) for role, text in one(reader, row)] == turns
        with pytest.raises(Unanswered):
            one(reader, {**row, "output": ""})
    below = {"instruction": "你是医生。", "input": row["instruction"], "output": "休息"}
    assert [text.strip() for _, text in one("cmd", below)] == ["你是医生。", "胃疼", "多久？", "两天", "休息"]
    plain = {"instruction": "网页里的 <user>: 是什么", "input": "", "output": "一个记号"}
    assert one("cmd", plain)[0] == ("user", "网页里的 <user>: 是什么")  # only mentioned: no dialogue
    with pytest.raises(InputError, match="no '<user>:'"):
        one("multi_turn", {"instruction": "胃疼", "output": "休息"})
    with pytest.raises(InputError, match="unknown role: <nurse>"):
        one("multi_turn", {"instruction": "<user>: 胃疼 <nurse>: 等等 <user>: 好", "output": "休息"})


def test_sharegpt_knows_both_spellings_and_refuses_unknown_roles():
    turns = [("system", "s"), ("user", "q"), ("assistant", "a")]
    rows = [{"from": role, "value": text} for role, text in (("system", "s"), ("human", "q"), ("gpt", "a"))]
    assert one("sharegpt", {"conversations": rows}) == turns
    rows = [{"role": role, "content": text} for role, text in turns]
    assert one("sharegpt", {"messages": rows}) == turns
    with pytest.raises(InputError, match="unknown role: turn 1 has 'nurse'"):
        one("sharegpt", {"conversations": [{"from": "nurse", "value": "x"}]})
    for broken in ({}, {"conversations": "x"}, {"conversations": ["x"]}, {"conversations": [{"from": 1, "value": ""}]}):
        with pytest.raises(InputError):
            one("sharegpt", broken)


def test_a_system_field_stands_in_front_and_what_stands_beside_an_answer_is_read():
    rows = [{"role": "user", "content": "q", "weight": 1}, {"role": "assistant", "content": "a"}]
    assert one("sharegpt", {"system": " s ", "messages": rows})[0] == ("system", "s")
    for empty in ("", None):
        assert len(one("sharegpt", {"system": empty, "messages": rows})) == 2
    for field in ("reasoning_content", "reasoning", "thinking"):
        rows[1] = {"role": "assistant", "content": "a", field: " x "}
        assert one("sharegpt", {"messages": rows})[1] == RawTurn("assistant", "a", "x")
    assert one("cmd", {"instruction": "q", "output": "a", "system": "s"})[0] == ("system", "s")
    assert one("multi_turn", {"instruction": "<user>: q", "output": "a", "system": "s"})[0] == ("system", "s")
    assert one("safety", {"prompt": "q", "response": "a", "system": "s"})[0] == ("system", "s")


@pytest.mark.parametrize("mark", [{"loss": False}, {"weight": 0}, {"train": 0.0}, {"train": False, "loss": 0}])
def test_marks_of_three_formats_say_what_is_not_to_be_learnt(mark):
    def learnt(role, mark):
        *_, turn = one("sharegpt", {"messages": [{"role": role, "content": "a", **mark}]})
        return RawTurn(*turn).learn

    assert not learnt("assistant", mark) and learnt("user", mark) and learnt("system", mark)
    for other in ({}, dict.fromkeys(mark), dict.fromkeys(mark, True), dict.fromkeys(mark, 1)):
        assert learnt("assistant", other)


@pytest.mark.parametrize(
    ("turn", "reason"),
    [
        ({"weight": 0.5}, "not a mark: field 'weight' of turn 1 is 0.5; expected true or false, 1 or 0"),
        ({"loss": "false"}, "not a mark: field 'loss'"),
        ({"loss": True, "weight": 0}, "marks that contradict each other: loss and weight of turn 1"),
        ({"reasoning": "x", "reasoning_content": "y"}, "thinking twice"),
        ({"role": "user", "reasoning": "x"}, "thinking of the user"),
        ({"reasoning": ["x"]}, "not a string: field 'reasoning'"),
        ({"role": "tool"}, "tools: turn 1 has the role 'tool'"),
        ({"role": "Observation"}, "tools: turn 1 has the role 'Observation'"),
        ({"role": "function"}, "tools: turn 1 has the role 'function'"),
        ({"tool_calls": [{"id": "x"}], "content": None}, "tools: turn 1 has the field 'tool_calls'"),
    ],
)
def test_what_beside_a_text_is_not_understood_is_refused_by_name(turn, reason):
    with pytest.raises(InputError, match=re.escape(reason)):
        one("sharegpt", {"messages": [{"role": "assistant", "content": "a", **turn}]})


def test_tools_that_a_row_offers_are_refused_and_none_are_not():
    rows = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a", "tool_calls": []}]
    for none in (None, "", "[]", []):
        assert len(one("sharegpt", {"messages": rows, "tools": none})) == 2
    with pytest.raises(InputError, match="^tools: the row offers some"):
        one("sharegpt", {"messages": rows, "tools": '[{"name": "search"}]'})


def test_the_description_opens_a_meddialog_dialogue_unless_the_patient_says_it():
    head = "id=1\nDoctor faculty\n内科\n\nDescription\n疾病：\n胃炎\n病情描述（主要症状等）：\n胃疼两天\n"
    head += "希望获得的帮助：\n{}\n过敏史：无\n\n"
    opening = [("user", "胃疼两天\n怎么治"), ("assistant", "多久了\n吃药了吗"), ("user", "两天")]
    spoken = "Dialogue\n医生：\n多久了\n吃药了吗\n病人：\n两天\n"
    assert one("meddialog", head.format("怎么治") + spoken) == opening
    assert one("meddialog", head.format("无") + spoken)[0] == ("user", "胃疼两天")
    spoken = "Dialogue\n病人：胃疼两天，急\n医生：休息\n\nDiagnosis and suggestions\n病情摘要：\n胃炎\n"
    assert one("meddialog", head.format("怎么治") + spoken) == [("user", "胃疼两天，急"), ("assistant", "休息")]
    with pytest.raises(InputError, match="no line 'Dialogue'"):
        one("meddialog", head.format(""))
    with pytest.raises(InputError, match="unknown role: the dialogue begins with '护士：'"):
        one("meddialog", head.format("") + "Dialogue\n护士：\n您好\n")


def test_processed_meddialog_is_lists_of_marked_strings():
    turns = [("user", "胃疼"), ("assistant", "休息")]
    assert (
        one("meddialog", ["病人：胃疼", "医生:休息"])
        == one("meddialog", {"utterances": ["病人：胃疼", "医生：休息"]})
        == turns
    )
    for broken in (["护士：您好"], ["胃疼"], [1], {"x": 1}, None, 7):
        with pytest.raises(InputError):
            one("meddialog", broken)


def test_mc_passes_over_header_and_summaries_and_refuses_other_lines(tmp_path):
    path = tmp_path / "a.dialog"
    path.write_text(
        "id\t1\tdepartment\t内科\nP\t胃疼\t1\nD\t休息\t2\nSUM1\t胃疼\nSUM2.0\t休息\n\n\nP\t3\nD\t好\nid\t2\nP\t痒\n"
        "\nid\t3\nN\t护士\t0\n\nid\t4\nP\ta\tb\t0\nD\t好\r\n",
        encoding="utf-8",
    )
    found = read("mc", path)
    assert [line for line, _ in found] == [1, 8, 10, 13, 16]
    assert found[0][1] == [("user", "胃疼"), ("assistant", "休息")]
    assert found[1][1] == [("user", "3"), ("assistant", "好")] and found[2][1] == [("user", "痒")]
    assert str(found[3][1]).startswith("unknown role: 'N' in line 2 of the dialogue")
    assert found[4][1] == [("user", "a b"), ("assistant", "好")]


def test_a_bad_byte_costs_its_own_dialogue_only(tmp_path):
    for reader in NAMES:
        dialogues = make_dialogues(500)
        path = write_source(tmp_path, reader, dialogues)
        mark = dialogues[200][1][1].encode()
        content = path.read_bytes()
        assert content.count(mark) == 1
        path.write_bytes(content.replace(mark, mark[:3] + b"\xff" + mark[3:]))
        bad = 0
        for _, found in read(reader, path):
            text = "" if isinstance(found, Exception | Fault) else "".join(turn[1] for turn in found)
            bad += isinstance(found, Exception | Fault) or any("\udc80" <= mark <= "\udcff" for mark in text)
        assert bad == 1, reader


@pytest.mark.parametrize("block", [7, 64, 1 << 20])
def test_json_values_are_read_in_blocks_of_any_size(tmp_path, monkeypatch, block):
    monkeypatch.setattr("megatron_chimed.data.json_values.BLOCK", block)
    values = [{"a": [1, ']}，\\"']}, [], "x" * 300, 12345678901234567890, None, {}, -1.5e-7]
    path = tmp_path / "a.json"
    for indent in (None, 2):
        path.write_text(json.dumps(values, indent=indent, ensure_ascii=False), encoding="utf-8")
        assert list(read_json_values(path)) == list(enumerate(values, start=1))
        path.write_text(json.dumps({"p": values, "q": [], "r": values[:2]}, indent=indent), encoding="utf-8")
        assert [value for _, value in read_json_values(path, sections=True)] == values + values[:2]


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ('[1,\n2', "a.json:2: not a JSON file (it ends too early)"),
        ("[1,\n2\n}", "a.json:3: not a JSON file (expected ',', found '}')"),
        ("[1] x", "something follows its end"),
        ("[" * 100_000, "nested too deeply"),
        ("[" + "9" * 5000 + "]", "a number is too long"),
        ('["' + "x" * 30_000, "over 10000 characters"),
        ("", "file without content"),
        ('{"a": 1}', "holds a JSON object; expected an array"),
        ("nonsense", "holds a JSON value"),
    ],
)  # fmt: skip
def test_broken_json_is_refused_at_its_place(tmp_path, monkeypatch, text, reason):
    monkeypatch.setattr("megatron_chimed.data.json_values.BLOCK", 1000)
    monkeypatch.setattr(jsonl, "MAX_LINE_BYTES", 10_000)
    path = tmp_path / "a.json"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(InputError) as refusal:
        list(read_json_values(path))
    assert reason in str(refusal.value) and "\n" not in str(refusal.value)


@pytest.mark.parametrize(
    "reader", ["chimed", "cmd", "mc", "meddialog", "sharegpt"]
)  # of the others, the file is refused
def test_a_row_that_is_too_long_is_put_aside_and_the_next_is_read(tmp_path, monkeypatch, reader):
    monkeypatch.setattr(jsonl, "MAX_LINE_BYTES", 5000)
    dialogues = make_dialogues(9)
    dialogues[4][1] = ("assistant", "长" * 3000)
    path = tmp_path / NAMES[reader]
    path.write_text(content_of(reader, dialogues), encoding="utf-8")
    found = read(reader, path)
    assert len(found) == 9
    assert [n for n, (_, one) in enumerate(found) if isinstance(one, Fault)] == [4]
    assert found[4][1] == Fault("line too long: over 5000 bytes")
