"""Sources to ranked groups: every row is accounted for, no question is in two parts, hostile rows cost themselves."""

import json
import random
import re

import pytest
from support.corpora import call
from support.mutations import BYTE_KINDS, THOROUGH, mutate_bytes
from support.paths import SHARED
from support.reward_sources import (
    FORMS,
    check_report,
    make_groups,
    prepare,
    read_groups,
    row_of,
    write_groups,
    write_rows,
)

from megatron_chimed.data.clean import clean, redact
from megatron_chimed.data.preprocess import Unusable
from megatron_chimed.data.ranking_readers import READERS
from megatron_chimed.data.ranking_worker import settle_answers
from megatron_chimed.data.rankings import format_ranking_report
from megatron_chimed.data.splits import PARTS, assign_parts, parse_split
from megatron_chimed.errors import InputError, one_line
from megatron_chimed.records import Turn
from megatron_chimed.text.normalise import normalise


@pytest.fixture
def output(tmp_path):
    return tmp_path / "out" / "ranked.jsonl"


def parts_of(output):
    return {part: output.with_suffix(f".{part}.jsonl") for part in PARTS}


def questions_of(path):
    return [group.turns[-1].text for group in read_groups(path)]


def check(content, output):
    written = list(parts_of(output).values()) if "parts" in content else [output]
    check_report(content, written, output.with_suffix(".rejected.jsonl"))


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("named", [True, False])
def test_every_form_gives_the_groups_that_were_written_named_or_found_by_its_fields(tmp_path, output, form, named):
    groups = make_groups(20)
    path = write_groups(tmp_path / "a.jsonl", form, groups)
    reader = FORMS[form]
    content = prepare([f"mine:{reader}={path}" if named else f"mine={path}"], output)
    check(content, output)
    pairs = reader != "ranked"
    for number, (found, (question, answers)) in enumerate(zip(read_groups(output), groups, strict=True), start=1):
        assert (found.id, found.source) == (f"mine:a.jsonl:{number}", "mine")
        assert [(turn.role, turn.text) for turn in found.turns] == [("user", question)]
        assert found.responses == ((answers[0], answers[-1]) if pairs else tuple(answers))
        assert found.preference_ranks == ((0, 1) if pairs else (0, 1, 2, 3))


def test_an_output_is_an_input_that_gives_itself(tmp_path, output):
    path = write_groups(tmp_path / "a.jsonl", "ranked", make_groups(20))
    prepare([f"x={path}"], output)
    prepare([f"y={output}"], tmp_path / "again.jsonl")
    assert [group.responses for group in read_groups(output)] == [
        group.responses for group in read_groups(tmp_path / "again.jsonl")
    ]


def test_the_real_forms_of_an_answer_are_read():
    turns = [{"from": "human", "value": "问"}]
    for chosen in ("好", {"from": "gpt", "value": "好"}, {"role": "assistant", "content": "好"}, [{"value": "好"}]):
        row = {"conversations": turns, "chosen": chosen, "rejected": "坏"}
        assert READERS["preference"].group(row) == ([("user", "问")], ["好", "坏"], [0, 1])
    row = {"messages": [{"role": "user", "content": "问"}], "chosen": "好", "rejected": None}
    assert READERS["preference"].group(row) == ([("user", "问")], ["好", ""], [0, 1])


