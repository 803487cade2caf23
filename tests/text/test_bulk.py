"""The faster library gives the tokenizer's ids, or the tokenizer does all of the work and says so."""

import contextlib
import functools
import io
import json
import multiprocessing
import pickle
import random
from concurrent.futures import ProcessPoolExecutor

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
pytest.importorskip("splintr")
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


def served(tokenizer):
    """Whether a faster library has served in this process."""
    return any(tokenizer._bulk._serving.values())


@pytest.mark.parametrize("library", [None, *bulk.LIBRARIES])
@pytest.mark.parametrize("mode", MODES)
def test_the_ids_are_the_tokenizers_own(tokenizer, mode, library, monkeypatch):
    tokenizer = pickle.loads(pickle.dumps(tokenizer))  # noqa: S301, one that has chosen none
    monkeypatch.setattr(bulk, "LIBRARIES", (library,) if library else bulk.LIBRARIES)
    assert found(tokenizer, TEXTS, mode) == expected(tokenizer, TEXTS, mode)
    assert served(tokenizer), "the library served"


def test_text_that_looks_like_a_special_token_stays_text(tokenizer):
    special = tokenizer.id_to_token(tokenizer.eos_id)
    texts = ["头痛", f"a{special}b", "三次", special, f"{special} {special}", ""]
    rows = found(tokenizer, texts, (False, False))
    assert rows == expected(tokenizer, texts, (False, False))
    assert not any(tokenizer.eos_id in row for row in rows)


def test_another_process_gets_the_same(tokenizer):
    tokenizer.encode_flat(TEXTS)
    other = pickle.loads(pickle.dumps(tokenizer))  # noqa: S301
    assert found(other, TEXTS, MODES[0]) == found(tokenizer, TEXTS, MODES[0]) and served(other)


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
        assert not served(tokenizer)


def test_few_texts_open_no_library(tmp_path, monkeypatch):
    monkeypatch.setattr(bulk, "OPEN_AT", 1000)
    tokenizer = load_tokenizer(write_byte_level(tmp_path / "hf"))
    tokenizer.encode_flat(["头痛"])
    assert not served(tokenizer)
    tokenizer.encode_flat(["头痛" * 499])
    assert served(tokenizer)


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


def build(source, prefix, tokenizer, workers):
    run = RunOptions(workers=workers, batch_bytes=2000, progress=False)
    return build_corpus([str(source)], prefix, tokenizer, TextOptions(), run)


def build_planted(source, prefix, folder, workers):
    """(manifest, what was said) of a corpus whose tokenizer differs where only real text shows it."""
    bulk.OPEN_AT, bulk.hostile_texts, said = 0, lambda pieces: ["a"], io.StringIO()
    with contextlib.redirect_stderr(said):
        return build(source, prefix, plant(load_tokenizer(folder), without_late_merges), workers), said.getvalue()


@pytest.mark.parametrize("workers", [0, 2])
def test_a_corpus_is_made_anew_by_the_tokenizer_and_its_manifest_says_so(tmp_path, capsys, workers):
    draw = random.Random(3)
    rows = [{"text": "x" * draw.randrange(1, 9)} for _ in range(400)] + [{"text": text} for text in make_texts(300)]
    source, folder = write_rows(tmp_path / "in.jsonl", rows), write_byte_level(tmp_path / "hf")
    # In a process of its own: this one has opened the library, and its forks would not.
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        planted, said = pool.submit(build_planted, source, tmp_path / "planted", folder, workers).result(timeout=120)
    assert said.count("warning: the faster library gives other ids than the tokenizer for") == 1
    plain = build(source, tmp_path / "plain", load_tokenizer(folder), workers)
    assert "warning" not in capsys.readouterr().err
    with tokenizers_alone():
        alone = build(source, tmp_path / "alone", load_tokenizer(folder), workers)
    assert planted["tokenizer"].pop("alone_because_of") in {row["text"][:60] for row in rows}
    assert planted["tokenizer"] == plain["tokenizer"] == alone["tokenizer"]
    files = [files_of(tmp_path / name, ".bin", ".idx") for name in ("planted", "plain", "alone")]
    assert files[0] == files[1] == files[2] and all(files[0].values())


def test_a_process_that_is_forked_from_one_with_the_library_does_not_wait_for_its_threads(tmp_path):
    folder = write_byte_level(tmp_path / "hf")
    opened, new = load_tokenizer(folder), load_tokenizer(folder)
    rows = expected(opened, TEXTS, MODES[0])
    assert found(opened, TEXTS, MODES[0]) == rows and served(opened)

    def same():
        assert found(opened, TEXTS, MODES[0]) == rows
        assert found(new, TEXTS, MODES[0]) == rows and not served(new), "nothing is opened"

    child = multiprocessing.get_context("fork").Process(target=same)
    child.start()
    child.join(60)
    code = child.exitcode
    child.kill()
    assert code == 0
