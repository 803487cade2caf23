"""The faster library gives the tokenizer's ids, or the tokenizer does all of the work and says so."""

import functools
import io
import json
import pickle
import random

import numpy as np
import pytest
from sentencepiece import SentencePieceTrainer
from support.corpora import files_of, make_texts, write_rows
from tokenizers import Tokenizer as Backend
from tokenizers import decoders, models, normalizers, pre_tokenizers, trainers

from megatron_chimed.corpus.builder import RunOptions, TextOptions, build_corpus
from megatron_chimed.errors import InputError
from megatron_chimed.text import bulk
from megatron_chimed.text.bulk import TokenizersDiffer, guarded, tokenizers_alone
from megatron_chimed.text.probes import hostile_texts
from megatron_chimed.text.sentencepiece_export import write_folder
from megatron_chimed.text.tokenizer import load_tokenizer
from megatron_chimed.text.tokenizer_training import train_sentencepiece

pytest.importorskip("tokie")
TEXTS = [*make_texts(400), *hostile_texts(count=300)]
MODES = [(False, False), (True, False), (True, True)]


@pytest.fixture(autouse=True)
def opened_at_once(monkeypatch):
    monkeypatch.setattr(bulk, "OPEN_AT", 0)


def write_byte_level(folder, size=700, normalizer=None):
    """A byte-level tokenizer as of GPT-2 and Qwen, made on the spot."""
    backend = Backend(models.BPE())
    backend.normalizer = normalizer
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=size, initial_alphabet=alphabet, special_tokens=["<|end|>"])
    backend.train_from_iterator(make_texts(300), trainer)
    folder.mkdir(parents=True)
    backend.save(str(folder / "tokenizer.json"))
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "<|end|>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return folder