@pytest.mark.parametrize(
    ("reader", "row", "reason"),
    [
        ("cmd", {"question": "问", "response_chosen": "好"}, "missing key: 'response_rejected'"),
        ("cmd", {"question": "问", "response_chosen": 5, "response_rejected": "坏"}, "not a string"),
        ("preference", {"conversations": [], "chosen": ["好", "更好"], "rejected": "坏"}, "not one answer"),
        ("preference", {"conversations": [], "chosen": {}, "rejected": "坏"}, "missing key: 'content'"),
        ("preference", {"chosen": "好", "rejected": "坏"}, "missing key: 'conversations'"),
        ("preference", {"conversations": [{"from": "nurse", "value": "x"}], "chosen": "好"}, "unknown role"),
        ("ranked", {"question": "问", "responses": ["好", "坏"]}, "missing key: 'ranks'"),
        ("ranked", {"question": "问", "responses": ["好", "坏"], "ranks": [0]}, "ranks that do not fit: 1 ranks for 2"),
        ("ranked", {"question": "问", "responses": ["好"], "ranks": [0]}, "too few responses"),
        ("ranked", {"question": "问", "responses": "好坏", "ranks": [0, 1]}, "not a list"),
        ("ranked", {"question": "问", "responses": ["好", 5], "ranks": [0, 1]}, "not a string"),
        ("ranked", {"question": "问", "responses": ["好", "坏"], "ranks": [0, True]}, "not a rank: rank 1 is True"),
        ("ranked", {"question": "问", "responses": ["好", "坏"], "ranks": [0, 1.0]}, "not a rank"),
        ("ranked", {"question": "问", "responses": ["好", "坏"], "ranks": [0, -2]}, "not a rank"),
        ("ranked", {"question": "问", "responses": ["好", None], "ranks": [0, 1]}, "null and -1 do not go together"),
        ("ranked", {"question": "问", "responses": ["好", "坏"], "ranks": [0, -1]}, "null and -1 do not go together"),
        ("ranked", {"turns": [{"role": "assistant", "text": "x"}], "responses": [], "ranks": []}, "turn 0 is the"),
    ],
)  # fmt: skip
def test_a_row_of_another_form_is_malformed_and_located(tmp_path, output, reader, row, reason):
    rows = [row_of("record" if "turns" in row else reader, *group) for group in make_groups(5)]
    path = write_rows(tmp_path / "a.jsonl", [*rows, row])
    with pytest.raises(InputError, match=re.escape(f"a.jsonl:6: {reason}")):
        prepare([f"x:{reader}={path}"], output)
    assert not list(output.parent.glob("*"))
    content = prepare([f"x:{reader}={path}"], output, max_rejected_share=0.5)
    check(content, output)
    assert content["rows"] == 5 and content["sources"]["x"]["malformed"] == 1


def test_what_cannot_be_compared_is_dropped_with_its_reason(tmp_path, output):
    answered = [{"role": "user", "text": "问"}, {"role": "assistant", "text": "答"}]
    rows = [
        {"question": "一问", "responses": ["好", "坏"], "ranks": [0, 1]},
        {"question": "二问", "responses": ["好", "好"], "ranks": [0, 1]},
        {"question": "三问", "responses": ["好。。", "好。"], "ranks": [0, 1]},  # equal once they are clean
        {"question": "四问", "responses": ["好", "谢谢！"], "ranks": [0, 1]},  # empty once it is clean
        {"question": "五问", "responses": ["好", None, ""], "ranks": [0, -1, 2]},
        {"question": "六问", "responses": ["好", "也好"], "ranks": [1, 1]},
        {"question": " ", "responses": ["好", "坏"], "ranks": [0, 1]},
        {"question": "八问", "responses": ["好", "好", "坏", "中", ""], "ranks": [0, 2, 3, 3, 1]},
        {"turns": answered, "responses": ["好", "坏"], "ranks": [0, 1]},
    ]  # fmt: skip
    content = prepare([f"ranked={write_rows(tmp_path / 'a.jsonl', rows)}"], output, max_rejected_share=0)
    check(content, output)
    assert content["dropped"] == {
        "all answers tied": 1,
        "answers are equal": 2,
        "less than two answers": 2,
        "no question": 2,
    }
    assert [(group.responses, group.preference_ranks) for group in read_groups(output)] == [
        (("好", "坏"), (0, 1)),
        (("好", None, "坏", "中", None), (0, -1, 3, 3, -1)),
    ]
    assert content["sources"]["ranked"]["changes"] == {"empty answers": 1, "equal answers": 1}


