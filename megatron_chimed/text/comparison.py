"""Whether two tokenizers are one: the same pieces by their ids, and the same ids of texts on which forms differ."""

from collections.abc import Sequence

from megatron_chimed.text.tokenizer import Tokenizer

PROBES = (
    "", " ", "\n", "a", "头痛", " 头痛", "头痛 ", "一日  三次", "先测血压\n再吃药", "\t缩进\t", "a \n b",
    "体温３７．５℃", "ＡＢＣ（全角）", "①②③ ㎎ ㎏ Ⅱ型", "é è ñ Ä ß ﬁ", "e\u0301 a\u0308",
    "한국어 ひらがな カタカナ ｶﾅ", "😀🩺 表情", "龘靐齉爩", "0123456789 3.14 1e-5", "hello world", "  leading",
    "trailing  ", "a\u00a0b\u3000c\u200bd", "\u0000\u0007", "a\u2581b", "C. difficile; p < 0.05", "don't re-do",
    "https://example.com/a?b=1&c=2", "x" * 60, "啊" * 60, " " * 9, "\r\n\r\n", "\U0001f468\u200d\u2695\ufe0f",
)  # fmt: skip
"""Texts on which normalizers and white space differ."""


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
