"""Tokenizers: any text survives the round trip, text never becomes a special id, both forms give the same ids."""

import gzip
import json
import pickle
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.corpora import call_here
from support.dialogues import make_tokenizer
from support.paths import ROOT, SHARED

from megatron_chimed.chat.text import TextStream
from megatron_chimed.errors import InputError
from megatron_chimed.jsonl import expand
from megatron_chimed.text.tokenizer import HuggingFaceTokenizer, SentencePieceTokenizer, load_tokenizer
from megatron_chimed.text.tokenizer_folder import fingerprint_of, has_tokenizer
from megatron_chimed.text.tokenizer_training import train_sentencepiece, train_tokenizer

SENTENCES = [
    "慢性胃炎患者应当规律饮食，避免辛辣刺激的食物。",
    "请问医生，我最近 3 天总是头痛，体温 37.5℃，需要做什么检查？",
    "Take aspirin 100 mg once daily; blood pressure 120/80 mmHg.",
    "高血压患者每天摄入的食盐不应超过 5 克，建议定期复查。",
    "建议您到呼吸内科就诊，做血常规和胸部 CT 检查。\n医生会根据结果调整用药。",
]
HARD_TEXTS = [
    "",
    " ",
    "  前后都有空格  ",
    "多个    空格   之间",
    "制表\t符\n换行\r\n回车\r\n\n\n",
    "\x00\x01\x07\x1b\x7f\x80控制字符\x9f",
    "\ufeff字节\u200b序\u200d标记\u3000全角空格",
    "😀👨‍👩‍👧‍👦🇨🇳 表情",
    "龘靐齉生僻字𠮷𡃁",
    "Ünïcödé naïve Ελλάδα кириллица العربية",
    "0123456789 ３７．５℃ ½ ²",
    "a b  c   d    e",
    "</s><s><pad><unk><0x0A>",
    "行首\n 空格",
]
SPECIAL_STRINGS = ["<s>", "</s>", "<pad>", "<unk>", "<0x00>", "<", "/", "s", ">", " ", "药", "\n"]
# All but surrogates, which are no characters, and U+2581, by which SentencePiece marks spaces.
TEXTS = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\u2581"), max_size=60)


def write_jsonl(path: Path, texts: list[str]) -> Path:
    path.write_text("".join(json.dumps({"text": text}, ensure_ascii=False) + "\n" for text in texts), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    base = tmp_path_factory.mktemp("tokenizer")
    train_tokenizer([str(write_jsonl(base / "in.jsonl", SENTENCES * 3))], 500, base / "trained")
    return base / "trained"


@pytest.fixture(scope="module")
def both(folder) -> dict:
    return {"sentencepiece": load_tokenizer(folder / "tokenizer.model"), "hugging_face": load_tokenizer(folder)}


@pytest.fixture(scope="module", params=["sentencepiece", "hugging_face"])
def tokenizer(request, both):
    return both[request.param]


@pytest.fixture(scope="module")
def unigram(tmp_path_factory) -> Path:
    """A folder with a unigram model alone: its pieces, special ones too, are looked up in any text."""
    import sentencepiece

    path = tmp_path_factory.mktemp("unigram")
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(SENTENCES * 3), model_prefix=str(path / "tokenizer"), vocab_size=120, minloglevel=2
    )
    return path


def test_hard_texts_decode_to_themselves(tokenizer):
    for text in HARD_TEXTS + SENTENCES:
        assert tokenizer.decode(tokenizer.encode(text)) == text


@settings(max_examples=200, deadline=None)
@given(text=TEXTS)
def test_any_text_decodes_to_itself_and_both_forms_agree(both, text):
    ids = both["sentencepiece"].encode(text)
    assert both["hugging_face"].encode(text) == ids
    assert [one.decode(ids) for one in both.values()] == [text, text]


@settings(max_examples=200, deadline=None)
@given(parts=st.lists(st.sampled_from(SPECIAL_STRINGS), max_size=12))
def test_text_never_becomes_a_special_id(both, parts):
    text = "".join(parts)
    for one in both.values():
        ids = one.encode(text)
        assert not {one.bos_id, one.eos_id, one.pad_id} & set(ids)
        assert one.decode(ids) == text


def test_auto_tokenizer_gives_the_same_ids_without_any_option(folder, both):
    from transformers import AutoTokenizer

    auto = AutoTokenizer.from_pretrained(str(folder))
    texts = [text for text in HARD_TEXTS + SENTENCES if "</s>" not in text]
    assert [auto(text).input_ids for text in texts] == [both["sentencepiece"].encode(text) for text in texts]
    assert (auto.bos_token, auto.eos_token, auto.unk_token, auto.pad_token) == ("<s>", "</s>", "<unk>", "<pad>")
    assert len(auto) == both["sentencepiece"].vocab_size