def test_a_system_turn_stays_and_thinking_is_no_part_of_what_is_compared(tmp_path, output):
    asked = [{"role": "user", "content": "一"}, {"role": "assistant", "content": "<think>x</think>二"}]
    asked += [{"role": "user", "content": "三"}]
    rows = [
        {"system": "问：13812345678", "messages": asked, "chosen": {"content": "好", "reasoning": "a"},
         "rejected": "<think>b</think>坏"},
        {"messages": asked, "chosen": "<think>a</think>好", "rejected": "<think>b</think>好"},
        {"messages": [*asked[:2], {"role": "system", "content": "t"}, asked[2]], "chosen": "好", "rejected": "坏"},
        {"messages": asked, "chosen": "<think>好", "rejected": "坏"},
        {"question": "四", "system": "s", "responses": ["好", "坏"], "ranks": [0, 1]},
        {"question": "五", "system": "s", "response_chosen": "好", "response_rejected": "坏"},
    ]  # fmt: skip
    parts = {"x:preference": rows[:4], "ranked": rows[4:5], "cmd": rows[5:]}
    specs = [f"{name}={write_rows(tmp_path / f'{name}.jsonl', part)}" for name, part in parts.items()]
    content = prepare(specs, output, max_rejected_share=0.5)
    check(content, output)
    groups = read_groups(output)
    turns = (Turn("system", "问：[电话]"), Turn("user", "一"), Turn("assistant", "二"), Turn("user", "三"))
    assert groups[0].turns == turns and groups[0].responses == ("好", "坏")
    assert [group.turns for group in groups[1:]] == [(Turn("system", "s"), Turn("user", text)) for text in "四五"]
    assert content["dropped"] == {"answers are equal": 1, "a system turn behind an answer": 1, "unclosed <think>": 1}
    found = content["sources"]["x"]
    assert found["changes"] == {"thoughts of answers left out": 2, "thoughts of the history left out": 1}
    assert found["malformed"] == 1 and found["redacted"] == {"mobile": 1}


def test_a_question_under_two_system_turns_is_two_groups_in_one_part(tmp_path, output):
    rows = [row_of("cmd", *group) | {"system": told} for group in make_groups(30) for told in ("甲", "乙")]
    content = prepare([f"cmd={write_rows(tmp_path / 'a.jsonl', rows)}"], output, dedup="exact", split="10,10,10")
    check(content, output)
    assert content["parts"] == {"train": 20, "valid": 20, "test": 20}
    assert all(len(set(questions_of(path))) == 10 for path in parts_of(output).values())


def test_of_equal_answers_the_best_stays_wherever_it_stands():
    assert settle_answers(["Ａ", "c", "a"], [2, 1, 0])[:2] == ([None, "c", "a"], [-1, 1, 0])
    with pytest.raises(Unusable, match="answers are equal"):
        settle_answers(["a", "A "], [1, 0])


def test_a_question_is_kept_once_and_with_its_first_answers(tmp_path, output):
    question = "我最近总是胃疼，吃完饭以后更厉害，有时候还反酸，请问需要做什么检查，平时应该注意什么？"
    pair = ["做胃镜", "不用管"]
    first = write_rows(tmp_path / "a.jsonl", [row_of("cmd", question, pair)])
    same = [
        row_of("ranked", text, ["喝水", "睡觉"]) for text in (question, f" {question}", question.replace("，", ","))
    ]
    alike = row_of("ranked", f"{question}急！", pair)
    unlike = row_of(
        "ranked", f"{question}急急！", ["建议做一次胃镜，看有没有溃疡和幽门螺杆菌", "忍一忍就好了，没有必要看医生"]
    )
    second = write_rows(tmp_path / "b.jsonl", [*same, alike, unlike])
    specs = [f"cmd={first}", f"ranked={second}"]
    expected = {"near": {"exact duplicate": 3, "near duplicate": 1}, "exact": {"exact duplicate": 3}, "none": {}}
    for dedup, dropped in expected.items():
        content = prepare(specs, output, dedup=dedup)
        check(content, output)
        assert content["dropped"] == dropped and read_groups(output)[0].responses == ("做胃镜", "不用管")
    assert prepare(specs[::-1], output, dedup="exact")["sources"]["cmd"]["dropped"] == {"exact duplicate": 1}
    assert read_groups(output)[0].responses == ("喝水", "睡觉")


