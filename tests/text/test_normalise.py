"""The table of single characters says what `normalise` says, of every character and of any that stand together."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from megatron_chimed.text.normalise import LEFT, _mapping, normalise, normalised_codes

BMP = [chr(code) for code in range(0x10000)]
COMBINING = "e\u0301a\u0308が\u3099ᄒ\u1161\u11a8각ﾞ\u0f71"


def plainly(text: str) -> list[int]:
    return [*map(ord, normalise(text))]


def split(texts: list[str]) -> list[list[int]]:
    codes, bounds = normalised_codes(texts)
    assert codes.dtype == np.uint32 and len(bounds) == len(texts) + 1
    return [codes[start:stop].tolist() for start, stop in itertools.pairwise(bounds)]


def test_every_character_alone_and_beside_letters_is_what_it_is_by_itself():
    texts = [text for one in [*BMP, "\U0001f600", "\U0001d400"] for text in (one, f"病{one}病")]
    for text, found in zip(texts, split(texts), strict=True):
        assert found == plainly(text), ascii(text)


@given(st.lists(st.text(st.characters()) | st.text(st.sampled_from("３７℃…①病Aſß \t\n" + COMBINING), max_size=12)))
def test_texts_are_what_they_are_character_by_character_or_by_unicode(texts):
    assert split(texts) == [plainly(text) for text in texts]


@pytest.mark.parametrize("pair", ["e\u0301", "か\u3099", "\u1112\u1161", "\u0928\u093c", "\uac00\u11a8"])
def test_what_joins_its_neighbour_is_left_to_unicode(pair):
    assert _mapping()[ord(pair[1])] == LEFT
    assert len(split([pair])[0]) == len(normalise(pair)) < 3
    assert plainly(pair) != [*plainly(pair[0]), *plainly(pair[1])], "the control: alone they are something else"


def test_nearly_all_of_chinese_is_in_the_table():
    usual = [*range(0x20, 0x7F), *range(0x4E00, 0xA000), *map(ord, "，。！？：；（）“”《》、％３Ａａ　")]
    assert not (_mapping()[usual] == LEFT).any()
