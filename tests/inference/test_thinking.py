"""Thinking apart from answers: in sampled tokens, whatever decoding hides, and in a server's text."""

import pytest
from support.chatml import chatml_renderer, write_chatml

from megatron_chimed.errors import InputError
from megatron_chimed.inference.thinking import (
    Answer,
    Marks,
    marks_of,
    read_answer,
    spell,
    split_thinking,
    with_think,
)
from megatron_chimed.records import Dialogue, Turn
from megatron_chimed.text.renderer import Renderer
from megatron_chimed.text.template import load_template, shipped_names

MARKS = Marks("<think>", "</think>")


@pytest.fixture(scope="module", params=[False, True], ids=["seen", "hidden"])
def renderer(request, tmp_path_factory):
    """Of Qwen3, with tokens around thinking and at an answer's end that decoding shows, and that it leaves out."""
    folder = tmp_path_factory.mktemp("chatml") / "tokenizer"
    write_chatml(folder, special=request.param, eos="<|endoftext|>")
    return chatml_renderer(folder)


@pytest.mark.parametrize(
    ("text", "thinking", "answer"),
    [
        ("休息", "", "休息"),
        (" 休息\n", "", " 休息\n"),
        ("<think>\n先问\n</think>\n\n休息\n", "先问", "休息\n"),
        ("\n<think></think>休息", "", "休息"),
        ("先问\n</think>\n\n休息", "先问", "休息"),  # the prompt had opened it
        ("<think>\n先问", "先问", ""),  # the limit on tokens ended it
        ("a <think> b", "", "a <think> b"),
    ],
)
def test_the_text_of_an_answer_is_split(text, thinking, answer):
    assert split_thinking(text, MARKS) == (thinking, answer)
    assert split_thinking(text, None) == ("", text)


def test_the_marks_are_those_of_the_templates_that_have_a_place_for_thinking():
    assert {name: marks_of(load_template(name)) for name in shipped_names() if load_template(name).thinking} == {
        "qwen3": MARKS
    }
    assert marks_of(load_template()) is None


def test_a_template_is_asked_to_think_only_where_it_can():
    qwen3, chimed = load_template("qwen3"), load_template()
    assert [with_think(qwen3, think, "x").think for think in (None, True, False)] == [False, True, False]
    assert with_think(chimed, None, "x") == chimed
    for think in (True, False):
        with pytest.raises(InputError, match="^--think: the template 'chimed' has no place for thinking"):
            with_think(chimed, think, "--think")


def test_sampled_tokens_give_back_the_turn_that_was_rendered(renderer):
    for turn in (Turn("assistant", "休息<think>", "先\n问"), Turn("assistant", "建议检查")):
        tokens, mask = renderer.render(Dialogue("a", "s", (Turn("user", "头痛"), turn)))
        learnt = tokens[mask == 1].tolist()
        assert read_answer(learnt, renderer) == Answer(turn.thinking, turn.text)
        assert read_answer(learnt[:-1], renderer) == Answer(turn.thinking, turn.text)
    tokens, mask = renderer.render(Dialogue("a", "s", (Turn("user", "头痛"), Turn("assistant", "休息", "先问"))))
    cut = tokens[mask == 1].tolist()[:4]
    assert read_answer(cut, renderer).text == "" and spell(cut, renderer).startswith("<think>")


def test_a_template_without_thinking_leaves_the_text_as_it_is_decoded(renderer):
    tokens = renderer.tokenizer.encode("<think>休息</think>")
    plain = Renderer(load_template("chatml"), renderer.tokenizer)
    assert read_answer([*tokens, plain.end_id], plain) == Answer("", renderer.tokenizer.decode(tokens))