def test_questions_and_answers_are_cleaned_and_redacted_unless_told_otherwise(tmp_path, output):
    row = row_of("cmd", "胃疼。。。电话１３８１２３４５６７８", ["体温３７．５℃。祝您健康！", "加微信13812345678"])
    path = write_rows(tmp_path / "a.jsonl", [row, row_of("cmd", "13812345678", ["", ""])])
    content = prepare([f"cmd={path}"], output)
    (group,) = read_groups(output)
    assert group.turns[0].text == "胃疼。电话[电话]" and group.responses[0] == "体温37.5℃。"
    assert sum(content["sources"]["cmd"]["redacted"].values()) == 2
    assert not any("13812345678" in file.read_text() for file in output.parent.iterdir())
    prepare([f"cmd={path}"], output, clean=False, redact=False)
    assert read_groups(output)[0].responses == ("体温３７．５℃。祝您健康！", "加微信13812345678")


# Splits.


@pytest.mark.parametrize("dedup", ["none", "exact"])
def test_no_question_is_in_two_parts_and_none_is_lost(tmp_path, output, dedup):
    groups = make_groups(200)
    doubled = [(f" {question}".replace("，", ","), answers[::-1]) for question, answers in groups[:50]]
    content = prepare(
        [f"x={write_groups(tmp_path / 'a.jsonl', 'ranked', groups + doubled)}"],
        output,
        dedup=dedup,
        split="150,30,20",
    )
    check(content, output)
    found = {part: [normalise(text) for text in questions_of(path)] for part, path in parts_of(output).items()}
    assert [len(set(texts)) for texts in found.values()] == [150, 30, 20]
    assert set.union(*map(set, found.values())) == {normalise(question) for question, _ in groups}
    assert sum(map(len, found.values())) == (250 if dedup == "none" else 200)
    assert content["parts"] == {part: len(texts) for part, texts in found.items()} and not output.exists()


def test_the_split_depends_on_questions_and_seed_alone(tmp_path, output):
    groups = make_groups(100)

    def split(groups, seed=1, text="0.8,0.1,0.1"):
        prepare([f"x={write_groups(tmp_path / 'a.jsonl', 'ranked', groups)}"], output, split=text, seed=seed)
        return {part: set(questions_of(path)) for part, path in parts_of(output).items()}

    first = split(groups)
    assert [len(part) for part in first.values()] == [80, 10, 10]
    assert split(random.Random(5).sample(groups, 100)) == first
    assert split([(question, answers[::-1]) for question, answers in groups]) == first
    assert split(groups, text="80,10,10") == first
    assert split(groups, seed=2) != first


def test_counts_that_ask_for_too_much_are_refused_and_what_they_leave_over_is_counted(tmp_path, output):
    path = write_groups(tmp_path / "a.jsonl", "cmd", make_groups(40))
    with pytest.raises(InputError, match=r"--split 38,2,1 asks for 41 questions, 40 are left"):
        prepare([f"cmd={path}"], output, split="38,2,1")
    assert not list(output.parent.glob("*"))
    content = prepare([f"cmd={path}"], output, split="10,2,0")
    check(content, output)
    assert content["rows"] == 12 and content["dropped"] == {"left over by the split": 28}
    assert parts_of(output)["test"].read_bytes() == b""


@pytest.mark.parametrize(
    "text",
    ["", "1", "1,2", "a,b,c", "1,2,3,4", "0,1,1", "-1,2,3", "0.5,0.5,0.5", "0.5,0.5", "nan.,0,1", "1/0.,1,1"],
)  # fmt: skip
def test_a_split_of_another_form_is_refused_in_one_line(text):
    with pytest.raises(InputError, match="--split.*expected three counts") as error:
        parse_split(text)
    assert "\n" not in str(error.value)


def test_shares_are_cut_to_whole_questions_that_sum_to_all():
    for total in (40, 41, 97, 4000):
        questions = [b"%d" % number for number in range(total)]
        parts = list(assign_parts(questions, parse_split("0.95,0.025,0.025"), 0).values())
        assert len(parts) == total
        for part, share in zip(PARTS, (0.95, 0.025, 0.025), strict=True):
            assert abs(parts.count(part) - share * total) < 1
    with pytest.raises(InputError, match=r"a share of 0\.025 of 10 questions is none"):
        assign_parts(questions[:10], parse_split("0.95,0.025,0.025"), 0)


