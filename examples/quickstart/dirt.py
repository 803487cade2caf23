"""A little realistic dirt for the cleaning stages to find: personal data, odd typing, exact and near duplicates.

What the text says stays the same: dirt goes between sentences or into punctuation, never into a fact's phrase.
"""

import random
import re
from collections.abc import Iterable, Iterator

PERSONAL = (
    "详情请拨打1390000{0:04d}。",
    "咨询电话：010-5550{0:04d}。",
    "加微信：wx_demo{0:04d}，有专人解答。",
    "联系邮箱：demo{0:04d}@example.com。",
    "更多内容见https://example.com/p/{0:04d}。",
)
_WIDE = {ord(c): ord(c) + 0xFEE0 for c in "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"}


def soil(rng: random.Random, text: str) -> str:
    """One piece of dirt in a text: a contact, full-width letters and digits, or repeated punctuation."""
    kind = rng.randrange(3)
    if kind == 0:
        return text + rng.choice(PERSONAL).format(rng.randrange(10_000))
    if kind == 1:
        return (text + rng.choice(PERSONAL).format(rng.randrange(10_000))).translate(_WIDE)
    return re.sub(r"([。？！])", lambda match: match[1] * rng.randint(1, 4), text) + "！！！"


def add_dirt(rng: random.Random, rows: Iterable[dict], share: float, field: str) -> Iterator[dict]:
    """Pass rows on; in a share of them `field` is soiled, and half as many rows follow as exact or near duplicates."""
    for row in rows:
        chance = rng.random()
        if chance < share:
            row = {**row, field: soil(rng, row[field])}
        yield row
        if chance < share / 4:
            yield row
        elif chance > 1 - share / 4:
            yield {**row, field: row[field] + "请及时就医。"}
