"""Common 13-grams of training text and evaluation sets."""

import json
import random

import numpy as np
import pytest

from megatron_chimed.data import decontamination
from megatron_chimed.data.decontamination import GRAM, OverlapIndex, gram_hashes, read_texts, tokens
from megatron_chimed.errors import InputError


def slow_overlap(text, evaluation):
    """The obvious twin: all 13-grams as tuples, and equality with shorter texts."""
    words, grams = tokens(text), set()
    for other in map(tokens, evaluation):
        grams |= {tuple(other[n : n + GRAM]) for n in range(len(other) - GRAM + 1)}
        if other and other == words and len(other) < GRAM:
            return True
    return any(tuple(words[n : n + GRAM]) in grams for n in range(len(words) - GRAM + 1))


def test_a_token_is_a_chinese_character_or_a_word_and_form_does_not_count():
    assert tokens("血压120/80mmHg，ＯＫ！ α-受体_a") == ["血", "压", "120", "80mmhg", "ok", "α", "受", "体", "a"]
    assert tokens("ひらカナ한국 \U00020bb7 é") == ["ひ", "ら", "カ", "ナ", "한", "국", "\U00020bb7", "é"]
    assert tokens("，。!\n\t_") == []


def test_thirteen_tokens_overlap_and_twelve_do_not():
    text = "甲乙丙丁戊己庚辛壬癸子丑寅卯辰巳"
    index = OverlapIndex([text])
    for start in range(len(text)):
        for end in range(start + 1, len(text) + 1):
            found = index.overlaps(f"前言，{text[start:end]}。后记")
            assert found == (end - start >= GRAM), (start, end)
    assert index.overlaps("甲 乙，丙丁戊—己庚辛“壬癸”子丑寅")  # white space and punctuation do not count
    assert not index.overlaps("甲乙丙丁戊己前庚辛壬癸子丑寅卯辰巳"[:14])


def test_a_short_evaluation_text_matches_a_whole_text_only():
    index = OverlapIndex(["胃炎吃什么药？", "", "！"])
    assert index.overlaps("胃炎，吃什么药") and not index.overlaps("请问胃炎吃什么药") and not index.overlaps("")
    assert index.overlaps_dialogue("胃炎吃什么药", []) and not index.overlaps_dialogue("您好", ["胃炎吃什么药"])
    assert not index.overlaps_dialogue("您好", ["胃炎，吃，什，么，药？！？！"])  # 13 characters, and yet too short
    assert not OverlapIndex([]).overlaps("胃炎")


def test_every_turn_is_compared_by_its_13_grams():
    index = OverlapIndex(["患者应当清淡饮食并且按时复查血常规和肝功能"])
    assert index.overlaps_dialogue("您好", ["嗯", "我们说患者应当清淡饮食并且按时复查"])
    assert not index.overlaps_dialogue("您好", ["嗯", "我们说患者应当清淡饮食并且"])


def test_the_index_decides_as_the_slow_twin(monkeypatch):
    monkeypatch.setattr(decontamination, "CHUNK", 50)  # so that it is sorted in several times
    draw = random.Random(3)
    letters = ["胃", "炎", "abc", "12", "的"]

    def text(most):
        return "".join(f"{draw.choice(letters)} " for _ in range(draw.randint(0, most)))

    evaluation = [text(40) for _ in range(60)]
    texts = [text(60) for _ in range(150)] + evaluation[:20]
    texts += [text(20) + one + text(20) for one in evaluation[20:40]]
    index = OverlapIndex(evaluation)
    found = [index.overlaps(one) for one in texts]
    assert found == [slow_overlap(one, evaluation) for one in texts]
    assert 20 < sum(found) < len(texts) - 20  # both cases were seen
    assert index.grams.dtype == np.uint64 and (np.diff(index.grams.astype(float)) >= 0).all()


def test_hashes_are_the_same_in_every_process():
    assert gram_hashes("慢性胃炎 3 days").tolist() == [13621877626530074881]
    assert gram_hashes("胃" * 20).tolist() == [gram_hashes("胃" * 13)[0]] * 8


def test_every_string_of_an_evaluation_file_is_read(tmp_path):
    row = {"id": "q1", "turns": [{"text": "问"}, ["答"]], "n": 3, "none": None}
    files = {
        "a.jsonl": json.dumps(row) + "\n",
        "a.json": json.dumps([row]),
        "lines.json": json.dumps({"x": 1}) + "\n" + json.dumps(row) + "\n",
        "b.json": json.dumps({"Insult": [row]}),
        "c.json": json.dumps({"data": {"q": row}}, indent=1),
        "a.csv": "id,question\nq1,问\n",
        "a.dialog": "id\tq1\nP\t问\t1\n",
    }
    for name, text in files.items():
        path = tmp_path / name
        path.write_text(text, encoding="utf-8")
        assert {"q1", "问"} <= set(read_texts(path)), name
    (tmp_path / "g.txt").write_bytes("慢性胃炎\n".encode("gb18030") * 9)
    assert "慢性胃炎" in "".join(read_texts(tmp_path / "g.txt"))


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", b'{"a": "x"}\n{"a"\n', "a.jsonl:2: invalid JSON"),
        ("a.csv", b"a,b\n1\n", "a.csv:2: 1 fields in a table of 2 columns"),
        ("a.json", b"[1", "a.json:1: not a JSON file"),
    ],
)
def test_an_evaluation_set_with_a_fault_is_refused(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError) as refusal:
        list(read_texts(tmp_path / name))
    assert message in str(refusal.value)