def test_files_of_an_earlier_split_do_not_stay(tmp_path, output):
    path = write_groups(tmp_path / "a.jsonl", "cmd", make_groups(40))
    names = [".manifest.json", ".rejected.jsonl", ".report.json"]
    for split, expected in (("20,10,10", [f".{part}.jsonl" for part in PARTS]), (None, [".jsonl"]), ("9,9,9", None)):
        prepare([f"cmd={path}"], output, split=split)
        expected = expected or [f".{part}.jsonl" for part in PARTS]
        assert sorted(file.name for file in output.parent.iterdir()) == sorted(f"ranked{s}" for s in names + expected)


# The step as a whole.


def test_the_same_command_again_does_nothing_and_a_change_does_it_again(tmp_path, output, capsys):
    path, settings = write_groups(tmp_path / "a.jsonl", "cmd", make_groups(20)), {"split": "10,5,5"}
    first = prepare([f"cmd={path}"], output, **settings)
    train = parts_of(output)["train"]
    stamp = train.stat().st_mtime_ns
    assert prepare([f"cmd={path}"], output, **settings) == first
    assert train.stat().st_mtime_ns == stamp and "up to date" in capsys.readouterr().err
    changes = [
        lambda: settings.update(seed=5),
        lambda: settings.update(dedup="exact"),
        lambda: write_groups(path, "cmd", make_groups(21)),
        lambda: train.write_text("cut"),
        lambda: parts_of(output)["valid"].unlink(),
    ]
    for change in changes:
        change()
        stamp = output.with_suffix(".manifest.json").stat().st_mtime_ns
        prepare([f"cmd={path}"], output, **settings)
        assert output.with_suffix(".manifest.json").stat().st_mtime_ns != stamp
        assert "up to date" not in capsys.readouterr().err


@pytest.mark.parametrize(
    ("specs", "message"),
    [
        (["cmd"], "expected NAME=PATH"),
        (["x:nurse={path}"], "there is no reader 'nurse'"),
        (["x={path}.missing"], "no such file"),
        (["cmd={path}", "cmd={path}"], "given twice"),
        (["preference={path}"], "missing key: 'conversations'"),
        (["mine={other}"], "other.jsonl:2: no reader knows the fields title, text; name one, LABEL:READER=PATH"),
        (["mine={empty}"], "empty.jsonl: holds no row"),
    ],
)
def test_a_wrong_source_is_refused_in_one_line(tmp_path, output, specs, message):
    path = write_groups(tmp_path / "a.jsonl", "cmd", make_groups(3))
    other, empty = tmp_path / "other.jsonl", tmp_path / "empty.jsonl"
    other.write_text('{\n{"title": "x", "text": "y"}\n')
    empty.write_text("\n")
    with pytest.raises(InputError, match=re.escape(message)) as refusal:
        prepare([spec.format(path=path, other=other, empty=empty) for spec in specs], output)
    assert "\n" not in str(refusal.value) and not list(output.parent.glob("*"))


def test_a_part_is_never_an_input(tmp_path, output):
    path = write_groups(tmp_path / "a.jsonl", "cmd", make_groups(30))
    prepare([f"cmd={path}"], output, split="10,10,10")
    before = parts_of(output)["train"].read_bytes()
    with pytest.raises(InputError, match="also an input"):
        prepare([f"ranked={parts_of(output)['train']}"], output, split="5,2,2")
    assert parts_of(output)["train"].read_bytes() == before


VALUES = [None, True, 0, -1, 1.5, 10**300, "", " ", "\0", "a" * 9000, [], {}, [[]], [None], {"value": "a"}, "\ud800"]
VALUES += [
    [0, 0, 0, 0],
    [0, 1],
    [-1, -1, -1, -1],
    [3, 2, 1, 0],
    ["好", None],
    [""] * 4,
    "以上是我对“胃炎”这个问题的建议，谢谢！",
]
FIELDS = [
    "question",
    "response_chosen",
    "response_rejected",
    "conversations",
    "chosen",
    "rejected",
    "responses",
    "ranks",
]
FIELDS += ["turns", "from", "value", "role", "text", "content", "prompt", "instruction", "messages", "history"]
FIELDS += ["rejected_response"]
TOKENS = [b"\0", b"\xff", b"\r\n", b"\n", b'"', b"\\", b",", b":", b"{", b"}", b"[", b"]", b"null", b"NaN", b"1e999"]
TOKENS += [b"\\ud800", b"[" * 3000, b"9" * 5000, b"-1", b"\xed\xa0\x80", "胃炎".encode("utf-16")]


