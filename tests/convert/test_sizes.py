"""Sizes: what tensor-parallel ranks cannot share out, and how the vocabulary is padded for them."""

import pytest

from megatron_chimed.convert.sizes import Sizes, pad_vocab

LLAMA_3_8B = Sizes(layers=32, hidden=4096, ffn=14336, heads=32, num_query_groups=8, head_dim=128, vocab=128256)


def test_heads_groups_and_ffn_must_each_be_multiples_of_the_number_of_ranks():
    assert LLAMA_3_8B.problems(1) == LLAMA_3_8B.problems(8) == []
    assert LLAMA_3_8B.problems(3) == [
        "--num-attention-heads 32 is no multiple of TP (3); take a TP that divides it",
        "--num-query-groups 8 is no multiple of TP (3); take a TP that divides it",
        "--ffn-hidden-size 14336 is no multiple of TP (3); take a TP that divides it",
    ]


@pytest.mark.parametrize(("tp", "alone", "shared"), [(16, 1, 0), (32, 1, 0), (12, 3, 3)])
def test_a_group_may_be_shared_by_whole_ranks_where_the_caller_allows_it(tp, alone, shared):
    assert len(LLAMA_3_8B.problems(tp)) == alone and len(LLAMA_3_8B.problems(tp, shared_groups=True)) == shared


@pytest.mark.parametrize("tp", [1, 2, 3, 8])
def test_the_padded_vocabulary_is_the_next_multiple(tp):
    for vocab in (1, 127, 128, 129, 39424, 128256):
        padded = pad_vocab(vocab, tp)
        assert padded % (128 * tp) == 0 and 0 <= padded - vocab < 128 * tp
    assert pad_vocab(250, tp, multiple=1) == -(-250 // tp) * tp
