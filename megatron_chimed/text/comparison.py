"""Whether two tokenizers are one: the same pieces by their ids, and the same ids of texts on which forms differ."""

from collections.abc import Sequence

from megatron_chimed.text.probes import PROBES
from megatron_chimed.text.tokenizer import Tokenizer


def difference(one: Tokenizer, other: Tokenizer) -> str | None:
    """Say in one line what differs between two tokenizers: sizes, a piece, or the ids of a probe; None if nothing."""
    if one.vocab_size != other.vocab_size:
        return f"{one.vocab_size} ids and {other.vocab_size}"
    for number in range(one.vocab_size):
        if one.id_to_token(number) != other.id_to_token(number):
            return f"id {number} is {one.id_to_token(number)!r} and {other.id_to_token(number)!r}"
    return first_difference(one, other, PROBES)


def first_difference(one: Tokenizer, other: Tokenizer, texts: Sequence[str]) -> str | None:
    """Say which text two tokenizers give other ids for, in one line; None where they give the same."""
    for text, ids, others in zip(texts, one.encode_batch(list(texts)), other.encode_batch(list(texts)), strict=True):
        if list(map(int, ids)) != list(map(int, others)):
            return f"{text[:40]!r} has {len(ids)} ids and {len(others)}"
    return None
