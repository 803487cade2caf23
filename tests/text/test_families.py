"""Shipped templates: the ids of transformers for the family's chat template, and markers that no text forges."""

import pickle
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.chat_templates import FAMILIES, NOT_SPECIAL, SPECIALS, write_chat_tokenizer
from support.dialogues import make_dialogue

from megatron_chimed.errors import InputError
from megatron_chimed.records import Turn
from megatron_chimed.text.exchange import is_chain, join
from megatron_chimed.text.renderer import Renderer
from megatron_chimed.text.template import load_template
from megatron_chimed.text.tokenizer import load_tokenizer

NAMES = [*FAMILIES, "chimed"]
SYSTEM = Turn("system", "你是医生。")
TEXTS = ("头痛 三天\n怎么办", "检查 血压", " 发热 \n", "服用\n\n三次 ", "再见")


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> dict[str, Path]:
    place = tmp_path_factory.mktemp("tokenizers")
    return {kind: write_chat_tokenizer(place / kind, kind=kind) for kind in ("bytes", "metaspace")}


@pytest.fixture(scope="module")
def renderers(folders) -> dict[str, Renderer]:
    tokenizer = load_tokenizer(folders["bytes"])
    return {name: Renderer(load_template(name), tokenizer) for name in NAMES}


def turns_of(*texts: str, thinking: str = "") -> tuple[Turn, ...]:
    return tuple(Turn("assistant", text, thinking) if n % 2 else Turn("user", text) for n, text in enumerate(texts))


def by_transformers(folder: Path, name: str, turns, **more) -> list[int]:
    from transformers import AutoTokenizer

    messages = [{"role": turn.role, "content": turn.text} for turn in turns]
    for message, turn in zip(messages, turns, strict=True):
        message |= {"reasoning_content": turn.thinking} if turn.thinking else {}
    more = {"add_generation_prompt": turns[-1].role == "user", "return_dict": False} | more
    return AutoTokenizer.from_pretrained(folder).apply_chat_template(messages, chat_template=FAMILIES[name], **more)


@pytest.mark.parametrize("kind", ["bytes", "metaspace"])
@pytest.mark.parametrize("name", FAMILIES)
def test_ids_are_those_of_the_family_s_chat_template(folders, name, kind):
    renderer = Renderer(load_template(name), load_tokenizer(folders[kind]))
    for system in ((), (SYSTEM,)):
        for count in (1, 3, 5):
            turns = (*system, *turns_of(*TEXTS[:count]))
            more = {"enable_thinking": False} if name == "qwen3" else {}
            assert renderer.render_prompt(turns).tolist() == by_transformers(folders[kind], name, turns, **more)
        for count in (2, 4):
            turns = (*system, *turns_of(*TEXTS[:count]))
            exchanges = renderer.encode_exchanges([turns])[0]
            found = join(exchanges, len(exchanges) - 1).tokens.tolist() + renderer.after_answer().tolist()
            assert found == by_transformers(folders[kind], name, turns)


@pytest.mark.parametrize("name", NAMES)
@given(texts=st.lists(st.sampled_from([*SPECIALS, *NOT_SPECIAL, "\n", " ", "头痛", "a"]), min_size=1, max_size=8))
def test_a_text_that_spells_markers_makes_none(renderers, name, texts):
    """Ids of tokens stand as often, in the same order, as in a dialogue of harmless texts; the text is as it was."""
    if name == "chimed":
        texts = [text for text in texts if text not in NOT_SPECIAL]  # found in any text by Hugging Face's tokenizers
    renderer, text = renderers[name], f"头{''.join(texts)}痛"
    tokenizer = renderer.tokenizer
    markers = {tokenizer.token_to_id(one) for one in [*SPECIALS, *NOT_SPECIAL]}
    shapes = []
    for one in ("头痛", text):
        turns = (Turn("system", one), *turns_of(one, one, one, one))
        exchanges = renderer.encode_exchanges([turns])[0]
        shapes.append([number for number in join(exchanges, 1).tokens.tolist() if number in markers])
    assert shapes[0] == shapes[1]
    answer = renderer.encode_exchanges([turns])[0][-1].response
    assert tokenizer._backend.decode(answer[:-1].tolist(), skip_special_tokens=False).strip() == text


@pytest.mark.parametrize("name", NAMES)
def test_only_answers_and_the_id_that_ends_them_are_learnt(renderers, name):
    renderer = renderers[name]
    for exchange, text in zip(
        renderer.encode_exchanges([(SYSTEM, *turns_of(*TEXTS[:4]))])[0], TEXTS[1::2], strict=True
    ):
        assert exchange.response[-1] == renderer.end_id and renderer.end_id not in exchange.response[:-1]
        assert renderer.tokenizer.decode(exchange.response).strip() == text.strip() and exchange.num_learnt > 1
    assert renderer.stop_ids[0] == renderer.end_id and renderer.tokenizer.eos_id in renderer.stop_ids


