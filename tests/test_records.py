"""Records as JSON rows: there and back, and what a bad row says."""

import pytest

from megatron_chimed.errors import InputError
from megatron_chimed.records import Dialogue, Turn

USER, DOCTOR = {"role": "user", "text": "头痛"}, {"role": "assistant", "text": "多休息"}
ROW = {"id": "cmd:a.jsonl:1", "source": "cmd", "turns": [USER, DOCTOR]}


def test_a_dialogue_comes_back_from_its_row():
    dialogue = Dialogue("cmd:a.jsonl:1", "cmd", (Turn("user", "头痛"), Turn("assistant", "多休息")))
    assert dialogue.to_row() == ROW
    assert Dialogue.from_row(ROW) == dialogue


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"id": None}, "field 'id' holds nothing"),
        ({"source": 3}, "field 'source' holds 3"),
        ({"turns": []}, "field 'turns' holds []"),
        ({"turns": {"role": "user"}}, "expected a list"),
        ({"turns": ["hello"]}, "turn 0 is 'hello'"),
        ({"turns": [{"role": "system", "text": "x"}]}, "turn 0 has role 'system'"),
        ({"turns": [{"role": "user", "text": " \n"}]}, "turn 0 has text"),
        ({"turns": [USER, {"role": "assistant", "text": None}]}, "turn 1 has text nothing"),
        ({"turns": [USER]}, "the last turn is the user's"),
        ({"turns": [DOCTOR, USER]}, "turn 0 is the assistant's"),
        ({"turns": [USER, USER]}, "turn 1 is the user's"),
    ],
)
def test_a_bad_row_is_refused_with_the_place(change, message):
    with pytest.raises(InputError, match=message.replace("[", r"\[")):
        Dialogue.from_row(ROW | change)
