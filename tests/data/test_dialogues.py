"""Sources to dialogues: every row is accounted for, duplicates and evaluation texts stay out, outputs are whole."""

import json
import re

import pytest
from support.corpora import call, call_here, write_model
from support.paths import ROOT, SHARED
from support.sft_sources import (
    NAMES,
    check_report,
    expected_turns,
    make_dialogues,
    prepare,
    read_lines,
    write_source,
)

from megatron_chimed.data.clean import clean, redact
from megatron_chimed.data.dialogue_worker import Unanswered, arrange
from megatron_chimed.data.dialogues import format_dialogue_report
from megatron_chimed.data.turns import RawTurn
from megatron_chimed.errors import InputError
from megatron_chimed.text.tokenizer import load_tokenizer
from megatron_chimed.workers import COLUMNS

SOURCES = {
    "toyhom": "toyhom_internal_medicine.csv",
    "cmd": "cmd_finetune_huatuo.jsonl",
    "multi_turn": "multi_turn_liver_cancer.json",
    "sharegpt": "sharegpt_medical_1k.jsonl",
    "mc": "mc_train.dialog",
}


def turns_of(row):
    return [(turn["role"], turn["text"]) for turn in row["turns"]]


def write_pairs(path, pairs):
    rows = ({"instruction": question, "input": "", "output": answer} for question, answer in pairs)
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


@pytest.fixture
def output(tmp_path):
    return tmp_path / "out" / "dialogues.jsonl"


def test_all_sources_together_give_every_dialogue_once(tmp_path, output):
    specs, expected = [], {}
    for seed, reader in enumerate(NAMES):
        dialogues = make_dialogues(12, seed=seed)
        label = reader.replace(".", "-")
        specs.append(f"{label}:{reader.split('.')[0]}={write_source(tmp_path, reader, dialogues)}")
        expected[label] = expected_turns(reader, dialogues)
    content = prepare(specs, output)
    check_report(content, output)
    assert content["rows"] == content["input_rows"] == 12 * len(NAMES) and not content["dropped"]
    for label, dialogues in expected.items():
        assert [turns_of(row) for row in read_lines(output) if row["source"] == label] == dialogues
    report = json.loads(output.with_suffix(".report.json").read_text())
    assert report["sources"] == content["sources"] and list(report["sources"]) == list(expected)


def test_turns_are_merged_cut_and_left_out():
    changed = [
        ("assistant", "您好"), ("user", "胃疼"), ("user", ""), ("user", "两天"), ("assistant", "a"),
        ("assistant", "b"), ("user", "谢谢"),
    ]  # fmt: skip
    turns, changes = arrange([RawTurn(*turn) for turn in changed])
    assert [turn[:2] for turn in turns] == [("user", "胃疼\n两天"), ("assistant", "a\nb")]
    assert changes == {
        "turns merged": 2, "empty turns left out": 1, "leading answers cut": 1, "trailing questions cut": 1,
    }  # fmt: skip
    assert arrange(turns) == (turns, {})
    for bad, reason in [
        ([], "empty dialogue"),
        ([("user", ""), ("assistant", "")], "empty dialogue"),
        ([("system", "s")], "empty dialogue"),
        ([("user", "a"), ("user", "b")], "no doctor's answer"),
        ([("user", "a"), ("assistant", "")], "no doctor's answer"),
        ([("assistant", "a")], "no patient's turn"),
        ([("assistant", "a"), ("user", "b")], "no doctor's answer (the patient has the last word)"),
    ]:
        with pytest.raises(Unanswered) as refusal:
            arrange([RawTurn(*turn) for turn in bad])
        assert str(refusal.value) == reason