@pytest.fixture(scope="module", params=["byte-level", "SentencePiece", "LLaMA's kind"])
def tokenizer(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("bulk")
    if request.param == "byte-level":
        return load_tokenizer(write_byte_level(folder / "hf"))
    (folder / "a.model").write_bytes(train_sentencepiece(make_texts(300), 420))
    if request.param == "SentencePiece":
        return load_tokenizer(folder / "a.model")
    (folder / "hf").mkdir()
    write_folder(folder / "a.model", folder / "hf")
    return load_tokenizer(folder / "hf")


def expected(tokenizer, texts, mode):
    rows = tokenizer.encode_batch(texts, parse_special=mode[0], add_special=mode[1])
    return [list(map(int, row)) for row in rows]


def found(tokenizer, texts, mode):
    ids, lengths = tokenizer.encode_flat(texts, parse_special=mode[0], add_special=mode[1])
    assert ids.dtype == lengths.dtype == np.int32
    return [row.tolist() for row in np.split(ids, np.cumsum(lengths)[:-1])]


@pytest.mark.parametrize("mode", MODES)
def test_the_ids_are_the_tokenizers_own(tokenizer, mode):
    assert found(tokenizer, TEXTS, mode) == expected(tokenizer, TEXTS, mode)
    assert tokenizer._bulk._library is not None, "the library served"


def test_text_that_looks_like_a_special_token_stays_text(tokenizer):
    special = tokenizer.id_to_token(tokenizer.eos_id)
    texts = ["头痛", f"a{special}b", "三次", special, f"{special} {special}", ""]
    rows = found(tokenizer, texts, (False, False))
    assert rows == expected(tokenizer, texts, (False, False))
    assert not any(tokenizer.eos_id in row for row in rows)


def test_another_process_gets_the_same(tokenizer):
    tokenizer.encode_flat(TEXTS)
    other = pickle.loads(pickle.dumps(tokenizer))  # noqa: S301
    assert found(other, TEXTS, MODES[0]) == found(tokenizer, TEXTS, MODES[0]) and other._bulk._library is not None


def test_nothing_and_half_a_character(tokenizer):
    assert [part.tolist() for part in tokenizer.encode_flat([])] == [[], []]
    with pytest.raises(InputError, match="text 1 of the batch holds the unpaired surrogate"):
        tokenizer.encode_flat(["a", "b\ud800"])


def test_a_unigram_tokenizer_does_its_work_alone(tmp_path):
    model = io.BytesIO()
    options = {"vocab_size": 300, "model_type": "unigram", "hard_vocab_limit": False, "minloglevel": 2}
    SentencePieceTrainer.train(sentence_iterator=iter(make_texts(300)), model_writer=model, **options)
    (tmp_path / "a.model").write_bytes(model.getvalue())
    (tmp_path / "hf").mkdir()
    write_folder(tmp_path / "a.model", tmp_path / "hf")
    for path in (tmp_path / "a.model", tmp_path / "hf"):
        tokenizer = load_tokenizer(path)
        assert found(tokenizer, TEXTS, MODES[0]) == expected(tokenizer, TEXTS, MODES[0])
        assert tokenizer._bulk._library is None


def test_few_texts_open_no_library(tmp_path, monkeypatch):
    monkeypatch.setattr(bulk, "OPEN_AT", 1000)
    tokenizer = load_tokenizer(write_byte_level(tmp_path / "hf"))
    tokenizer.encode_flat(["头痛"])
    assert not tokenizer._bulk._is_open
    tokenizer.encode_flat(["头痛" * 499])
    assert tokenizer._bulk._library is not None


def plant(tokenizer, change):
    """Change the tokenizer.json that the library alone reads."""
    content = json.loads(type(tokenizer).to_json(tokenizer))
    change(content["model"])
    tokenizer.to_json = functools.partial(json.dumps, content)
    return tokenizer


def without_late_merges(model):
    model["merges"] = model["merges"][:-60]


def test_a_planted_difference_is_found_before_anything_is_encoded(tmp_path):
    tokenizer = plant(load_tokenizer(write_byte_level(tmp_path / "hf")), without_late_merges)
    with pytest.raises(TokenizersDiffer):
        tokenizer.encode_flat(["a"])
    with tokenizers_alone():
        assert found(tokenizer, TEXTS, MODES[0]) == expected(tokenizer, TEXTS, MODES[0])
        assert found(pickle.loads(pickle.dumps(tokenizer)), ["a"], MODES[0]) == expected(tokenizer, ["a"], MODES[0])  # noqa: S301


def test_a_difference_that_only_real_text_shows_is_found_in_a_sample(tmp_path, monkeypatch):
    monkeypatch.setattr(bulk, "hostile_texts", lambda pieces: ["a"])
    tokenizer = plant(load_tokenizer(write_byte_level(tmp_path / "hf")), without_late_merges)
    with pytest.raises(TokenizersDiffer):
        tokenizer.encode_flat(TEXTS)


def test_what_tokenizers_normalise_and_the_library_does_not_is_a_difference_or_equal(tmp_path):
    """Whatever the library makes of a setting, the ids are the tokenizer's."""
    for number, normalizer in enumerate((normalizers.NFD(), normalizers.Lowercase(), normalizers.Strip())):
        tokenizer = load_tokenizer(write_byte_level(tmp_path / f"hf{number}", normalizer=normalizer))
        rows = guarded(lambda difference, tokenizer=tokenizer: found(tokenizer, TEXTS, MODES[0]))
        assert rows == expected(tokenizer, TEXTS, MODES[0])


@pytest.mark.parametrize("workers", [0, 2])
def test_a_corpus_is_made_anew_by_the_tokenizer_and_its_manifest_says_so(tmp_path, monkeypatch, capsys, workers):
    monkeypatch.setattr(bulk, "hostile_texts", lambda pieces: ["a"])
    draw = random.Random(3)
    rows = [{"text": "x" * draw.randrange(1, 9)} for _ in range(400)] + [{"text": text} for text in make_texts(300)]
    source, folder = write_rows(tmp_path / "in.jsonl", rows), write_byte_level(tmp_path / "hf")

    def corpus(name, tokenizer):
        run = RunOptions(workers=workers, batch_bytes=2000, progress=False)
        return build_corpus([str(source)], tmp_path / name, tokenizer, TextOptions(), run)

    planted = corpus("planted", plant(load_tokenizer(folder), without_late_merges))
    assert capsys.readouterr().err.count("warning: tokie gives other ids than the tokenizer for") == 1
    plain = corpus("plain", load_tokenizer(folder))
    assert "warning" not in capsys.readouterr().err
    with tokenizers_alone():
        alone = corpus("alone", load_tokenizer(folder))
    assert planted["tokenizer"].pop("alone_because_of") in {row["text"][:60] for row in rows}
    assert planted["tokenizer"] == plain["tokenizer"] == alone["tokenizer"]
    files = [files_of(tmp_path / name, ".bin", ".idx") for name in ("planted", "plain", "alone")]
    assert files[0] == files[1] == files[2] and all(files[0].values())
