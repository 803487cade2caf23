"""Answers of engines and folders whose template has tokens, a system turn and thinking of its own."""

from dataclasses import replace

import pytest
import torch
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM
from support.chatml import chatml_renderer, write_chatml
from support.checkpoints import write_hf

from megatron_chimed.evaluation.backends.encoding import Encoder
from megatron_chimed.evaluation.backends.engine_model import EngineModel
from megatron_chimed.evaluation.backends.hf_model import HuggingFaceModel
from megatron_chimed.evaluation.backends.recorded import ChatPrompt, RecordedLM
from megatron_chimed.inference.engine import Engine
from megatron_chimed.inference.open import open_engine
from megatron_chimed.inference.request import Generated
from megatron_chimed.records import Turn
from megatron_chimed.text.exchange import common
from megatron_chimed.text.template import load_template

SYSTEM = Turn("system", "你是医生")
TURNS = (SYSTEM, Turn("user", "头痛" * 9), Turn("assistant", "检查"), Turn("user", "服用"))
SAID = "<think>\n三次\n\n头痛\n</think>\n\n建议检查<|im_end|>医生"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A model whose tokenizer leaves no trace of the tokens around thinking, and whose EOS is not what ends answers."""
    folder = write_chatml(tmp_path_factory.mktemp("chatml") / "hf", special=True, eos="<|endoftext|>")
    write_hf(folder, vocab_size=425, max_position_embeddings=128, eos_token_id=422, pad_token_id=3)
    return folder


@pytest.fixture(scope="module")
def renderer(folder):
    return chatml_renderer(folder, think=True)


def request(turns, template, **settings) -> Instance:
    prompt = ChatPrompt.of(turns, template)
    return Instance("generate_until", {}, (prompt, {"until": ["\n\n"], "max_gen_toks": 40, **settings}), 0)


class Scripted(Engine):
    """Says one text to everything, up to the first id that ends it, and remembers what it was asked."""

    max_positions = 128

    def __init__(self, tokens):
        self.tokens, self.asked = tokens, []

    def generate(self, requests, stop):
        self.asked += requests
        end = next(place for place, token in enumerate(self.tokens) if token in stop)
        yield [(index, Generated(self.tokens[: end + 1], True)) for index in range(len(requests))]

    def close(self):
        pass


def test_a_stop_string_in_the_thinking_ends_nothing_and_the_templates_end_does(renderer):
    engine = Scripted(renderer.tokenizer.encode(SAID, parse_special=True))
    model = EngineModel(engine, renderer.tokenizer, renderer.template)
    (text,) = model.generate_until([request(TURNS, renderer.template)])
    assert text == "<think>\n三次\n\n头痛\n</think>\n\n建议检查"
    assert engine.asked[0].prompt == renderer.render_prompt(TURNS).tolist()


def test_a_folder_gives_the_same(folder, renderer, monkeypatch):
    said = torch.tensor([renderer.tokenizer.encode(SAID.split("医生")[0], parse_special=True) + [3, 3]])
    settings = {}

    def generate(self, context, max_length, stop, **given):
        settings.update(given, stop=stop)
        return torch.cat([context, said.expand(len(context), -1)], dim=1)

    monkeypatch.setattr(HFLM, "_model_generate", generate)
    engine = open_engine(f"hf:{folder}", dtype="float32")
    model = HuggingFaceModel(engine, renderer.tokenizer, renderer.template)
    (text,) = model.generate_until([request(TURNS, renderer.template)])
    assert text == "<think>\n三次\n\n头痛\n</think>\n\n建议检查"
    assert settings["eos_token_id"] == [421, 422] and "\n\n" not in settings["stop"]
    (text,) = HuggingFaceModel(engine, renderer.tokenizer, load_template("chatml")).generate_until(
        [request(TURNS, load_template("chatml"))]
    )
    assert settings["stop"][:1] == ["\n\n"] and text == "\n三次"  # a template without thinking: nothing is set apart


def test_a_prompt_that_is_cut_keeps_its_system_turn(renderer):
    encoder = Encoder(renderer.tokenizer, renderer.template)
    prompt = ChatPrompt.of(TURNS, renderer.template)
    whole = renderer.render_prompt(TURNS).tolist()
    assert encoder.prompt(prompt, len(whole)) == whole
    assert encoder.prompt(prompt, len(whole) - 1) == renderer.render_prompt([SYSTEM, TURNS[3]]).tolist()
    for template in (renderer.template, replace(renderer.template, default_system="你是医生")):
        encoder = Encoder(renderer.tokenizer, template)
        told = [] if template.default_system else [SYSTEM]
        long, other = ([*told, Turn("user", text)] for text in ("头痛" * 40, "服用"))
        ids, others = (encoder.renderer.render_prompt(turns) for turns in (long, other))
        head = common(ids, others)
        kept = encoder.prompt(ChatPrompt.of(long, template), head + 20)
        assert kept == [*ids[:head].tolist(), *ids[-20:].tolist()] and "你是医生" in renderer.tokenizer.decode(kept)


@pytest.mark.parametrize(
    ("name", "turns"),
    [
        ("qwen3", [SYSTEM, Turn("user", "头痛")]),
        ("chimed", [Turn("user", "你是医生\n\n头痛")]),
        ("mistral", [Turn("user", "你是医生\n\n头痛")]),
    ],
)
def test_a_description_is_a_system_turn_where_the_template_has_one_and_else_stands_in_the_question(name, turns):
    model = RecordedLM(lambda: None, None, load_template(name), "m")
    messages = [{"role": "system", "content": "你是医生\n\n"}, {"role": "user", "content": "头痛"}]
    assert list(model.apply_chat_template(messages).turns) == turns
    assert list(model.apply_chat_template(messages[1:]).turns) == [Turn("user", "头痛")]
