"""The tokenizers give the ids of Megatron's own, for texts with every peculiarity that tells the two apart."""

import random
from pathlib import Path

import pytest
from support.paths import SHARED

from megatron_chimed.text.tokenizer import load_tokenizer
from megatron_chimed.text.tokenizer_training import train_sentencepiece, write_tokenizer

pytest.importorskip("megatron.core", reason="needs Megatron")
PARTS = ["慢性胃炎", "</s>", "<s>", "<pad>", "<unk>", " ", "  ", "\n", "\t", "\0", "😀", "龘", "１２", "a b", "▁", "12"]


def texts() -> list[str]:
    generator = random.Random(0)
    return ["", *("".join(generator.choices(PARTS, k=generator.randrange(12))) for _ in range(500))]


def megatron_tokenizer(path: Path, library: str):
    from megatron.core.tokenizers import MegatronTokenizer

    return MegatronTokenizer.from_pretrained(str(path), metadata_path={"library": library})


@pytest.fixture(scope="module")
def plain(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("plain")
    write_tokenizer(train_sentencepiece(["慢性胃炎患者 12 a b 规律饮食", "慢性胃炎"], 285), folder)
    return folder


@pytest.fixture(scope="module")
def with_bos(plain, tmp_path_factory) -> Path:
    from tokenizers import Tokenizer, processors

    folder = tmp_path_factory.mktemp("with_bos")
    for path in plain.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    backend = Tokenizer.from_file(str(folder / "tokenizer.json"))
    backend.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    backend.save(str(folder / "tokenizer.json"))
    return folder


@pytest.mark.parametrize("kind", ["plain", "with_bos"])
def test_hugging_face_folders_give_megatrons_ids_when_special_strings_are_parsed(kind, request):
    folder = request.getfixturevalue(kind)
    ours, theirs = load_tokenizer(folder), megatron_tokenizer(folder, "huggingface")
    rows = ours.encode_batch(texts(), parse_special=True, add_special=True)
    assert rows == [theirs.tokenize(text) for text in texts()]
    assert (ours.vocab_size, ours.eos_id) == (theirs.vocab_size, theirs.eod)
    assert any(ours.eos_id in row for row in rows), "the texts must hold special strings"
    assert ours.encode_batch(texts()) != rows


@pytest.mark.parametrize("model", ["trained", "shared"])
def test_sentencepiece_models_give_megatrons_ids(model, plain):
    path = plain / "tokenizer.model" if model == "trained" else SHARED / "chinese_sp.model"
    if not path.exists():
        pytest.skip("the shared sample data is not beside the project")
    ours, theirs = load_tokenizer(path), megatron_tokenizer(path, "sentencepiece")
    assert [row.tolist() for row in ours.encode_batch(texts())] == [theirs.tokenize(text) for text in texts()]
    assert (ours.vocab_size, ours.eos_id) == (theirs.vocab_size, theirs.eod)
