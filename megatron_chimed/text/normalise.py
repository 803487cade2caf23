"""Normalise a text for comparison."""

import sys
import unicodedata
from functools import cache

import numpy as np

BMP = 1 << 16
DROPPED, LONGER, JOINING = 0x110000, 0x110001, 0x110002
"""What `_mapping` has for white space, for what becomes several characters, and for what is left to Unicode."""


def normalise(text: str) -> str:
    """Normalise a text as it is compared: one width of characters (NFKC), no case, no white space."""
    return "".join(unicodedata.normalize("NFKC", text).casefold().split())


def normalised_codes(text: str) -> np.ndarray:
    """The code points of `normalise(text)`, uint32 [characters], four times as fast: by a table of single characters,
    for a text of which none joins another, as nearly all Chinese is.

    >>> normalised_codes("３７℃ A").tolist() == [*map(ord, normalise("３７℃ A"))]
    True
    """
    codes = _codes(text)
    if codes.size and codes.max() >= BMP:
        return _codes(normalise(text))
    mapped = _mapping()[codes]
    special = mapped >= DROPPED
    if not special.any():
        return mapped
    kinds = set(mapped[special].tolist())
    if JOINING in kinds:
        return _codes(normalise(text))
    if LONGER in kinds:
        for code in set(codes[mapped == LONGER].tolist()):
            text = text.replace(chr(code), normalise(chr(code)))
        mapped = _mapping()[_codes(text)]
    return mapped[mapped != DROPPED]


def _codes(text: str) -> np.ndarray:
    return np.frombuffer(text.encode("utf-32-le", "surrogatepass"), dtype="<u4")


@cache
def _mapping() -> np.ndarray:
    """What each character below BMP becomes, uint32 [BMP]: a code point, DROPPED, LONGER or JOINING."""
    seconds = _seconds()
    mapping = np.arange(BMP, dtype=np.uint32)
    for code in range(BMP):
        character = chr(code)
        whole = unicodedata.normalize("NFKD", character)
        made = normalise(character)
        if any(one in seconds or unicodedata.combining(one) or ord(one) >= BMP for one in whole):
            mapping[code] = JOINING
        elif len(made) == 1:
            mapping[code] = ord(made)
        else:
            mapping[code] = LONGER if made else DROPPED
    return mapping


def _seconds() -> set[str]:
    """Characters that composition may join to the one before."""
    pairs = (unicodedata.decomposition(chr(code)).split() for code in range(sys.maxunicode + 1))
    hangul = [*map(chr, range(0x1161, 0x1176)), *map(chr, range(0x11A8, 0x11C3))]
    return {chr(int(pair[1], 16)) for pair in pairs if len(pair) == 2 and not pair[0].startswith("<")}.union(hangul)
