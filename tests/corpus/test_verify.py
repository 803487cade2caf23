"""Verification finds every altered byte; the checks of the index alone find what makes no sense."""

import json
import random
import shutil

import numpy as np
import pytest
from support import corpora
from support.corpora import build, call, call_here, make_texts, write_rows

from megatron_chimed.corpus.indexed_dataset import HEADER, read_index
from megatron_chimed.corpus.manifest import check_corpus_sizes
from megatron_chimed.corpus.verify import adopt_dataset, check_dataset, verify_corpus
from megatron_chimed.errors import InputError


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The prefix of a corpus of 40 documents."""
    folder = tmp_path_factory.mktemp("corpus")
    path = write_rows(folder / "a.jsonl", [{"text": text} for text in make_texts(40)])
    build([path], folder / "out", corpora.write_model(folder))
    return folder / "out"


@pytest.fixture
def corpus(whole, tmp_path):
    """A copy that may be damaged."""
    for path in whole.parent.glob("out*"):
        shutil.copy(path, tmp_path)
    return tmp_path / "out"


def test_a_whole_corpus_passes_by_either_prefix(corpus):
    assert verify_corpus(corpus)["documents"] == 40
    assert verify_corpus(f"{corpus}_text_document")["documents"] == 40
    assert len(check_corpus_sizes(f"{corpus}_text_document")) == 64


@pytest.mark.parametrize("suffix", [".bin", ".idx"])
def test_any_flipped_byte_and_any_truncation_is_found(corpus, suffix):
    path = corpus.with_name(f"out_text_document{suffix}")
    content = path.read_bytes()
    draw = random.Random(1)
    places = {*range(min(len(content), HEADER.size)), *draw.sample(range(len(content)), 150), len(content) - 1}
    for place in places:
        damaged = bytearray(content)
        damaged[place] ^= 1 << draw.randrange(8)
        path.write_bytes(damaged)
        with pytest.raises(InputError, match="altered"):
            verify_corpus(corpus)
    for size in (0, 1, len(content) // 2, len(content) - 1, len(content) + 1):
        path.write_bytes((content + b"\0")[:size])
        with pytest.raises(InputError, match="bytes"):
            verify_corpus(corpus)
    path.unlink()
    with pytest.raises(InputError, match="is missing"):
        verify_corpus(corpus)
    path.write_bytes(content)
    verify_corpus(corpus)


def test_every_byte_of_an_index_is_checked_even_without_a_hash(corpus):
    path = corpus.with_name("out_text_document.idx")
    content = path.read_bytes()
    num_boundaries = read_index(path).boundaries.size
    for place in range(len(content)):
        damaged = bytearray(content)
        damaged[place] ^= 0x41
        path.write_bytes(damaged)
        try:
            check_dataset(corpus.with_name("out_text_document"), 420)
        except InputError:
            continue
        # Only a document boundary may move without a contradiction, and only between its neighbours.
        assert place >= len(content) - 8 * num_boundaries
        boundaries = np.frombuffer(damaged, dtype="<i8", count=num_boundaries, offset=len(content) - 8 * num_boundaries)
        assert boundaries[0] == 0 and boundaries[-1] == 40 and sorted(boundaries) == list(boundaries)


def test_an_id_outside_the_vocabulary_is_found(corpus):
    dataset = corpus.with_name("out_text_document")
    facts = check_dataset(dataset, 420)
    assert check_dataset(dataset, facts.max_id + 1) == facts
    with pytest.raises(InputError, match=f"id {facts.max_id}, outside the vocabulary"):
        check_dataset(dataset, facts.max_id)
    with open(f"{dataset}.bin", "r+b") as file:
        file.seek(100)
        file.write(np.uint16(60_000).tobytes())
    with pytest.raises(InputError, match="token 50 has id 60000"):
        check_dataset(dataset, 420)


MISSTATED = [("bytes", {}), ("sha256", {}), ("documents", 39), ("tokens", 7), ("vocab_size", 3), ("dtype", "int32")]


@pytest.mark.parametrize(("field", "wrong"), MISSTATED)
def test_a_manifest_that_lacks_or_misstates_a_field_is_refused(corpus, field, wrong):
    path = corpus.with_name("out.manifest.json")
    content = json.loads(path.read_text())
    for value in (wrong, None, "x", -1):
        path.write_text(json.dumps({**content, field: value}))
        with pytest.raises(InputError):
            verify_corpus(corpus)
    for text in ("", "[]", "null", '{"bytes": 3}', "\0"):
        path.write_text(text)
        with pytest.raises(InputError):
            verify_corpus(corpus)


def test_the_command_exits_1_with_one_line_on_a_flipped_byte(corpus):
    assert call_here("verify_corpus.py", corpus).returncode == 0
    path = corpus.with_name("out_text_document.bin")
    path.write_bytes(path.read_bytes()[:-1] + b"\x7f")
    result = call("verify_corpus.py", corpus)
    last = result.stderr.replace("\r", "\n").splitlines()[-1]
    assert result.returncode == 1 and "altered" in last and "Traceback" not in result.stderr
    assert call_here("verify_corpus.py").returncode == 2
    assert call_here("verify_corpus.py", corpus.with_name("nothing")).returncode == 1


def test_a_dataset_of_another_tool_can_be_adopted_once(corpus):
    dataset = corpus.with_name("out_text_document")
    with pytest.raises(InputError, match="lists out_text_document.bin already"):
        adopt_dataset(dataset)
    corpus.with_name("out.manifest.json").unlink()
    with pytest.raises(InputError, match="no manifest lists"):
        verify_corpus(dataset)
    with pytest.raises(InputError, match="outside the vocabulary"):
        adopt_dataset(dataset, vocab_size=5)
    result = call_here("verify_corpus.py", "--write-manifest", dataset, "--vocab-size", 420)
    assert result.returncode == 0, result.stderr
    assert verify_corpus(dataset)["vocab_size"] == 420 and check_corpus_sizes(dataset)
    index = corpus.with_name("out_text_document.idx")
    index.write_bytes(index.read_bytes()[:-1])
    with pytest.raises(InputError, match="bytes"):
        verify_corpus(dataset)
    dataset.with_name("out_text_document.manifest.json").unlink()
    with pytest.raises(InputError, match="header asks for"):
        adopt_dataset(dataset)
