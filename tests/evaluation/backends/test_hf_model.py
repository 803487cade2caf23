"""A Hugging Face folder as a model for lm-eval: one BOS, the prompts of the training, nothing cut in silence."""

import numpy as np
import pytest
import torch
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM
from support.corpora import WORDS
from support.exam_hf import write_answering_hf

from megatron_chimed.errors import InputError
from megatron_chimed.evaluation.backends.encoding import Encoder
from megatron_chimed.evaluation.backends.hf_model import HuggingFaceModel
from megatron_chimed.evaluation.backends.recorded import ChatPrompt
from megatron_chimed.inference.open import open_engine
from megatron_chimed.records import Turn
from megatron_chimed.text.renderer import Renderer
from megatron_chimed.text.template import Template
from megatron_chimed.text.tokenizer import load_tokenizer

TURNS = (Turn("user", "头痛三次"), Turn("assistant", "建议检查"), Turn("user", "</s>服用什么[bot]:"))
POSITIONS = 96


def request(kind: str, *arguments) -> Instance:
    """A request as lm-eval makes it."""
    return Instance(kind, {}, arguments, 0)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_answering_hf(tmp_path_factory.mktemp("hf"), POSITIONS)


@pytest.fixture(scope="module")
def model(folder):
    engine = open_engine(f"hf:{folder}", dtype="float32")
    return HuggingFaceModel(engine, load_tokenizer(folder), Template(), batch_size=3)


@pytest.fixture
def renderer(folder):
    return Renderer(Template(), load_tokenizer(folder))


def test_the_model_sees_the_prompts_of_the_training_padded_on_the_left(model, renderer, monkeypatch):
    seen = []
    generate = type(model)._model_generate

    def spy(self, context, **settings):
        seen.append((context.clone(), settings["attention_mask"].clone()))
        return generate(self, context=context, **settings)

    monkeypatch.setattr(type(model), "_model_generate", spy)
    prompts = [ChatPrompt.of(turns, Template()) for turns in (TURNS, TURNS[:1], TURNS[2:])]
    model.generate_until([request("generate_until", prompt, {"until": [], "max_gen_toks": 4}) for prompt in prompts])
    ((context, mask),) = seen
    rows = sorted(row[keep.bool()].tolist() for row, keep in zip(context, mask, strict=True))
    assert rows == sorted(renderer.render_prompt(prompt.turns).tolist() for prompt in prompts)
    assert sorted(row.count(1) for row in rows) == [1, 1, 2]  # a BOS for each exchange
    assert all(row[0] == 1 for row in rows) and (mask.diff(dim=1) >= 0).all()


def test_answers_of_a_batch_are_those_of_the_prompts_alone(model, renderer):
    prompts = [ChatPrompt.of((Turn("user", word * (n + 1)),), Template()) for n, word in enumerate(WORDS[:5])]
    settings = {"until": [], "max_gen_toks": 12, "do_sample": False}
    answers = model.generate_until([request("generate_until", prompt, settings) for prompt in prompts])
    for prompt, answer in zip(prompts, answers, strict=True):
        ids = torch.tensor(renderer.render_prompt(prompt.turns)[None].astype(np.int64))
        out = model.model.generate(
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=12, do_sample=False, pad_token_id=3
        )
        assert answer == renderer.tokenizer.decode(out[0, ids.shape[1] :].tolist())
    assert len(set(answers)) > 3


def test_likelihoods_are_those_of_lm_evals_own_backend_behind_one_bos(model, folder):
    own = HFLM(pretrained=str(folder), tokenizer=str(folder), dtype="float32", device="cpu", batch_size=1)
    pairs = [(f"患者{word}，答案：", f" {letter}") for word in WORDS[:6] for letter in "AB"]
    ours = model.loglikelihood([request("loglikelihood", *pair) for pair in pairs])
    theirs = own.loglikelihood([request("loglikelihood", f"<s>{context}", option) for context, option in pairs])
    assert np.allclose([score for score, _ in ours], [score for score, _ in theirs], atol=1e-4, rtol=0)
    without = own.loglikelihood([request("loglikelihood", *pair) for pair in pairs])
    assert not np.allclose([score for score, _ in ours], [score for score, _ in without], atol=1e-2)


def test_samples_depend_on_the_seed_alone(model):
    asked = [
        request(
            "generate_until",
            ChatPrompt.of(TURNS[:1], Template()),
            {"until": [], "max_gen_toks": 12, "do_sample": True, "temperature": 1.0},
        )
    ]
    drawn = []
    for model.seed in (1, 1, 2):
        drawn.append(model.generate_until(asked))
    assert drawn[0] == drawn[1] != drawn[2]


def test_a_prompt_that_is_too_long_is_cut_at_its_oldest_and_remembered(folder, renderer):
    encoder = Encoder(load_tokenizer(folder), Template())
    long = ChatPrompt.of((Turn("user", "头痛" * 60), *TURNS[1:]), Template())
    whole = renderer.render_prompt(long.turns).tolist()
    assert encoder.prompt(long, len(whole)) == whole and not encoder.cut
    kept = encoder.prompt(long, 60)
    assert kept == renderer.render_prompt(TURNS[2:]).tolist() and encoder.cut[long] == [len(whole), len(kept)]
    question = ChatPrompt.of((Turn("user", "头痛" * 60 + "怎么办"),), Template())
    ids, kept = renderer.render_prompt(question.turns).tolist(), encoder.prompt(question, 40)
    assert len(kept) == 40 and kept[0] == 1 and kept[-20:] == ids[-20:] and encoder.cut[question] == [len(ids), 40]
    text = "血压" * 80
    kept = encoder.prompt(text, 30)
    assert kept == [1, *encoder.tokenizer.encode(text)[-29:]] and encoder.cut[text] == [
        1 + len(encoder.tokenizer.encode(text)),
        30,
    ]
    with pytest.raises(InputError, match="fewer than the template takes"):
        encoder.prompt(question, 3)


def test_likelihoods_behind_a_long_context_take_its_end(model):
    context, option = "检查" * 400 + "答案：", " A"
    before, after = model.tok_encode(context), model.tok_encode(context + option)[len(model.tok_encode(context)) :]
    tail = [1, *before[len(before) - (POSITIONS + 1 - len(after) - 1) :]]
    ((expected, _),) = model._loglikelihood_tokens([(("", ""), tail, after)], disable_tqdm=True)
    ((score, _),) = model.loglikelihood([request("loglikelihood", context, option)])
    assert score == pytest.approx(expected, abs=1e-6)
    assert model.cut[context] == [len(before) + len(after), POSITIONS + 1]
