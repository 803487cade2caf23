"""What a dry run takes in the place of a tokenizer and a corpus that are not there yet."""

import pytest
from guards import tree

from megatron_chimed.config import load_settings
from megatron_chimed.corpus.indexed_dataset import read_index
from megatron_chimed.errors import InputError
from megatron_chimed.plan import stand_in

RECIPE = ["examples/ziya2_13b/model.yaml", "examples/ziya2_13b/pretrain.yaml"]


def settings(*words: str):
    return load_settings(tree.ROOT / RECIPE[0], tree.ROOT / RECIPE[1], list(words))


def test_an_absent_tokenizer_of_known_size_is_replaced_and_named():
    note = stand_in.tokenizer_note(settings())
    assert "runs/ziya2_13b/base/tokenizer is not there" in note and "39,424" in note


@pytest.mark.parametrize(
    "words",
    [("--tokenizer-type", "SentencePieceTokenizer"), ("--tokenizer-model", "no/such/folder")],
)
def test_a_tokenizer_of_the_command_line_is_wanted(words):
    assert not stand_in.tokenizer_note(settings(*words)) and stand_in.missing_tokenizer(settings(*words))


def test_a_made_up_corpus_is_one_for_pretraining_alone(tmp_path):
    prefix = stand_in.write_corpus(tmp_path, "pretrain", 300)
    assert len(read_index(f"{prefix}.idx").lengths) == stand_in.DOCUMENTS
    with pytest.raises(InputError, match="--skip-data: the stage sft"):
        stand_in.write_corpus(tmp_path, "sft", 300)
