"""Slots of a template: written in a YAML and in JSON, read back, refused with their place."""

import pytest

from megatron_chimed.errors import InputError
from megatron_chimed.text.slots import BOS, GENERATION, Field, Slot, fill, parse_slots, segments, slots_to_row
from megatron_chimed.text.template import Template, load_template, shipped_names


def test_each_shipped_template_comes_back_from_its_row():
    assert shipped_names() == ("chimed", "chatml", "llama3", "mistral", "qwen3", "vicuna")
    prints = set()
    for name in shipped_names():
        template = load_template(name)
        assert template.name == name and Template.from_row(template.to_row()) == template
        prints.add(template.fingerprint)
    assert len(prints) == 6


def test_the_form_of_older_manifests_is_that_of_plain_texts():
    row = {"name": "chimed", "user_prefix": "[human]:", "user_suffix": "\n[bot]:", "bos": True}
    assert load_template().to_row() == load_template("chimed").to_row() == row
    assert Template.from_row(row) == Template()
    assert Template().fingerprint == FINGERPRINT


FINGERPRINT = "0873dd98bdef2bcb0293a95a893570cd26706d6fe76e91a1008b3c8700b32144"


def test_slots_are_texts_words_and_tokens():
    row = [{"token": "<|im_start|>"}, "user\n", "bos", {"text": "bos"}, {"content": "trim"}, "generation"]
    slots = parse_slots(row, "here")
    assert slots[2] == BOS and slots[3] == Slot("text", "bos") and slots[5] == GENERATION
    assert slots_to_row(slots) == row
    layout = segments([1, "a", Field(0, ""), "b", 2, Field(1, "trim")])
    assert layout == [1, ("a", Field(0, ""), "b"), 2, (Field(1, "trim"),)]
    assert fill(layout, (" x ", " y ")) == [1, "a x b", 2, "y"]


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("user: [content]\n", r"t\.yaml: no assistant is given"),
        ("user: content\nassistant: [content, eos]\n", r"t\.yaml:1: user: expected a list of slots, found 'content'"),
        (
            "user: [content, 3]\nassistant: [content, eos]\n",
            r"t\.yaml:1: user: 3 is no slot; expected a text, bos, eos",
        ),
        ("user: [{tokn: a}]\nassistant: [content, eos]\n", r"t\.yaml:1: user: \{'tokn': 'a'\} is no slot"),
        ("user: [{content: strip}]\nassistant: [content, eos]\n", r"user: \{'content': 'strip'\} is no slot"),
        ("user: ['Q: ']\nassistant: [content, eos]\n", r"template 't': user has not 1 content"),
        ("user: ['Q: ', content]\nassistant: [content]\n", r"assistant must end with what ends an answer"),
        ("user: [content]\nassistant: [content, eos]\n", r"nothing stands around a question"),
        ("user: [Q, content, generation]\nassistant: [content, eos]\n", r"generation stands in user"),
        ("user: [Q, content]\nassistant: [content, generation, eos]\n", r"generation stands behind content"),
        ("user: [Q, content]\nassistant: [content, eos]\nbos: true\n", r"t\.yaml:3: bos is of the older form"),
        (
            "user: [Q, content]\nassistant: [content, eos]\nsystem_in: end\n",
            r"system_in is 'end'; expected one of turn",
        ),
        ("user: [Q, content]\nassistant: [content, eos]\nthink: 1\n", r"t\.yaml:3: think: expected true or false"),
        ("user: [Q, content]\nassistant: [content, eos]\nname: 1\n", r"t\.yaml:3: name: expected a text"),
        ("user: [Q, content]\nassistant: [content, eos]\ndefault_system: a\n", r"default_system needs system"),
        (
            "user: [Q, content]\nassistent: [content, eos]\n",
            r"t\.yaml:2: unknown key 'assistent'.*or in place of these",
        ),
    ],
)
def test_slots_that_make_no_template_are_refused_with_their_place(tmp_path, content, expected):
    (tmp_path / "t.yaml").write_text(content)
    with pytest.raises(InputError, match=expected) as caught:
        load_template(tmp_path / "t.yaml")
    assert str(tmp_path / "t.yaml") in str(caught.value)


def test_an_unknown_name_is_told_the_known_ones():
    with pytest.raises(InputError, match=r"template chatmel: no such name or file; shipped are chimed, chatml, llama3"):
        load_template("chatmel")
