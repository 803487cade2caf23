"""What a reader does not read of a row is counted by name: fields in are fields that are used, and counted ones."""

import json
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.reward_sources import FORMS as RANKED
from support.reward_sources import make_groups, row_of
from support.sft_sources import NAMES, check_report, form_row, make_dialogues, prepare, write_source

from megatron_chimed.data.dialogue_readers import READERS
from megatron_chimed.data.dialogue_worker import DialogueOptions, DialogueWorker
from megatron_chimed.data.fields import Fields, holds, leave_out, unread_fields, watch_row
from megatron_chimed.data.ranking_worker import RankingOptions, RankingWorker

DIALOGUES = {
    "cmd": {"instruction": "胃疼", "input": "两天", "output": "休息", "system": "s", "history": [["问", "答"]]},
    "multi_turn": {"instruction": "<user>: 胃疼 <bot>: 多久 <user>: 两天", "input": "急", "output": "休息"},
    "safety": {"prompt": "胃疼", "response": "休息", "reasoning": "想"},
    "sharegpt": {"system": "s", "conversations": [{"from": "human", "value": "问"}, {"from": "gpt", "value": "答"}]},
    "toyhom": {"department": "内科", "title": "胃炎", "ask": "胃疼", "answer": "休息"},
    "chimed": {"id": "1", "title": "胃炎", "question_content": "胃疼", "answers": [{"answer": "休息", "by": "王"}]},
    "meddialog": {"utterances": ["病人：胃疼", "医生：休息"], "description": "胃疼"},
}  # fmt: skip
DIALOGUES |= {
    name: form_row(name, make_dialogues(1)[0]) for name in NAMES if name.startswith("auto.") and name != "auto.table"
}
DIALOGUES |= {
    "auto.marks": {"messages": [{"role": "user", "content": "问", "id": 1},
                                {"role": "assistant", "content": "答", "loss": False, "reasoning": "想",
                                 "meta": {"a": 1}},
                                {"role": "user", "content": "再问"}, {"role": "assistant", "content": "再答"}]},
    "auto.ultrachat": {"prompt": "问", "prompt_id": "x", "messages": [{"role": "user", "content": "问"},
                                                                    {"role": "assistant", "content": "答"}]},
}  # fmt: skip
UNREAD = {
    "toyhom": {"department": 1},
    "chimed": {"id": 1, "answers[].by": 1},
    "meddialog": {"description": 1},
    "auto.cmtmedqa": {"id": 1, "cate": 1},
    "auto.marks": {"messages[].id": 1, "messages[].meta": 1},
    "auto.ultrachat": {"prompt": 1, "prompt_id": 1},
    "ranking record": {"id": 1, "source": 1},
    "ranking implicit": {"score_chosen": 1},
}
VALUES = st.one_of(st.none(), st.booleans(), st.integers(), st.text(max_size=5), st.lists(st.integers(), max_size=2))
EXTRA = st.dictionaries(st.text(min_size=1, max_size=8).map(lambda name: f"x_{name}"), VALUES, max_size=3)


def prepared(form, row):
    """What a worker makes of a row of a form of dialogues, or of rankings."""
    if form.startswith("ranking "):
        reader, worker = RANKED[form.removeprefix("ranking ")], RankingWorker(RankingOptions(False, False, "none"))
    else:
        reader, worker = form.split(".")[0], DialogueWorker(DialogueOptions(False, False, "none"))
    return worker.prepare(reader, [(1, row)])[0]


def outcome(one):
    """What of it is in an output, or the reason why nothing is."""
    return one.reason or (one.turns, getattr(one, "responses", ()), getattr(one, "preference_ranks", ()))


def objects_of(value, path=""):
    """(path, object) of every object in a row."""
    if isinstance(value, dict):
        yield path, value
        for name, inner in value.items():
            yield from objects_of(inner, f"{path}.{name}" if path else name)
    elif isinstance(value, list):
        for inner in value:
            yield from objects_of(inner, f"{path}[]")


def something(value):
    return value not in (None, [], {}) and not (isinstance(value, str) and not value.strip())


RANKINGS = {f"ranking {form}": row_of(form, *make_groups(1)[0]) for form in RANKED}
ROWS = {form: json.dumps(row) for form, row in {**DIALOGUES, **RANKINGS}.items()}
CHECKED = {
    "ranking preference": ["rejected.from"],
    "ranking trl_messages": ["chosen[].role", "rejected[].role"],
    "ranking implicit": ["prompt"],
}
"""Fields that are read to refuse other rows: a right one changes nothing."""


@pytest.mark.parametrize("form", ROWS)
def test_a_field_is_counted_or_the_output_would_be_another_without_it(form):
    row = json.loads(ROWS[form])
    whole = prepared(form, row)
    assert not whole.reason and whole.unread == UNREAD.get(form, {})
    for number, (path, found) in enumerate(objects_of(row)):
        for field in found:
            less = json.loads(ROWS[form])
            del list(objects_of(less))[number][1][field]
            name = f"{path}.{field}" if path else field
            unread = any(f"{name}.".startswith(f"{one}.") for one in whole.unread)
            idle = unread or not something(found[field]) or name in CHECKED.get(form, ())
            assert (outcome(prepared(form, less)) == outcome(whole)) == idle, name


