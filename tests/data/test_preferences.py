"""Answers that were chosen and rejected, in each form that trainers publish, and the prompt that belongs to them."""

import re

import pytest
from support.reward_sources import prepare, write_rows

from megatron_chimed.data.preferences import human_turns
from megatron_chimed.data.ranking_readers import READERS
from megatron_chimed.errors import InputError

ASKED, GOOD, BAD = (
    {"role": role, "content": text} for role, text in (("user", "问"), ("assistant", "好"), ("assistant", "坏"))
)
TOLD, OLD = (
    {"role": "system", "content": "s"},
    [{"role": "user", "content": "一"}, {"role": "assistant", "content": "二"}],
)
BEFORE = [("user", "一"), ("assistant", "二")]
HUMAN = "\n\nHuman: 一\n\nAssistant: 二\n\nHuman: 问\n\nAssistant: "


def group(row, reader="preference"):
    turns, responses, ranks = READERS[reader].group(row)
    assert ranks == [0, 1]
    return [tuple(turn[:2]) for turn in turns], responses


@pytest.mark.parametrize(
    ("row", "before"),
    [
        ({"prompt": "问", "chosen": "好", "rejected": "坏"}, []),
        ({"prompt": [ASKED], "chosen": [GOOD], "rejected": [BAD]}, []),
        ({"prompt": [TOLD, *OLD, ASKED], "chosen": [GOOD], "rejected": "坏"}, [("system", "s"), *BEFORE]),
        ({"chosen": [TOLD, ASKED, GOOD], "rejected": [TOLD, ASKED, BAD]}, [("system", "s")]),
        ({"chosen": [*OLD, ASKED, GOOD], "rejected": [*OLD, ASKED, BAD], "prompt": "问"}, BEFORE),
        ({"chosen": [ASKED, GOOD], "rejected": [ASKED, BAD], "messages": [ASKED, GOOD]}, []),
        ({"instruction": "问", "input": "", "chosen": "好", "rejected": "坏", "system": "s"}, [("system", "s")]),
        ({"instruction": "问", "chosen": "好", "rejected": "坏", "history": [["一", "二"]]}, BEFORE),
        ({"conversations": [{"from": "human", "value": "问"}], "chosen": {"from": "gpt", "value": "好"},
          "rejected": {"from": "gpt", "value": "坏"}}, []),
        ({"system": "s", "question": "问", "chosen": "好", "rejected": "坏"}, [("system", "s")]),
        ({"chosen": HUMAN + "好", "rejected": HUMAN + "坏"}, BEFORE),
        ({"prompt": HUMAN, "chosen": "好", "rejected": "坏"}, BEFORE),
    ],
)  # fmt: skip
def test_a_prompt_is_found_where_its_form_has_it(row, before):
    assert group(row) == ([*before, ("user", "问")], ["好", "坏"])


def test_the_forms_of_medicalgpt_and_swift_are_read():
    row = {
        "system": "s",
        "history": [["一", "二"]],
        "question": "问",
        "response_chosen": "好",
        "response_rejected": "坏",
    }
    assert group(row, "cmd") == ([("system", "s"), *BEFORE, ("user", "问")], ["好", "坏"])
    row = {"messages": [*OLD, ASKED, {**GOOD, "reasoning": "x"}], "rejected_response": "坏"}
    assert group(row, "swift") == ([*BEFORE, ("user", "问")], ["<think>x</think>好", "坏"])


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"chosen": [*OLD, ASKED, GOOD], "rejected": [ASKED, BAD]},
         "no common prompt: chosen and rejected differ from turn 1 on"),
        ({"chosen": HUMAN + "好", "rejected": "\n\nHuman: 一\n\nAssistant: 三"},
         "no common prompt: chosen and rejected differ from turn 2"),
        ({"chosen": [ASKED, GOOD], "rejected": [ASKED, BAD, ASKED]},
         "not an answer: field 'rejected' does not end with one"),
        ({"chosen": "\n\nHuman: 问", "rejected": "\n\nHuman: 问"},
         "not an answer: field 'chosen' does not end with one"),
        ({"prompt": "问", "chosen": {"role": "tool", "content": "x"}, "rejected": "坏"},
         "tools: field 'chosen' has the role 'tool'"),
        ({"prompt": "问", "chosen": {"role": "user", "content": "x"}, "rejected": "坏"},
         "not an answer: field 'chosen' is of the user"),
        ({"prompt": "问", "chosen": [{"from": "function_call", "value": "x"}], "rejected": "坏"},
         "tools: field 'chosen' has"),
        ({"prompt": "问", "chosen": "好", "rejected": "坏", "tools": [{}]}, "tools: the row offers some"),
        ({"prompt": [{"role": "tool", "content": "x"}], "chosen": "好", "rejected": "坏"}, "tools: turn 1 has"),
        ({"chosen": "好", "rejected": "坏"}, "missing key: 'conversations'"),
        ({"prompt": 5, "chosen": "好", "rejected": "坏"}, "not a string: field 'prompt' holds int"),
        ({"instruction": "问", "chosen": "好", "rejected": "坏", "history": [["一"]]}, "history: element 1 is no pair"),
    ],
)  # fmt: skip
def test_a_row_without_a_prompt_or_with_tools_is_refused_by_name(row, reason):
    with pytest.raises(InputError, match=re.escape(reason)) as refusal:
        group(row)
    assert "\n" not in str(refusal.value)


def test_a_text_of_two_speakers_is_cut_at_their_names_alone():
    assert human_turns("Human: 问 Human: 也是问\n\nAssistant: 答\n\n第二段", "x") == [
        ("user", "问 Human: 也是问"),
        ("assistant", "答\n\n第二段"),
    ]
    with pytest.raises(InputError, match="unknown role: x begins with '问.*; expected 'Human:'"):
        human_turns("问\n\nHuman: 再问", "x")


def test_what_cleaning_changes_and_fields_that_are_not_read_are_in_the_account(tmp_path):
    rows = [
        {
            "id": 1,
            "prompt": "体温&gt;38度。。",
            "chosen": [{**GOOD, "model": "m"}],
            "rejected": "<b>坏</b>",
            "score": 0,
        },
        {"prompt": "问", "chosen": "好", "rejected": "好"},
    ]
    content = prepare([f"x={write_rows(tmp_path / 'a.jsonl', rows)}"], tmp_path / "out.jsonl")
    found = content["sources"]["x"]
    assert found["changes"] == {"HTML entities": 1, "HTML tags": 2, "repeated punctuation": 1}
    assert found["unread_fields"] == {"id": 1, "chosen[].model": 1, "score": 1} and content["encodings"] == {}
    assert found["dropped"] == {"answers are equal": 1}