def test_parse_special_turns_strings_into_ids_for_a_hugging_face_folder(both):
    ids = both["hugging_face"].encode("胃炎</s>", parse_special=True)
    assert ids == [*both["sentencepiece"].encode("胃炎"), both["hugging_face"].eos_id]


def test_add_special_adds_what_the_template_adds_and_needs_parse_special(folder, tmp_path):
    from tokenizers import Tokenizer, processors

    copy = shutil.copytree(folder, tmp_path / "with_bos")
    backend = Tokenizer.from_file(str(copy / "tokenizer.json"))
    backend.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    backend.save(str(copy / "tokenizer.json"))
    tokenizer = load_tokenizer(copy)
    plain = tokenizer.encode("胃炎")
    assert tokenizer.bos_id not in plain
    assert tokenizer.encode("胃炎", parse_special=True, add_special=True) == [tokenizer.bos_id, *plain]
    with pytest.raises(ValueError, match="needs parse_special"):
        tokenizer.encode("胃炎", add_special=True)


def test_special_strings_stay_text_even_for_a_unigram_model(unigram):
    tokenizer = load_tokenizer(unigram)
    assert isinstance(tokenizer, HuggingFaceTokenizer)
    assert tokenizer.eos_id in tokenizer.encode("胃炎</s>", parse_special=True)
    ids = tokenizer.encode("胃炎</s>高血压")
    assert tokenizer.eos_id not in ids
    unknown = tokenizer.encode("龘", parse_special=True)
    assert tokenizer.encode("龘") == unknown, "an unknown character must not be spelled out as the string <unk>"


def test_batch_equals_texts_one_by_one_and_ids_are_below_vocab_size(tokenizer):
    texts = HARD_TEXTS + SENTENCES
    rows = [list(map(int, row)) for row in tokenizer.encode_batch(texts)]
    assert rows == [tokenizer.encode(text) for text in texts]
    assert max(map(max, filter(None, rows))) < tokenizer.vocab_size == 500


def test_special_ids_are_distinct_and_leave_no_trace_in_text(tokenizer):
    special = [tokenizer.bos_id, tokenizer.eos_id, tokenizer.pad_id]
    assert len({*special, 0}) == 4
    bos, eos, pad = special
    assert tokenizer.decode([bos, *tokenizer.encode(" 胃炎 "), eos, pad, pad]) == " 胃炎 "


def test_a_model_without_pad_or_bos_says_so(tmp_path):
    import sentencepiece

    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(SENTENCES), model_prefix=str(tmp_path / "m"), vocab_size=120, bos_id=-1, minloglevel=2
    )
    tokenizer = load_tokenizer(tmp_path / "m.model")
    assert (tokenizer.bos_id, tokenizer.pad_id) == (None, None) and tokenizer.eos_id is not None


def test_a_pickled_tokenizer_gives_the_same_ids(tokenizer):
    copy = pickle.loads(pickle.dumps(tokenizer))
    assert copy.encode(SENTENCES[0]) == tokenizer.encode(SENTENCES[0]) and copy.fingerprint == tokenizer.fingerprint


def test_a_fingerprint_is_known_without_loading(folder, tmp_path):
    for path in (folder, folder / "tokenizer.model"):
        assert fingerprint_of(path) == load_tokenizer(path).fingerprint
    assert has_tokenizer(folder) and not has_tokenizer(tmp_path)


def test_fingerprint_follows_the_content_not_the_place(folder, tmp_path):
    copy = shutil.copytree(folder, tmp_path / "copy")
    assert load_tokenizer(copy).fingerprint == load_tokenizer(folder).fingerprint
    changed = json.loads((copy / "tokenizer_config.json").read_text())
    (copy / "tokenizer_config.json").write_text(json.dumps({**changed, "add_bos_token": True}))
    assert load_tokenizer(copy).fingerprint != load_tokenizer(folder).fingerprint


def test_an_unpaired_surrogate_is_named_with_its_place(tokenizer):
    with pytest.raises(InputError, match=r"text 1 of the batch.*U\+D83D at character 2"):
        tokenizer.encode_batch(["好", "头痛\ud83d"])


