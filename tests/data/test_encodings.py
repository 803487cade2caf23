"""Encodings of text files: told right from 80 bytes to megabytes in every form, and never mojibake in silence."""

import codecs
import json
import random

import pytest

from megatron_chimed.data.decontamination import OverlapIndex, read_texts
from megatron_chimed.data.dialogue_texts import mc_blocks
from megatron_chimed.data.encodings import _is_common, detect_encoding, open_utf8
from megatron_chimed.data.sources import Fault, read_rows
from megatron_chimed.errors import InputError

SIMPLIFIED = (
    "我今年三十五岁，最近两个星期总觉得头晕，站起来的时候更明显，有时候还会恶心，请问医生这是什么原因引起的？"
    "根据您的描述，首先要考虑体位性低血压，建议您测量一下卧位和立位的血压，平时起床动作要慢，多喝水，不要长时间站立。"
    "如果血压正常，还应该检查血常规排除贫血，必要时做颈椎的检查。饮食上注意补充蛋白质，少吃辛辣油腻的食物，保持充足的睡眠。"
    "孩子三岁，发烧到三十九度，吃了退烧药以后体温降下来，可是过几个小时又升高，还有咳嗽和流鼻涕。"
)
TRADITIONAL = (
    "我今年三十五歲，最近兩個星期總覺得頭暈，站起來的時候更明顯，有時候還會噁心，請問醫師這是什麼原因引起的？"
    "根據您的描述，首先要考慮姿勢性低血壓，建議您測量一下躺著和站著的血壓，平時起床動作要慢，多喝水，不要長時間站立。"
    "如果血壓正常，還應該檢查血液排除貧血，必要時做頸椎的檢查。飲食上注意補充蛋白質，少吃辛辣油膩的食物，保持充足的睡眠。"
    "孩子三歲，發燒到三十九度，吃了退燒藥以後體溫降下來，可是過幾個小時又升高，還有咳嗽和流鼻涕。"
)
# The name that is found, the codec that writes the file, the text.
ENCODINGS = {
    "utf-8": ("utf-8", "utf-8", SIMPLIFIED),
    "utf-8 with a mark": ("utf-8", "utf-8-sig", SIMPLIFIED),
    "gb18030": ("gb18030", "gb18030", SIMPLIFIED),
    "gbk": ("gb18030", "gbk", SIMPLIFIED),
    "gbk of traditional text": ("gb18030", "gbk", TRADITIONAL),
    "big5": ("big5hkscs", "big5", TRADITIONAL),
    "utf-16": ("utf-16", "utf-16", SIMPLIFIED),
    "utf-16-le without a mark": ("utf-16-le", "utf-16-le", SIMPLIFIED),
    "utf-16-be without a mark": ("utf-16-be", "utf-16-be", TRADITIONAL),
}
HEADER = "department,title,ask,answer\n"


def passages(text, size, count, seed=0):
    """Parts of the text, of `size` characters each; longer ones repeat it."""
    draw = random.Random(seed)
    text *= size // len(text) + 2
    return [text[start : start + size] for start in (draw.randrange(len(text) - size) for _ in range(count))]


@pytest.mark.parametrize("case", ENCODINGS)
@pytest.mark.parametrize("size", [27, 40, 200, 2000, 800_000])
def test_the_encoding_is_told_from_80_bytes_to_megabytes(tmp_path, case, size):
    found, codec, text = ENCODINGS[case]
    for number, passage in enumerate(passages(text, size, 12 if size < 10_000 else 1)):
        path = tmp_path / f"{number}.txt"
        path.write_bytes((passage + "\n").encode(codec))
        assert detect_encoding(path) == found
        with open_utf8(path) as file:
            assert file.read().decode() == passage + "\n"


@pytest.mark.parametrize("case", ENCODINGS)
def test_every_form_of_file_is_read_in_every_encoding(tmp_path, case):
    _, codec, text = ENCODINGS[case]
    question, answer = text[:50], text[51:150]
    (tmp_path / "a.csv").write_bytes(f"{HEADER}骨科,無,{question},{answer}\n".encode(codec))
    assert [row["answer"] for _, row in read_rows(tmp_path / "a.csv")] == [answer]
    rows = [{"ask": question, "answer": answer}] * 2
    lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    for name, content in (("a.jsonl", lines), ("b.json", lines), ("c.json", json.dumps(rows, ensure_ascii=False))):
        (tmp_path / name).write_bytes(content.encode(codec))
        assert [row for _, row in read_rows(tmp_path / name)] == rows, name
    dialogue = f"id\t1\nP\t{question}\t1\nD\t{answer}\t2\n"
    (tmp_path / "a.dialog").write_bytes(f"{dialogue}\n{dialogue}".encode(codec))
    assert [block for _, block in mc_blocks(tmp_path / "a.dialog")] == [dialogue.rstrip("\n")] * 2