def mutate(draw, content):
    """One of the ways in which a file goes wrong."""
    kind = draw.choice([*BYTE_KINDS, "field", "field", "field"])
    if kind in BYTE_KINDS:
        return mutate_bytes(draw, kind, content, TOKENS)
    place, key = draw.randrange(len(content) + 1), f'"{draw.choice(FIELDS)}": '.encode()
    found = content.find(key, place) if content.find(key, place) >= 0 else content.find(key)
    value = json.dumps(draw.choice(VALUES)).encode()
    return content if found < 0 else content[: found + len(key)] + value + b', "x": ' + content[found + len(key) :]


@pytest.mark.parametrize("form", FORMS)
def test_mutants_end_in_a_full_account_or_one_line(tmp_path, form):
    draw = random.Random(f"hostile {form}")
    contents = [write_groups(tmp_path / f"{n}.jsonl", form, make_groups(n)).read_bytes() for n in (2, 6, 12)]
    outcomes = dict.fromkeys(("whole", "with rejects", "refused"), 0)
    num_mutants = 1000 if THOROUGH else 40
    for number in range(num_mutants):
        content = draw.choice(contents)
        for _ in range(draw.choice([1, 1, 2, 3])):
            content = mutate(draw, content) or b"x"
        folder = tmp_path / f"run{number}"
        folder.mkdir()
        path, output = folder / "a.jsonl", folder / "out.jsonl"
        path.write_bytes(content)
        share, split = draw.choice([0, 0.3, 1]), draw.choice([None, None, "2,1,1", "0.5,0.25,0.25"])
        options = {"dedup": draw.choice(["exact", "none"]), "clean": number % 3 > 0, "redact": number % 7 > 0}
        spec = f"mine={path}" if number % 2 else f"{FORMS[form]}={path}"
        try:
            found = prepare([spec], output, max_rejected_share=share, split=split, **options)
        except InputError as error:
            message = one_line(error)
            assert len(message) < 1000 and message == str(error), message
            assert [file.name for file in folder.iterdir()] == [path.name], message
            outcomes["refused"] += 1
            continue
        check(found, output)
        assert all(row["malformed"] <= share * row["rows"] for row in found["sources"].values())
        outcomes["with rejects" if output.with_suffix(".rejected.jsonl").stat().st_size else "whole"] += 1
    assert min(outcomes.values()) > num_mutants // 25, outcomes  # all three cases were seen


def test_the_command_prints_its_account_and_gives_one_line_on_bad_input(tmp_path, output):
    path = write_groups(tmp_path / "a.jsonl", "cmd", make_groups(40))
    arguments = ["--source", f"cmd={path}", "--output", output, "--workers", 2]
    done = call("prepare_rewards.py", *arguments, "--split", "30,5,5")
    assert done.returncode == 0, done.stderr
    assert re.search(r"cmd +40 +0 +40 +80 ", done.stdout) and "train       30 groups" in done.stdout
    failed = call("prepare_rewards.py", *arguments, "--split", "30,5,6")
    assert failed.returncode == 1 and "asks for 41 questions, 40 are left" in failed.stderr
    assert "Traceback" not in failed.stderr


def test_the_real_sample_is_read_whole(output):
    sample = SHARED / "preference_zh.jsonl"
    if not sample.is_file():
        pytest.skip("the real sample preference_zh.jsonl is not on this machine")
    content = prepare([f"sample={sample}"], output)
    check(content, output)
    assert content["input_rows"] == 300 and content["rows"] > 290 and not content["sources"]["sample"]["malformed"]
    for group in read_groups(output):
        for text in (*(turn.text for turn in group.turns), *group.responses):
            assert clean(text) == text and not redact(text)[1]
    assert "sample" in format_ranking_report(content)