@pytest.mark.parametrize(
    ("make", "expected"),
    [
        (lambda path: path / "none", "no such file or folder"),
        (lambda path: path / "none.model", "no such file"),
        (lambda path: path, "no tokenizer here"),
        (lambda path: _file(path / "x.model", "not a model"), "not a SentencePiece model"),
        (lambda path: _file(path / "x.txt", "text"), "not a tokenizer"),
        (lambda path: _file(path / "tokenizer.json", "{").parent, "not a Hugging Face tokenizer folder"),
    ],
)
def test_what_is_no_tokenizer_gives_one_line(tmp_path, make, expected):
    with pytest.raises(InputError, match=expected) as caught:
        load_tokenizer(make(tmp_path))
    assert "\n" not in str(caught.value)


def _file(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


def test_training_is_the_same_to_the_byte_in_another_process(tmp_path):
    texts = [f"{sentence}{number}" for number in range(40) for sentence in SENTENCES]
    source = write_jsonl(tmp_path / "in.jsonl", texts)
    for name in ("a", "b"):
        flags = ["--vocab-size", "400", "--max-documents", "120", "--output", str(tmp_path / name)]
        run_tool("--input", str(source), *flags, check=True)
    manifests = [json.loads((tmp_path / name / "manifest.json").read_text()) for name in ("a", "b")]
    assert manifests[0] == manifests[1] and len(manifests[0]["sha256"]) == 5


def run_tool(*flags: str, check: bool = False) -> subprocess.CompletedProcess:
    command = [sys.executable, str(ROOT / "tools/train_tokenizer.py"), *flags]
    return subprocess.run(command, capture_output=True, text=True, check=check, cwd="/")


def test_a_vocabulary_that_does_not_fit_is_refused_with_the_limit_that_works():
    for asked in (270, 5000):
        with pytest.raises(InputError, match="vocab size") as caught:
            train_sentencepiece(SENTENCES, asked)
        limit = int(str(caught.value).split("at least " if asked == 270 else "at most ")[1].split()[0].rstrip(";"))
        assert train_sentencepiece(SENTENCES, limit)


def test_inputs_may_be_globs_text_and_gzip(tmp_path):
    (tmp_path / "a.txt").write_text(SENTENCES[0] + "\n", encoding="utf-8")
    with gzip.open(tmp_path / "b.jsonl.gz", "wt", encoding="utf-8") as file:
        file.write(json.dumps({"text": SENTENCES[1]}) + "\n")
    content = train_tokenizer([str(tmp_path / "*.txt"), str(tmp_path / "b.jsonl.gz")], 320, tmp_path / "out")
    assert content["rows"] == 2
    tokenizer = load_tokenizer(tmp_path / "out/tokenizer.model")
    assert len(tokenizer.encode("胃")) == len(tokenizer.encode("痛")) == 1


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        (b'{"text": 1}', r"bad\.jsonl:2: field 'text' is int"),
        (b'{"other": ""}', r"bad\.jsonl:2: field 'text' is missing"),
        (b"{", r"bad\.jsonl:2: invalid JSON"),
        (b'{"text": "\xff"}', r"bad\.jsonl:2: invalid UTF-8"),
    ],
)
def test_a_bad_line_is_named_and_no_folder_is_left(tmp_path, line, expected):
    (tmp_path / "bad.jsonl").write_bytes(b'{"text": "good"}\n' + line + b"\n")
    with pytest.raises(InputError, match=expected):
        train_tokenizer([str(tmp_path / "bad.jsonl")], 300, tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["bad.jsonl"]


@pytest.mark.parametrize("name", ["a.txt.gz", "a.jsonl.gz"])
def test_a_damaged_gzip_file_is_named_and_no_folder_is_left(tmp_path, name):
    (tmp_path / name).write_bytes(gzip.compress(b'{"text": "good"}\n' * 30)[:-9])
    with pytest.raises(InputError, match=f"{name}: damaged gzip file"):
        train_tokenizer([str(tmp_path / name)], 300, tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_a_pattern_leaves_out_rows_in_quarantine(tmp_path):
    for name in ("a.jsonl", "a.rejected.jsonl"):
        (tmp_path / name).write_text("")
    assert expand([str(tmp_path / "*.jsonl")]) == [str(tmp_path / "a.jsonl")]
    assert expand([str(tmp_path / "a.rejected.jsonl")]) == [str(tmp_path / "a.rejected.jsonl")]


def test_surrogates_and_nul_in_the_input_do_not_stop_training(tmp_path):
    (tmp_path / "in.jsonl").write_text('{"text": "\\ud83d\\u0000 ab ab ab"}\n')
    train_tokenizer([str(tmp_path / "in.jsonl")], 266, tmp_path / "out")
    assert load_tokenizer(tmp_path / "out").vocab_size == 266


def test_a_failure_while_writing_leaves_no_folder(tmp_path, monkeypatch):
    source = write_jsonl(tmp_path / "in.jsonl", SENTENCES)
    monkeypatch.setattr("megatron_chimed.text.tokenizer_training.hugging_face_backend", lambda model: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        train_tokenizer([str(source)], 420, tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["in.jsonl"]


def test_a_finished_folder_is_kept_and_another_is_not_overwritten(tmp_path):
    source = write_jsonl(tmp_path / "in.jsonl", SENTENCES)
    first = train_tokenizer([str(source)], 420, tmp_path / "out")
    before = (tmp_path / "out/tokenizer.model").stat().st_mtime_ns
    assert train_tokenizer([str(source)], 420, tmp_path / "out") == first
    with pytest.raises(InputError, match="exists"):
        train_tokenizer([str(source)], 421, tmp_path / "out")
    assert (tmp_path / "out/tokenizer.model").stat().st_mtime_ns == before


@pytest.mark.parametrize(
    ("content", "flags", "expected"),
    [
        ("", [], "holds no text"),
        ('{"text": "   "}\n', [], "holds no text"),
        ('{"text": "胃炎"}\n', ["--vocab-size", "-1"], "vocab size -1 is too small"),
        ('{"text": "胃炎"}\n', ["--vocab-size", "99999999"], "too large"),
        ('{"text": "胃炎"}\n', ["--input", "nothing*.jsonl"], "no file matches"),
        ('{"text": "胃炎"}\n', ["--character-coverage", "3"], "character coverage 3.0 is out of range"),
        ('{"text": "胃炎"}\n', ["--max-documents", "0"], "give at least 1"),
    ],
)
def test_the_tool_answers_bad_input_with_one_line_and_exit_code_1(tmp_path, content, flags, expected):
    (tmp_path / "in.jsonl").write_text(content, encoding="utf-8")
    base = ["--input", str(tmp_path / "in.jsonl"), "--vocab-size", "300", "--output", str(tmp_path / "out")]
    result = call_here("train_tokenizer.py", *base, *flags)
    last = result.stderr.strip().splitlines()[-1]
    assert result.returncode == 1 and expected in last and "Traceback" not in result.stderr
    assert not (tmp_path / "out").exists()


def test_real_chinese_model_and_texts():
    model, source = SHARED / "chinese_sp.model", SHARED / "cmd_finetune_huatuo.jsonl"
    if not (model.exists() and source.exists()):
        pytest.skip("the shared sample data is not beside the project")
    texts = [json.loads(line)["output"] for line in source.read_text(encoding="utf-8").splitlines()[:1000]]
    tokenizer = load_tokenizer(model)
    assert isinstance(tokenizer, SentencePieceTokenizer) and tokenizer.vocab_size == 20000 and tokenizer.eos_id == 2
    rows = tokenizer.encode_batch(texts)
    assert all(row.max() < 20000 and row.min() > 2 or 0 in row for row in rows)


def test_real_texts_round_trip_through_a_tokenizer_trained_on_them(tmp_path):
    source = SHARED / "cmd_finetune_huatuo.jsonl"
    if not source.exists():
        pytest.skip("the shared sample data is not beside the project")
    train_tokenizer([str(source)], 4000, tmp_path / "out", json_keys=["instruction", "output"])
    texts = [json.loads(line)["output"] for line in source.read_text(encoding="utf-8").splitlines()[:1500]]
    plain, folder = load_tokenizer(tmp_path / "out/tokenizer.model"), load_tokenizer(tmp_path / "out")
    rows = [row.tolist() for row in plain.encode_batch(texts)]
    assert rows == folder.encode_batch(texts)
    assert [plain.decode(row) for row in rows] == texts == [folder.decode(row) for row in rows]
    assert sum(map(len, rows)) < sum(map(len, texts)), "pieces should be longer than characters on average"


@pytest.mark.parametrize("kind", ["sentencepiece", "hugging_face"])
def test_ids_that_are_none_leave_no_trace(tmp_path, kind):
    tokenizer = make_tokenizer(kind, tmp_path)
    ids = tokenizer.encode("头痛三天")
    beyond = [tokenizer.vocab_size, tokenizer.vocab_size + 4096, 10**9]
    assert [tokenizer.id_to_token(number) for number in beyond] == ["", "", ""]
    assert tokenizer.decode(beyond) == "" and tokenizer.decode([ids[0], *beyond, *ids[1:]]) == tokenizer.decode(ids)
    stream = TextStream(tokenizer)
    assert "".join([stream.add(number) for number in [*ids, *beyond]] + [stream.rest()]) == tokenizer.decode(ids)
