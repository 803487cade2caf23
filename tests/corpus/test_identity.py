"""Byte for byte what Megatron's own classes write: its tokenizers, its dataset builder, in the loop of its tool."""

import json

import numpy as np
import pytest
from megatron.core.datasets.indexed_dataset import DType, IndexedDataset, IndexedDatasetBuilder
from megatron.core.tokenizers import MegatronTokenizer
from support import corpora
from support.corpora import make_texts, write_rows
from support.paths import SHARED

from megatron_chimed.corpus.builder import RunOptions, TextOptions, build_corpus
from megatron_chimed.text.tokenizer import HuggingFaceTokenizer, SentencePieceTokenizer
from megatron_chimed.text.tokenizer_training import train_sentencepiece, write_tokenizer

ODD = ["一  二", " 开头", "结尾 ", "换\n行\r\n\t"]
ODD += ["\u3000全角", "</s>结束<s>", "<unk><pad>", "\0\x1f", "😀👨‍👩‍👧", "ﬁ①Ａ", "x" * 3000]


def megatrons_tokenizer(kind, path):
    return MegatronTokenizer.from_pretrained(tokenizer_path=str(path), metadata_path={"library": kind})


def write_with_megatron(prefix, tokenizer, documents, append_eod):
    """The loop of Megatron's tools/preprocess_data.py over documents [documents][sequences] of text."""
    builder = IndexedDatasetBuilder(f"{prefix}.bin", dtype=DType.optimal_dtype(tokenizer.vocab_size))
    for sequences in documents:
        ids = [found for text in sequences if len(found := tokenizer.tokenize(text))]
        lengths = [len(one) for one in ids]
        flat = [number for one in ids for number in one]
        if append_eod:
            flat.append(tokenizer.eod)
            lengths[-1] += 1
        builder.add_document(flat, lengths)
    builder.finalize(f"{prefix}.idx")


def compare(tmp_path, kind, path, documents, **options):
    """Build both ways, compare bytes, and read ours with Megatron's reader. Returns the manifest."""
    rows = [{"text": sequences if len(sequences) > 1 else sequences[0]} for sequences in documents]
    source = write_rows(tmp_path / "a.jsonl", rows)
    theirs = megatrons_tokenizer(kind, path)
    ours = (SentencePieceTokenizer if kind == "sentencepiece" else HuggingFaceTokenizer)(path)
    run = RunOptions(batch_bytes=20_000, progress=False)
    append_eod = options.get("append_eod", False)
    content = build_corpus([str(source)], tmp_path / "ours", ours, TextOptions(**options), run)
    write_with_megatron(tmp_path / "theirs", theirs, documents, append_eod)
    for suffix in (".bin", ".idx"):
        written = (tmp_path / f"ours_text_document{suffix}").read_bytes()
        assert written == (tmp_path / f"theirs{suffix}").read_bytes()
    read = IndexedDataset(str(tmp_path / "ours_text_document"))
    assert len(read.document_indices) - 1 == content["documents"] == len(documents)
    last = [theirs.eod] if append_eod else []
    assert np.array_equal(read[len(read) - 1], [*theirs.tokenize(documents[-1][-1]), *last])
    return content


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A Hugging Face folder, and the SentencePiece model of the same ids in it."""
    path = tmp_path_factory.mktemp("tokenizer") / "hf"
    path.mkdir()
    write_tokenizer(train_sentencepiece(make_texts(300), 420), path)
    return path


@pytest.mark.parametrize("append_eod", [False, True])
@pytest.mark.parametrize("kind", ["sentencepiece", "huggingface"])
def test_the_bytes_are_megatrons(tmp_path, folder, kind, append_eod):
    documents = [[text] for text in make_texts(100) + ODD] + [["一", "二", "三"], ["头痛"]]
    path = corpora.write_model(tmp_path) if kind == "sentencepiece" else folder
    content = compare(tmp_path, kind, path, documents, append_eod=append_eod)
    assert content["dtype"] == "uint16"


def test_special_tokens_in_a_text_are_tokens_as_in_megatron_unless_text_is_only_text(tmp_path, folder):
    documents = [["</s>结束"], ["头痛"]]
    eos = HuggingFaceTokenizer(folder).eos_id
    compare(tmp_path, "huggingface", folder, documents)
    binary = tmp_path / "ours_text_document.bin"
    assert eos in np.fromfile(binary, dtype=np.uint16)
    with pytest.raises(AssertionError):
        compare(tmp_path, "huggingface", folder, documents, parse_special=False, add_special=False)
    assert eos not in np.fromfile(binary, dtype=np.uint16)


@pytest.mark.parametrize(("size", "dtype"), [(65_499, "uint16"), (65_500, "int32")])
def test_a_large_vocabulary_has_megatrons_wider_type(tmp_path, size, dtype):
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    backend = Tokenizer(models.WordLevel({"</s>": 0, "<unk>": 1} | {str(n): n for n in range(2, size)}, "<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="<unk>", eos_token="</s>")
    tokenizer.save_pretrained(tmp_path / "hf")
    documents = [[f"{n} {size - 1 - n}"] for n in range(50)]
    content = compare(tmp_path, "huggingface", tmp_path / "hf", documents, append_eod=True)
    assert content["dtype"] == dtype and content["vocab_size"] == size


def test_real_text_gives_megatrons_bytes(tmp_path):
    if not SHARED.is_dir():
        pytest.skip("needs the sample data in ../shared/data")
    lines = (SHARED / "cmd_finetune_huatuo.jsonl").read_text(encoding="utf-8").splitlines()
    rows = [json.loads(line) for line in lines]
    documents = [[row["instruction"] + "\n" + row["output"]] for row in rows]
    content = compare(tmp_path, "sentencepiece", SHARED / "chinese_sp.model", documents, append_eod=True)
    assert content["documents"] == len(rows) > 1000