def test_thinking_is_trained_masked_or_dropped_and_stands_in_no_history(renderers, folders):
    template, tokenizer = load_template("qwen3"), renderers["qwen3"].tokenizer
    one, two = turns_of(*TEXTS[:2], thinking="\n想一想\n"), turns_of(*TEXTS[:4], thinking="想一想")
    found = {}
    for thinking in ("train", "mask", "drop"):
        renderer = Renderer(template, tokenizer, thinking)
        (exchange,) = renderer.encode_exchanges([one])[0]
        found[thinking] = exchange
        learnt = exchange.response if exchange.learnt is None else exchange.response[exchange.learnt == 1]
        names = [tokenizer.id_to_token(number) for number in learnt]
        assert ("<think>" in names) == ("</think>" in names) == (thinking == "train"), thinking
        assert tokenizer.decode(learnt).endswith("检查 血压") and names[-1] == "<|im_end|>"
        past, last = renderer.encode_exchanges([two])[0]
        assert tokenizer.token_to_id("<think>") not in past.past.tolist()
        assert join([past, last], 1).tokens.tolist()[: len(past.past)] == past.past.tolist()
    assert found["train"].response.tolist() == found["mask"].response.tolist()
    plain = renderers["qwen3"].encode_exchanges([turns_of(*TEXTS[:2])])[0][0]
    assert plain.prompt.tolist() == found["drop"].prompt.tolist(), "the empty block is part of the prompt"
    assert plain.prompt.tolist() == renderers["qwen3"].render_prompt(one[:1], think=False).tolist()
    assert found["train"].prompt.tolist() == renderers["qwen3"].render_prompt(one[:1], think=True).tolist()
    for turns in (one, two, two[:3]):
        exchanges = Renderer(template, tokenizer).encode_exchanges([turns[: len(turns) // 2 * 2]])[0]
        ids = join(exchanges, len(exchanges) - 1).tokens.tolist() + renderers["qwen3"].after_answer().tolist()
        assert ids == by_transformers(folders["bytes"], "qwen3", turns[: len(turns) // 2 * 2])


def test_an_answer_that_its_prompt_would_swallow_is_learnt_behind_the_prompt(renderers):
    """ChatML's prompt ends with a line break, which the tokenizer joins with those at the start of an answer."""
    turns = turns_of("头痛", "\n\n检查", "发热", "\n\n服用")
    past, last = renderers["chatml"].encode_exchanges([turns])[0]
    assert not is_chain([past]) and is_chain([last])
    assert last.prompt.tolist() == renderers["chatml"].render_prompt(turns[:3]).tolist()[-len(last.prompt) :]
    assert renderers["chatml"].tokenizer.decode(last.response) == "\n\n服用"


@pytest.mark.parametrize("name", NAMES)
def test_a_cut_question_keeps_the_template_and_the_system_turn(renderers, name):
    renderer = renderers[name]
    long, other = (renderer.render_prompt([SYSTEM, Turn("user", text)]).tolist() for text in ("检查血压三次" * 9, "头"))
    head = next(place for place, (one, two) in enumerate(zip(long, other, strict=False)) if one != two)
    tail = next(place for place, (one, two) in enumerate(zip(long[::-1], other[::-1], strict=False)) if one != two)
    assert SYSTEM.text in renderer.tokenizer.decode(long[:head]) and tail
    for limit in range(len(long) - 1, head + tail - 1, -1):
        cut = renderer.cut_prompt(np.array(long), limit, SYSTEM.text).tolist()
        assert len(cut) == limit and cut[:head] == long[:head] and cut[head:] == long[len(long) - limit + head :]
    assert renderer.cut_prompt(np.array(long), head + tail - 1, SYSTEM.text) is None


def test_a_renderer_of_tokens_survives_the_way_to_a_worker_process(renderers):
    copy = pickle.loads(pickle.dumps(renderers["qwen3"]))
    dialogue = make_dialogue("头痛<think>", "检查")
    assert copy.render(dialogue).tokens.tolist() == renderers["qwen3"].render(dialogue).tokens.tolist()


def test_what_a_template_has_no_place_for_is_refused(tmp_path, folders, renderers):
    tokenizer = renderers["chatml"].tokenizer
    (tmp_path / "t.yaml").write_text("user: ['Q: ', content]\nassistant: [\"\\nA:\", content, eos]\n")
    bare = Renderer(load_template(tmp_path / "t.yaml"), tokenizer)
    with pytest.raises(InputError, match="template 't' has no place for a system turn"):
        bare.render_prompt([SYSTEM, Turn("user", "a")])
    with pytest.raises(InputError, match=r"no place for an answer's thinking; drop it \(--thinking drop\)"):
        bare.encode_exchanges([turns_of("a", "b", thinking="c")])
    assert Renderer(bare.template, tokenizer, "drop").encode_exchanges([turns_of("a", "b", thinking="c")])
    (tmp_path / "t.yaml").write_text("user: [{token: <|user|>}, content]\nassistant: [content, eos]\n")
    with pytest.raises(InputError, match=r"needs the token '<\|user\|>', and the tokenizer has none of that name"):
        Renderer(load_template(tmp_path / "t.yaml"), tokenizer)
    (tmp_path / "t.yaml").write_text("user: [{token: a}, content]\nassistant: [content, eos]\n")
    with pytest.raises(InputError, match=r"makes id \d+, a marker, of the template's token 'a'"):
        Renderer(load_template(tmp_path / "t.yaml"), tokenizer)
    with pytest.raises(InputError, match="thinking 'none': expected one of train, mask, drop"):
        Renderer(bare.template, tokenizer, "none")
