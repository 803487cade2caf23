"""The table of single characters says what `normalise` says, of every character and of any that stand together."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from megatron_chimed.text.normalise import JOINING, _mapping, normalise, normalised_codes

BMP = [chr(code) for code in range(0x10000)]
COMBINING = "e\u0301a\u0308が\u3099ᄒ\u1161\u11a8각ﾞ\u0f71"


def plainly(text: str) -> list[int]:
    return [*map(ord, normalise(text))]


def test_every_character_alone_and_in_front_of_a_letter_is_what_it_is_by_itself():
    for character in [*BMP, "\U0001f600", "\U0001d400"]:
        for text in (character, f"{character}病"):
            assert normalised_codes(text).tolist() == plainly(text), hex(ord(character))


@given(st.text(st.characters()) | st.text(st.sampled_from("３７℃…①病Aſß \t\n" + COMBINING), max_size=12))
def test_texts_are_what_they_are_character_by_character_or_by_unicode(text):
    assert normalised_codes(text).tolist() == plainly(text)
    assert normalised_codes(text).dtype == np.uint32


@pytest.mark.parametrize("pair", ["e\u0301", "か\u3099", "\u1112\u1161", "\u0928\u093c", "\uac00\u11a8"])
def test_what_joins_its_neighbour_is_left_to_unicode(pair):
    assert _mapping()[ord(pair[1])] == JOINING
    assert len(normalised_codes(pair)) == len(normalise(pair)) < 3
    assert plainly(pair) != [*plainly(pair[0]), *plainly(pair[1])], "the control: alone they are something else"
