"""Texts on which normalizers, white space and rare characters tell two tokenizers apart."""

import random
import sys
from collections.abc import Sequence

PROBES = (
    "", " ", "\n", "a", "头痛", " 头痛", "头痛 ", "一日  三次", "先测血压\n再吃药", "\t缩进\t", "a \n b",
    "体温３７．５℃", "ＡＢＣ（全角）", "①②③ ㎎ ㎏ Ⅱ型", "é è ñ Ä ß ﬁ", "e\u0301 a\u0308",
    "한국어 ひらがな カタカナ ｶﾅ", "😀🩺 表情", "龘靐齉爩", "0123456789 3.14 1e-5", "hello world", "  leading",
    "trailing  ", "a\u00a0b\u3000c\u200bd", "\u0000\u0007", "a\u2581b", "C. difficile; p < 0.05", "don't re-do",
    "https://example.com/a?b=1&c=2", "x" * 60, "啊" * 60, " " * 9, "\r\n\r\n", "\U0001f468\u200d\u2695\ufe0f",
)  # fmt: skip
"""A few of each kind."""

PARTS = (
    " ", "  ", "\n", "\r\n", "\t", "\u00a0", "\u3000", "\u2028", "\u0085", "\ufeff", "\u200b", "\u200d", "\u2060",
    "\u0000", "\u001b", "\u007f", "\u00ad", "\u0300", "\u0301\u0323", "\ufe0f", "\u202e", "\ufffd", "\ufffe",
    "é", "e\u0301", "ﬁ", "Ａ", "ｶ", "가", "\u1112\u1161\u11ab", "İ", "ẞ", "ǆ", "①", "㎎", "½", "٣", "५", "３",
    "don't", "I'LL", "we've", "'s", "''", "123456789", "3.14e-5", "0x1F", "a_b", "--", "...", "!?", "<", ">", "|",
    "&amp;", "\\n", "头痛", "三次。", "，", "（", "患者：", "mg/dL", "α-受体", "Ж", "עברית",
    "العربية", "ไทย", "🩺", "👩🏽\u200d⚕️", "🇨🇳",
    "▁", "Ġ", "Ċ", "##", "@@", "ab" * 20, "哈" * 20, "=" * 40, "A" * 17,
)  # fmt: skip
"""What hostile texts are made of."""


def hostile_texts(pieces: Sequence[str] = (), count: int = 600) -> list[str]:
    """PROBES and so many others, always the same: of PARTS, of a vocabulary's pieces, of any characters."""
    draw, known = random.Random(0), [*PARTS, *pieces]
    texts = list(PROBES)
    for number in range(count):
        if number % 3 == 2:
            texts.append("".join(_character(draw) for _ in range(draw.randrange(1, 30))))
        else:
            texts.append("".join(draw.choices(known if number % 3 else PARTS, k=draw.randrange(1, 30))))
    return [*texts, "x" * 5000, "啊" * 5000, " " * 500, "a b " * 1000]


def _character(draw: random.Random) -> str:
    """Any character that UTF-8 can express."""
    limit = draw.choice((0x80, 0x250, 0x3000, 0x10000, sys.maxunicode + 1))
    while 0xD800 <= (code := draw.randrange(limit)) < 0xE000:
        pass
    return chr(code)
