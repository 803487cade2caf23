"""A SentencePiece model as a Hugging Face folder gives the model's own ids, through transformers too, or is refused."""

import io

import pytest
import sentencepiece
from support.paths import SHARED
from transformers import AutoTokenizer

from megatron_chimed.errors import InputError
from megatron_chimed.text import sentencepiece_export, sentencepiece_json
from megatron_chimed.text.comparison import first_difference
from megatron_chimed.text.sentencepiece_export import probe_texts, write_folder
from megatron_chimed.text.tokenizer import load_tokenizer

TEXTS = ["先查血常规和胸片，少说话多喝温水。", "hello world the quick brown fox", "体温37.5℃，血压120/80"] * 40
KINDS = {
    "SentencePiece's defaults": {},
    "as LLaMA's": {"normalization_rule_name": "identity", "remove_extra_whitespaces": False},
    "without the leading space": {"add_dummy_prefix": False},
    "with symbols": {"normalization_rule_name": "identity", "user_defined_symbols": ["<sep>", "<a b>", "<sep>>"]},
    "case folded": {"normalization_rule_name": "nmt_nfkc_cf"},
    "without bytes": {"byte_fallback": False, "vocab_size": 70},
}


def write_model(path, model_type="bpe", **options):
    model = io.BytesIO()
    settings = {"byte_fallback": True, "vocab_size": 330, "hard_vocab_limit": model_type == "bpe", "minloglevel": 2}
    settings |= {"sentence_iterator": iter(TEXTS), "model_writer": model, "model_type": model_type} | options
    sentencepiece.SentencePieceTrainer.train(**settings)
    path.write_bytes(model.getvalue())
    return path


def differences(model, folder):
    """Texts for which transformers' tokenizer of the folder differs from the model, and back."""
    processor = sentencepiece.SentencePieceProcessor(model_file=str(model))
    theirs = AutoTokenizer.from_pretrained(folder)
    texts = probe_texts(processor)
    ids = [processor.encode(text) for text in texts]
    return [
        text
        for text, numbers in zip(texts, ids, strict=True)
        if theirs.encode(text, add_special_tokens=False) != numbers
        or (theirs.unk_token_id not in numbers and theirs.decode(numbers) != processor.decode(numbers))
    ]


@pytest.mark.parametrize("model_type", ["bpe", "unigram"])
@pytest.mark.parametrize("kind", KINDS)
def test_the_folder_gives_the_ids_of_the_model(tmp_path, kind, model_type):
    model = write_model(tmp_path / "a.model", model_type, **KINDS[kind])
    (tmp_path / "hf").mkdir()
    write_folder(model, tmp_path / "hf")
    assert differences(model, tmp_path / "hf") == []
    one, other = load_tokenizer(model), load_tokenizer(tmp_path / "hf")
    assert (one.vocab_size, one.bos_id, one.eos_id, one.pad_id) == (
        other.vocab_size, other.bos_id, other.eos_id, other.pad_id
    )  # fmt: skip


def test_a_model_of_others_too(tmp_path):
    model = SHARED / "chinese_sp.model"
    if not model.is_file():
        pytest.skip("no such sample here")
    write_folder(model, tmp_path)
    assert differences(model, tmp_path) == []


def test_what_cannot_be_carried_over_is_refused(tmp_path):
    folded = {"normalization_rule_name": "nmt_nfkc_cf", "user_defined_symbols": ["<SEP>"]}  # found before it is folded
    model = write_model(tmp_path / "a.model", **folded)
    with pytest.raises(InputError, match=r"a\.model: as a Hugging Face folder it would give other ids: .* has \d+ ids"):
        write_folder(model, tmp_path)
    words = write_model(tmp_path / "w.model", "word", byte_fallback=False, vocab_size=10, hard_vocab_limit=False)
    with pytest.raises(InputError, match="of words or characters; expected byte-pair or unigram"):
        write_folder(words, tmp_path)


@pytest.mark.parametrize("part", ["_normalizer", "symbols_of"])
def test_the_probes_find_out_what_is_left_out(tmp_path, monkeypatch, part):
    model = write_model(tmp_path / "a.model", user_defined_symbols=["<sep>"])
    texts = probe_texts(sentencepiece.SentencePieceProcessor(model_file=str(model)))
    monkeypatch.setattr(sentencepiece_export, "probe_texts", lambda model: texts)
    monkeypatch.setattr(sentencepiece_json, part, lambda *given: None if part == "_normalizer" else [])
    with pytest.raises(InputError, match="other ids"):
        write_folder(model, tmp_path)


def test_the_first_difference_is_named(tmp_path):
    one, other = (load_tokenizer(write_model(tmp_path / f"{n}.model", vocab_size=n)) for n in (330, 340))
    assert first_difference(one, one, ["a", "体温"]) is None
    assert "'先查血常规和胸片' has" in first_difference(one, other, ["xyz"[:0], "先查血常规和胸片"])