def write_messages(path, *dialogues):
    """Rows of messages; a turn is (role, content) or (role, content, other fields)."""
    rows = [[{"role": turn[0], "content": turn[1], **(turn[2:] or ({},))[0]} for turn in turns] for turns in dialogues]
    path.write_text("".join(json.dumps({"messages": row}, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


def test_system_turns_thinking_and_marks_are_in_the_output_and_counted(tmp_path, output):
    model = write_model(tmp_path)
    dialogue = [
        ("system", "你是医生。电话13812345678"), ("user", "胃疼"), ("assistant", "<think>先问病史</think>多久了？"),
        ("user", "两天"), ("assistant", "休息。", {"reasoning_content": "微信号：abc12345，像胃炎。。", "weight": 0}),
    ]  # fmt: skip
    unlearnt = [("user", "头疼"), ("assistant", "休息", {"loss": False})]
    unclosed, tool = [("user", "问"), ("assistant", "<think>先问")], [("user", "问"), ("tool", "{}")]
    path = write_messages(tmp_path / "a.jsonl", dialogue, unlearnt, unclosed, tool)
    content = prepare([f"sharegpt={path}"], output, max_rejected_share=0.5, tokenizer_path=str(model))
    check_report(content, output)
    (row,) = read_lines(output)
    assert row["turns"] == [
        {"role": "system", "text": "你是医生。电话[电话]"},
        {"role": "user", "text": "胃疼"},
        {"role": "assistant", "text": "多久了？", "thinking": "先问病史"},
        {"role": "user", "text": "两天"},
        {"role": "assistant", "text": "休息。", "thinking": "微信号：[微信号]，像胃炎。", "learn": False},
    ]
    found = content["sources"]["sharegpt"]
    assert found["redacted"] == {"mobile": 1, "wechat": 1} and found["malformed"] == 2
    assert found["dropped"] == {"nothing to learn": 1, "unclosed <think>": 1, "tools": 1}
    texts = [turn[name] for turn in row["turns"] for name in ("text", "thinking") if name in turn]
    tokenizer = load_tokenizer(model)
    assert found["characters"] == sum(map(len, texts)) and len(texts) == 7 and found["turns"] == 5
    assert found["tokens"] == sum(len(tokenizer.encode(text)) for text in texts)


def test_the_example_of_the_documentation_becomes_what_it_says(tmp_path, output):
    row, written = re.findall(r"```json\n(.*?)```", (ROOT / "docs/dialogues.md").read_text(encoding="utf-8"), re.S)
    (tmp_path / "a.jsonl").write_text(json.dumps(json.loads(row)), encoding="utf-8")
    prepare([f"talks:sharegpt={tmp_path / 'a.jsonl'}"], output)
    assert read_lines(output) == [json.loads(written)]


def test_a_long_system_turn_makes_no_duplicates_of_other_dialogues(tmp_path, output):
    long = "".join(f"第{n}条：回答之前先问清病史，再给建议。" for n in range(99))
    told = [[("system", long), *turns] for turns in make_dialogues(9)]
    other = [("system", "请用英文回答。"), *told[0][1:]]
    path = write_messages(tmp_path / "a.jsonl", *told, told[1], other)
    for dedup, dropped in [("near", {"exact duplicate": 1, "near duplicate": 1}), ("exact", {"exact duplicate": 1})]:
        assert prepare([f"sharegpt={path}"], output, dedup=dedup)["dropped"] == dropped


@pytest.mark.parametrize("place", ["system", "thinking", "block"])
def test_an_evaluation_text_is_found_in_a_system_turn_and_in_thinking(tmp_path, output, place):
    leaked = "天地玄黄宇宙洪荒日月盈昃辰宿列张"
    (tmp_path / "test.txt").write_text(leaked, encoding="utf-8")
    for text, dropped in ((leaked, {"overlaps evaluation set": 1}), (leaked[:9], {})):
        system = [("system", text)] if place == "system" else []
        field = {"reasoning": text} if place == "thinking" else {}
        answer = f"<think>{text}</think>休息" if place == "block" else "休息"
        talk = [*system, ("user", "胃疼"), ("assistant", answer, field)]
        path = write_messages(tmp_path / "a.jsonl", talk, [("user", "头疼"), ("assistant", "睡觉")])
        content = prepare([f"sharegpt={path}"], output, exclude=[str(tmp_path / "test.txt")])
        assert content["dropped"] == dropped


def test_every_dropped_row_has_its_reason(tmp_path, output):
    pairs = [
        ("胃疼怎么办", "休息两天"),
        ("胃疼怎么办", ""),
        ("", "休息"),
        ("头疼", "谢谢！"),
        ("胃疼怎么办", "休息两天"),
    ]
    path = write_pairs(tmp_path / "a.jsonl", pairs)
    with open(path, "a") as file:
        file.write('{"instruction": "x"}\n{\n\n[1]\n')
    content = prepare([f"cmd={path}"], output, max_rejected_share=0.5)
    check_report(content, output)
    assert content["sources"]["cmd"]["dropped"] == {
        "exact duplicate": 1, "expected a JSON object": 1, "invalid JSON": 1, "missing key": 1,
        "no doctor's answer": 2, "no patient's turn": 1,
    }  # fmt: skip
    assert content["sources"]["cmd"]["malformed"] == 3
    assert [row["line"] for row in read_lines(output.with_suffix(".rejected.jsonl"))] == [2, 3, 4, 6, 7, 9]
    assert [row["id"] for row in read_lines(output)] == ["cmd:a.jsonl:1"]


def test_too_many_malformed_rows_of_one_source_stop_the_run(tmp_path, output):
    good = write_source(tmp_path, "cmd", make_dialogues(300))
    bad = tmp_path / "bad.jsonl"
    bad.write_text('{"conversations": [{"from": "nurse", "value": "x"}]}\n')
    specs = [f"cmd={good}", f"sharegpt={bad}"]
    with pytest.raises(InputError, match=r"1 of 1 rows of the source 'sharegpt' .*bad\.jsonl:1: unknown role: turn 1"):
        prepare(specs, output)
    assert not list(output.parent.iterdir())
    prepare(specs, output, max_rejected_share=1)
    before = output.read_bytes()
    with pytest.raises(InputError, match="above --max-rejected-share"):  # nor are outputs of a laxer run taken
        prepare(specs, output)
    assert output.read_bytes() == before


def test_rows_without_an_answer_are_dropped_but_are_no_fault_of_the_file(tmp_path, output):
    path = write_pairs(tmp_path / "a.jsonl", [("胃疼怎么办", "休息"), *((f"问题{n}", "") for n in range(50))])
    content = prepare([f"cmd={path}"], output, max_rejected_share=0)
    assert content["rows"] == 1 and content["dropped"] == {"no doctor's answer": 50}


def test_duplicates_are_dropped_across_sources_and_the_first_is_kept(tmp_path, output):
    question = "我最近总是胃疼，吃完饭以后更厉害，有时候还反酸，请问需要做什么检查，平时应该注意什么？"
    answer = "建议做胃镜检查，平时注意清淡饮食，按时吃饭，避免辛辣刺激的食物，必要时口服抑酸药。"
    table = write_source(tmp_path, "toyhom", [[("user", question), ("assistant", answer)], *make_dialogues(3)])
    pairs = [
        (question, answer),
        (f" {question}", answer.replace("，", ", ")),
        (question, answer + "多喝水。"),
        ("短", "好"),
    ]
    lines = write_pairs(tmp_path / "a.jsonl", pairs)
    specs = [f"toyhom={table}", f"cmd={lines}"]
    expected = {"near": {"exact duplicate": 2, "near duplicate": 1}, "exact": {"exact duplicate": 2}, "none": {}}
    for dedup, dropped in expected.items():
        content = prepare(specs, output, dedup=dedup)
        check_report(content, output)
        assert content["sources"]["cmd"]["dropped"] == dropped and not content["sources"]["toyhom"]["dropped"]
    turned = prepare(specs[::-1], output)
    assert turned["sources"]["toyhom"]["dropped"] == {"exact duplicate": 1}


def test_texts_are_cleaned_and_redacted_unless_told_otherwise(tmp_path, output):
    pairs = [("胃疼。。。电话１３８１２３４５６７８", "体温３７．５℃。祝您健康！"), ("电话13812345678", "")]
    path = write_pairs(tmp_path / "a.jsonl", pairs)
    content = prepare([f"cmd={path}"], output)
    assert turns_of(read_lines(output)[0]) == [("user", "胃疼。电话[电话]"), ("assistant", "体温37.5℃。")]
    assert content["sources"]["cmd"]["redacted"] == {"mobile": 1}
    assert "13812345678" not in output.with_suffix(".rejected.jsonl").read_text()
    prepare([f"cmd={path}"], output, clean=False)
    assert turns_of(read_lines(output)[0]) == [
        ("user", "胃疼。。。电话[电话]"),
        ("assistant", "体温３７．５℃。祝您健康！"),
    ]
    prepare([f"cmd={path}"], output, clean=False, redact=False)
    assert turns_of(read_lines(output)[0]) == [("user", pairs[0][0]), ("assistant", pairs[0][1])]
    assert "13812345678" in output.with_suffix(".rejected.jsonl").read_text()


@pytest.mark.parametrize("clean_it", [True, False])
@pytest.mark.parametrize("reader", NAMES)
def test_a_row_with_a_bad_byte_is_dropped_not_mended(tmp_path, output, reader, clean_it):
    dialogues = make_dialogues(500)
    path = write_source(tmp_path, reader, dialogues)
    mark = dialogues[200][1][1].encode()
    path.write_bytes(path.read_bytes().replace(mark, mark[:3] + b"\xff" + mark[3:]))
    content = prepare([f"{reader.split('.')[0]}={path}"], output, clean=clean_it, dedup="none")
    check_report(content, output)
    ((reason, number),) = content["dropped"].items()
    assert reason.startswith("invalid") and number == 1 and content["rows"] == 499


def test_no_personal_data_stands_in_a_reason(tmp_path, output):
    path = tmp_path / "a.jsonl"
    path.write_text('{"conversations": [{"from": "13812345678", "value": "x"}]}\n')
    with pytest.raises(InputError) as refusal:
        prepare([f"sharegpt={path}"], output)
    assert "[电话]" in str(refusal.value) and "138" not in str(refusal.value).split("rows")[1]


def test_dialogues_of_an_evaluation_set_stay_out(tmp_path, output):
    dialogues = make_dialogues(60, num_turns=6)
    leaked = "天地玄黄宇宙洪荒日月盈昃辰宿列张"
    dialogues[10][3] = ("assistant", f"您好，{leaked[:13]}")
    path = write_source(tmp_path, "sharegpt", dialogues)
    (tmp_path / "test.jsonl").write_text(json.dumps({"question": f"请问，{leaked}"}), encoding="utf-8")
    (tmp_path / "test.txt").write_text(f"x\ty\n{dialogues[20][0][1]}\n好的，谢谢\n", encoding="utf-8")
    content = prepare([f"sharegpt={path}"], output, exclude=[str(tmp_path / "test.*")], dedup="none")
    check_report(content, output)
    assert content["dropped"] == {"overlaps evaluation set": 2}
    assert [row["line"] for row in read_lines(output.with_suffix(".rejected.jsonl"))] == [11, 21]
    assert leaked[:13] not in output.read_text(encoding="utf-8")
    with pytest.raises(InputError, match="--exclude"):
        prepare([f"sharegpt={path}"], output, exclude=[str(tmp_path / "missing.*")])


def test_a_short_courtesy_of_an_evaluation_dialogue_takes_nothing_along(tmp_path, output):
    dialogues = [[*turns[:2], ("user", "好的，谢谢"), ("assistant", "不客气")] for turns in make_dialogues(9)]
    path = write_source(tmp_path, "mc", dialogues)
    (tmp_path / "test.dialog").write_text("P\t好的，谢谢\t0\nD\t不客气\t0\n", encoding="utf-8")
    assert prepare([f"mc={path}"], output, exclude=[str(tmp_path / "test.dialog")])["rows"] == 9


def test_ids_differ_whatever_the_rows_call_themselves(tmp_path, output):
    for folder in ("a", "b"):
        rows = [{"id": "same", "instruction": f"{folder}{n}怎么办", "output": f"休息{n}"} for n in range(5)]
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "x.jsonl").write_text("\n".join(map(json.dumps, rows)))
    content = prepare([f"cmd={tmp_path}/*/x.jsonl", f"other:cmd={tmp_path}/a/x.jsonl"], output, dedup="none")
    check_report(content, output)
    assert content["rows"] == 15 and read_lines(output)[-1]["id"] == "other:x.jsonl:5"


def test_the_same_command_again_does_nothing_and_a_change_does_it_again(tmp_path, output, capsys):
    path = write_source(tmp_path, "cmd", make_dialogues(20))
    held = tmp_path / "held.txt"
    held.write_text("无关\n")
    settings = {"exclude": [str(held)]}
    first = prepare([f"cmd={path}"], output, **settings)
    stamp = output.stat().st_mtime_ns
    assert prepare([f"cmd={path}"], output, **settings) == first
    assert output.stat().st_mtime_ns == stamp and "up to date" in capsys.readouterr().err
    changes = [
        lambda: settings.update(dedup="exact"),
        lambda: held.write_text("别的\n"),
        lambda: write_source(tmp_path, "cmd", make_dialogues(21)),
        lambda: output.write_text("cut"),
        lambda: output.with_suffix(".report.json").unlink(),
    ]
    for change in changes:
        change()
        stamp = output.stat().st_mtime_ns
        prepare([f"cmd={path}"], output, **settings)
        assert output.stat().st_mtime_ns != stamp
        assert "up to date" not in capsys.readouterr().err


def test_workers_write_the_same_bytes(tmp_path, output):
    path = write_source(tmp_path, "sharegpt", make_dialogues(700) + make_dialogues(50))
    contents = set()
    for workers in (0, 2):
        prepare([f"sharegpt={path}"], output, workers=workers)
        files = sorted(output.parent.iterdir())
        contents.add(tuple((file.name, file.read_bytes()) for file in files))
        for file in files:
            file.unlink()
    assert len(contents) == 1


@pytest.mark.parametrize(
    ("specs", "message"),
    [
        (["cmd"], "expected NAME=PATH"),
        (["nurse={path}"], "there is no reader 'nurse'"),
        (["a b:cmd={path}"], "expected NAME=PATH"),
        (["cmd={path}.missing"], "no such file"),
        (["cmd={path}", "cmd={path}"], "given twice"),
        (["toyhom={path}"], "missing key: 'title'"),
    ],
)
def test_a_wrong_source_is_refused_in_one_line(tmp_path, output, specs, message):
    path = write_source(tmp_path, "cmd", make_dialogues(3))
    with pytest.raises(InputError, match=re.escape(message)) as refusal:
        prepare([spec.format(path=path) for spec in specs], output)
    assert "\n" not in str(refusal.value) and not list(output.parent.glob("*"))


def test_an_output_is_never_an_input_and_never_empty(tmp_path):
    path = write_source(tmp_path, "chimed", make_dialogues(3))
    with pytest.raises(InputError, match="also an input"):
        prepare([f"chimed={path}"], path)
    with pytest.raises(InputError, match=r"ends in \.jsonl"):
        prepare([f"chimed={path}"], tmp_path / "a.json")
    empty = write_pairs(tmp_path / "empty.jsonl", [("问", "")])
    with pytest.raises(InputError, match=r"no dialogue is left of 1 rows \(1 no doctor's answer\)"):
        prepare([f"cmd={empty}"], tmp_path / "out.jsonl")
    assert not list(tmp_path.glob("out*"))


def test_the_command_counts_tokens_prints_a_table_and_gives_one_line_on_bad_input(tmp_path, output):
    model = write_model(tmp_path)
    path = write_source(tmp_path, "mc", make_dialogues(10))
    arguments = ["--source", f"talks:mc={path}", "--output", output, "--tokenizer", model, "--workers", 2]
    done = call("prepare_sft.py", *arguments)
    assert done.returncode == 0, done.stderr
    tokenizer = load_tokenizer(model)
    texts = [text for row in read_lines(output) for _, text in turns_of(row)]
    total = sum(len(tokenizer.encode(text)) for text in texts)
    assert re.search(rf"talks +10 +0 +10 +40 +{sum(map(len, texts)):,} +{total:,}\n", done.stdout), done.stdout
    failed = call_here("prepare_sft.py", "--source", f"mc={tmp_path}", "--output", output)
    assert failed.returncode == 1 and failed.stderr.splitlines() == [
        f"prepare_sft.py: error: --source mc={tmp_path}: not a file; give files or a pattern such as {tmp_path}/*.jsonl"
    ]


def test_the_real_samples_are_read_and_most_rows_survive(output):
    missing = [name for name in SOURCES.values() if not (SHARED / name).is_file()]
    if missing:
        pytest.skip(f"the real samples are not on this machine: {', '.join(missing)}")
    content = prepare([f"{reader}={SHARED / name}" for reader, name in SOURCES.items()], output)
    check_report(content, output)
    for label, one in content["sources"].items():
        unlike = one["rows"] - one["dropped"].get("exact duplicate", 0)  # the sample of mc repeats its dialogues
        assert one["dialogues"] > 0.98 * unlike and not one["malformed"], label
    assert content["sources"]["toyhom"]["rows"] == 5000 and content["sources"]["cmd"]["rows"] == 6000
    for row in read_lines(output):
        for _, text in turns_of(row):
            assert clean(text) == text and not redact(text)[1]
    assert "exact duplicate" in format_dialogue_report(content)
    again = prepare([f"cmd={SHARED / SOURCES['multi_turn']}"], output)
    assert again["sources"]["cmd"]["turns"] == content["sources"]["multi_turn"]["turns"]  # found without being told


def test_the_table_of_sources_fits_in_a_hundred_columns():
    sizes = dict.fromkeys(("rows", "dialogues", "turns", "characters", "tokens"), 123_456_789)
    sources = {name: {**sizes, "dropped": {"exact duplicate": 7}} for name in ("meddialog", "multi_turn")}
    report = format_dialogue_report({"sources": sources, "settings": {"tokenizer": "tokenizer.model"}})
    assert "tokens" in report and max(map(len, report.splitlines())) <= COLUMNS