@pytest.mark.parametrize("form", ROWS)
@settings(max_examples=15, deadline=None)
@given(data=st.data())
def test_whatever_stands_beside_what_is_read_is_counted_and_changes_nothing(form, data):
    row, whole = json.loads(ROWS[form]), prepared(form, json.loads(ROWS[form]))
    expected = Counter(whole.unread)
    for path, found in list(objects_of(row)):
        if path not in whole.unread:
            extra = data.draw(EXTRA)
            found |= extra
            expected.update(f"{path}.{key}" if path else key for key, value in extra.items() if something(value))
    one = prepared(form, row)
    assert one.unread == expected and outcome(one) == outcome(whole)


@pytest.mark.parametrize("reader", NAMES)
def test_rows_in_are_rows_out_and_counted_ones(tmp_path, reader):
    """Of rows without some of their fields too, in every form."""
    dialogues = make_dialogues(12)
    path = write_source(tmp_path, reader, dialogues)
    text = path.read_text(encoding="utf-8")
    for number, mark in enumerate([dialogues[3][0][1], dialogues[6][1][1]]):
        text = text.replace(mark, "" if number else " ")
    path.write_text(text, encoding="utf-8")
    content = prepare([f"x:{reader.split('.')[0]}={path}"], tmp_path / "out.jsonl", max_rejected_share=1)
    check_report(content, tmp_path / "out.jsonl")
    assert content["input_rows"] == 12 and content["rows"] in range(10, 13)


def test_texts_count_what_is_left_out_of_them():
    block = "id\t1\tdepartment\t内科\tdisease\t\nP\t胃疼\t1\nD\t休息\t2\nD\t好\nSUM1\t胃疼\nSUM2.0\t\n"
    row = watch_row(block.strip("\n"))
    READERS["mc"].turns(row)
    assert unread_fields(row) == {"id": 1, "department": 1, "label": 2, "SUM1": 1}
    text = "id=1\nhttps://a.cn\nDoctor faculty\n内科\n\nDescription\n疾病：\n胃炎\n病情描述：\n胃疼\n"
    text += "希望获得的帮助：\n怎么治\n过敏史：无\n\nDialogue\n{}医生：\n休息\n\n"
    text += "Diagnosis and suggestions\n病情摘要：\n胃炎\n"
    counted = {"id": 1, "url": 1, "Doctor faculty": 1, "疾病": 1, "Diagnosis and suggestions": 1}
    for opening, more in (("", {}), ("病人：\n胃疼\n", {"希望获得的帮助": 1}), ("病人：\n胃疼，怎么治\n", {})):
        row = watch_row(text.format(opening))
        READERS["meddialog"].turns(row)
        assert unread_fields(row) == counted | more


def test_answers_of_a_page_that_are_not_taken_are_counted():
    answers = [
        {"answer": "a", "adopted": "False"},
        {"answer": "b", "adopted": "True"},
        {"answer": "", "adopted": "False"},
    ]
    row = watch_row({"title": "问", "question_content": "", "answers": answers})
    assert READERS["chimed"].turns(row)[1] == ("assistant", "b") and unread_fields(row) == {"answers[].answer": 1}


def test_looking_is_not_reading_and_what_is_not_watched_stays_as_it_is():
    row = watch_row({"a": 1, "b": {"c": [1]}, "d": None, 5: "x"})
    assert "a" in row and len(row) == 4 and holds(row, "a", "b") and not holds(row, "d") and not holds([], "a")
    assert unread_fields(row) == {"a": 1, "b": 1, "5": 1}
    assert row.get("b") is row["b"] and isinstance(row["b"], Fields) and row.get("z", 3) == 3
    assert unread_fields(row) == {"a": 1, "b.c": 1, "5": 1}
    plain = {"a": 1}
    leave_out(plain, "a")
    assert (
        plain == {"a": 1} and not unread_fields(plain) and unread_fields(watch_row({"\ud800" * 99: 1})) == {"?" * 60: 1}
    )


def test_names_of_unread_fields_hold_no_personal_data(tmp_path):
    row = {"instruction": "胃疼", "output": "休息", "13812345678": "x"}
    one = DialogueWorker(DialogueOptions()).prepare("cmd", [(1, row)])[0]
    assert one.unread == {"[电话]": 1}


def test_a_name_of_half_a_character_is_shown_so_that_a_report_can_hold_it():
    row = watch_row({"a": "b", "\udca9": "c"})
    leave_out(row, "label \udca9")
    assert unread_fields(row) == {"a": 1, "?": 1, "label ?": 1}


def test_a_reason_with_half_a_character_is_written(tmp_path):
    path, output = tmp_path / "a.jsonl", tmp_path / "out.jsonl"
    good, bad = {"instruction": "胃疼怎么办", "output": "休息"}, {"\udcef": "x"}
    path.write_text("".join(json.dumps(row) + "\n" for row in (good, bad)))
    prepare([f"auto={path}"], output, max_rejected_share=1)
    (row,) = map(json.loads, output.with_suffix(".rejected.jsonl").read_text("utf-8").splitlines())
    assert "?" in row["reason"]
