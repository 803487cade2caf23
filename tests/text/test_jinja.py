"""The Jinja of a template: transformers renders by it the ids of the renderer, and the template is read from it."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
from support.chatml import END, EOS, write_chatml
from transformers import AutoTokenizer

from megatron_chimed.errors import InputError
from megatron_chimed.records import Dialogue, Turn
from megatron_chimed.text import jinja
from megatron_chimed.text.renderer import Renderer
from megatron_chimed.text.slots import parse_slots
from megatron_chimed.text.template import Template, load_template
from megatron_chimed.text.tokenizer import load_tokenizer

SYSTEM = Turn("system", " 你是医生\n")
QUESTION, ANSWER, NEXT = Turn("user", "头痛\n\n"), Turn("assistant", "\n 休息。"), Turn("user", " 三次 ")
THOUGHT = Turn("assistant", "\n 休息。", thinking="不重。\n再问")


def slots_of(*some) -> tuple:
    return parse_slots(list(some), "here")


CHATML, QWEN3 = load_template("chatml"), load_template("qwen3")
TEMPLATES = {
    "chatml": CHATML,
    "qwen3": QWEN3,
    "thinks": replace(QWEN3, think=True),
    "told in the last question": replace(
        CHATML, system=slots_of({"content": "trim"}, "\n\n"), system_in="last_question", user=slots_of("问", "content")
    ),
    "told by itself": replace(CHATML, default_system='Say "#}" and {{ 1 }} \\n.', start=slots_of("#}\n")),
    "no system": replace(CHATML, system=()),
    "trimmed": replace(
        CHATML,
        user=slots_of({"token": "<|im_start|>"}, {"content": "trim"}, "\n"),
        assistant=slots_of("医生：", "generation", " ", {"content": "trim"}, "eos"),
        after_answer=(),
    ),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return write_chatml(tmp_path_factory.mktemp("chatml") / "hf", eos=EOS)


def rendered(folder: Path, text: str, turns, prompt: bool = True, **more) -> list[int]:
    """The ids by transformers."""
    messages = [{"role": turn.role, "content": turn.text, "reasoning_content": turn.thinking} for turn in turns]
    theirs = AutoTokenizer.from_pretrained(folder)
    return theirs.apply_chat_template(
        messages, chat_template=text, add_generation_prompt=prompt, return_dict=False, **more
    )


@pytest.mark.parametrize("name", TEMPLATES)
def test_transformers_gives_the_prompts_of_the_renderer(folder, name):
    template = TEMPLATES[name]
    text, renderer = jinja.chat_template(folder, template), Renderer(template, load_tokenizer(folder))
    assert jinja.recorded(text) == (template, jinja.to_jinja(template))
    for turns in ([QUESTION], [QUESTION, ANSWER, NEXT], [QUESTION, THOUGHT, NEXT, ANSWER, QUESTION]):
        for given in (turns, [SYSTEM, *turns]) if template.system else (turns,):
            if template.thinking or not any(turn.thinking for turn in given):
                assert rendered(folder, text, given) == renderer.render_prompt(given).tolist()
    with pytest.raises(Exception, match="take turns"):
        rendered(folder, text, [QUESTION, QUESTION])
    if not template.system:
        with pytest.raises(Exception, match="no place for a system message"):
            rendered(folder, text, [SYSTEM, QUESTION])


def test_thinking_is_asked_for_as_in_qwen3_and_stands_in_the_last_answer_alone(folder):
    text, renderer = jinja.chat_template(folder, QWEN3), Renderer(QWEN3, load_tokenizer(folder))
    asked = {think: rendered(folder, text, [QUESTION], enable_thinking=think) for think in (True, False)}
    assert asked == {think: renderer.render_prompt([QUESTION], think).tolist() for think in (True, False)}
    assert asked[True] != asked[False] == rendered(folder, text, [QUESTION])
    for answer in (ANSWER, THOUGHT):
        turns = (QUESTION, THOUGHT, NEXT, answer)
        whole = renderer.render(Dialogue("1", "test", turns)).tokens.tolist()
        assert rendered(folder, text, turns, prompt=False) == whole
    sent_back = [QUESTION, Turn("assistant", "<think>\n不重。\n</think>\n\n休息。"), NEXT]
    kept = [QUESTION, Turn("assistant", "休息。"), NEXT]
    assert rendered(folder, text, sent_back) == renderer.render_prompt(kept).tolist()


def test_a_folders_own_chat_template_stays_where_it_gives_the_prompts_of_the_training(tmp_path):
    own = "{# its own #}" + jinja.to_jinja(CHATML)
    other = own.replace("assistant\\n", "bot\\n")
    for number, (text, kept) in enumerate([(own, own), (other, jinja.to_jinja(CHATML))]):
        folder = write_chatml(tmp_path / str(number), eos=EOS)
        (folder / "chat_template.jinja").write_text(text)
        assert jinja.chat_template(folder, CHATML) == jinja.record(CHATML) + kept
        (folder / "chat_template.jinja").write_text(jinja.record(QWEN3) + text)
        assert jinja.chat_template(folder, CHATML) == jinja.record(CHATML) + kept


def test_a_tokenizer_that_swallows_what_stands_around_a_token_is_told_with_the_first_difference(tmp_path):
    folder = write_chatml(tmp_path / "hf")
    content = json.loads((folder / "tokenizer.json").read_text())
    for token in content["added_tokens"]:
        token["rstrip"] |= token["content"] == END
    (folder / "tokenizer.json").write_text(json.dumps(content))
    with pytest.raises(
        InputError,
        match=r"^[^\n]*'chatml': no chat template [^\n]*, as the probe user[^\n]* at id \d+, the training [^\n]*ids",
    ):
        jinja.chat_template(folder, CHATML)


def test_a_damaged_record_is_refused_and_another_comment_is_none(tmp_path):
    assert jinja.recorded("{# anything #}{{ 1 }}") == (None, "{# anything #}{{ 1 }}")
    assert jinja.recorded(jinja.record(Template())) == (Template(), "")
    with pytest.raises(InputError, match=r"^x: its template is no JSON"):
        jinja.recorded(f"{jinja.RECORD}{{ {jinja.RECORD_END}", "x")
    with pytest.raises(InputError, match=r"^x: .*unknown key 'prefix'"):
        jinja.recorded(f'{jinja.RECORD}{{"prefix": 1}}{jinja.RECORD_END}', "x")