@pytest.mark.parametrize("case", ENCODINGS)
@pytest.mark.parametrize("name", ["test.txt", "test.csv", "test.jsonl"])
def test_a_test_set_excludes_what_it_excludes_in_utf8(tmp_path, case, name):
    _, codec, text = ENCODINGS[case]
    row = json.dumps({"question": text}, ensure_ascii=False)
    content = {"test.txt": text, "test.csv": f"id,question\n1,{text}", "test.jsonl": row}[name] + "\n"
    (tmp_path / name).write_bytes(content.encode(codec))
    index = OverlapIndex(read_texts(tmp_path / name))
    assert index.overlaps(text[30:60]) and not index.overlaps("每天早晚各测一次血压并且记录下来交给门诊的医生看")


@pytest.mark.parametrize(
    ("codec", "text", "guess"),
    [
        ("euc_kr", "환자는 두통을 호소합니다. 열도 있습니다. 언제부터 아프셨나요? 어제부터요.\n", "cp949"),
        ("shift_jis", "患者は頭痛を訴えています。熱もあります。いつからですか。昨日からです。\n", "shift_jis"),
        ("latin-1", "Le médecin a prescrit du paracétamol à la fièvre élevée.\n", None),
    ],
)
def test_what_is_not_read_is_refused_in_one_line(tmp_path, codec, text, guess):
    path = tmp_path / "a.txt"
    path.write_bytes(text.encode(codec))
    with pytest.raises(InputError, match="neither UTF-8, UTF-16, GB18030 nor Big5.*convert it to UTF-8") as caught:
        detect_encoding(path)
    assert guess is None or f"looks like {guess}" in str(caught.value)


def test_damage_costs_its_row_and_not_the_file(tmp_path):
    rows = [f"内科,无,{SIMPLIFIED[:50]},{SIMPLIFIED[50:150]}\n".encode("gb18030") for _ in range(300)]
    rows[7] = rows[7].replace("血压".encode("gb18030"), b"\xff")
    (tmp_path / "a.csv").write_bytes(HEADER.encode() + b"".join(rows))
    read = [row for _, row in read_rows(tmp_path / "a.csv")]
    assert len(read) == 300 and [isinstance(row, Fault) for row in read].index(True) == 7
    assert sum(isinstance(row, Fault) for row in read) == 1 and "gb18030" in read[7].reason


def test_a_json_line_that_is_no_utf8_is_a_fault_by_itself(tmp_path):
    good = json.dumps({"ask": SIMPLIFIED[:20]}, ensure_ascii=False).encode()
    (tmp_path / "a.jsonl").write_bytes(good + b"\n" + b'{"ask": "\xff\xfe\xfa"}\n')
    first, second = (row for _, row in read_rows(tmp_path / "a.jsonl"))
    assert first == {"ask": SIMPLIFIED[:20]} and isinstance(second, Fault)


def test_a_file_of_two_encodings_is_refused(tmp_path):
    path = tmp_path / "a.txt"
    path.write_bytes((SIMPLIFIED + "\n").encode("gb18030") + (SIMPLIFIED + "\n").encode())
    with pytest.raises(InputError, match="neither"):
        detect_encoding(path)


def test_mojibake_is_not_taken_for_text():
    def share(text):
        beyond = [character for character in text if not character.isascii()]
        return sum(map(_is_common, beyond)) / len(beyond)

    right = [share(passage) for text in (SIMPLIFIED, TRADITIONAL) for passage in passages(text, 40, 50)]
    wrong = [share(passage.encode("big5").decode("gb18030", "replace")) for passage in passages(TRADITIONAL, 40, 50)]
    wrong += [share(passage.encode().decode("gb18030", "replace")) for passage in passages(SIMPLIFIED, 40, 50)]
    assert min(right) > 0.85 and max(wrong) < 0.6


def test_an_empty_file_is_utf8_and_a_missing_one_is_said(tmp_path):
    (tmp_path / "a.txt").write_bytes(b"")
    assert detect_encoding(tmp_path / "a.txt") == "utf-8"
    (tmp_path / "b.txt").write_bytes(codecs.BOM_UTF8)
    with open_utf8(tmp_path / "b.txt") as file:
        assert file.read() == b""
    with pytest.raises(InputError, match="no such file"):
        detect_encoding(tmp_path / "c.txt")


def test_a_long_run_of_letters_takes_no_time(tmp_path):
    """chardet looks for words by a pattern that takes the square of their length: hours for this one."""
    path = tmp_path / "a.txt"
    path.write_bytes(("头痛怎么办？先休息两天。" * 40).encode("gb18030") + b"a" * 60_000)
    assert detect_encoding(path) == "gb18030"
