"""A model with more ids than its tokenizer: however likely it holds them, they are never sampled."""

import io

import pytest
import torch
from lm_eval.api.instance import Instance
from support.exam_hf import VOCAB, write_answering_hf
from transformers import AutoModelForCausalLM

from megatron_chimed.commands.main import run_command
from megatron_chimed.errors import InputError
from megatron_chimed.evaluation.backends.models import EngineOptions, open_model
from megatron_chimed.inference.open import open_engine
from megatron_chimed.inference.request import Request, SamplingParams
from megatron_chimed.text.template import Template
from megatron_chimed.text.tokenizer import load_tokenizer

pytestmark = pytest.mark.usefixtures("one_thread")
ROWS, POSITIONS = 460, 96
REQUESTS = [
    Request(prompt, SamplingParams(6, seed=seed, **settings))
    for seed, prompt in enumerate(([1, 300, 301], [1, 290], [1, 410, 280, 350]))
    for settings in ({"temperature": 0}, {}, {"temperature": 2.0, "top_k": 50}, {"top_p": 0.9})
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_answering_hf(tmp_path_factory.mktemp("hf"), POSITIONS, ROWS)


def sampled(engine) -> list[list[int]]:
    """The answers to all requests, drawn at once and token by token."""
    answers = [sample.tokens for batch in engine.generate(REQUESTS, []) for _, sample in batch]
    assert [list(engine.stream(request, [])) for request in REQUESTS] == answers
    return answers


def test_they_are_what_the_model_would_say_and_never_sampled(folder):
    tokenizer = load_tokenizer(folder)
    assert tokenizer.vocab_size == VOCAB < ROWS
    with open_engine(f"hf:{folder}", dtype="float32") as free:
        assert all(max(tokens) >= VOCAB for tokens in sampled(free)), "the control: nothing keeps them out"
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    with open_engine(f"hf:{folder}", dtype="float32", tokenizer=tokenizer) as engine:
        found = sampled(engine)
        scores = engine.loglikelihoods([([1, 300], [VOCAB, 301, ROWS - 1])])
    assert max(map(max, found)) < VOCAB
    for request, tokens in zip(REQUESTS[::4], found[::4], strict=True):
        ids = torch.tensor([list(request.prompt)])
        mask, never = torch.ones_like(ids), list(range(VOCAB, ROWS))
        text = model.generate(ids, attention_mask=mask, do_sample=False, max_new_tokens=6, suppress_tokens=never)
        assert text[0, ids.size(1) :].tolist()[: len(tokens)] == tokens
    with torch.no_grad():
        log_p = model(torch.tensor([[1, 300, VOCAB, 301]])).logits[0, 1:].log_softmax(-1)
    expected = log_p.gather(-1, torch.tensor([[VOCAB], [301], [ROWS - 1]])).sum().item()
    assert scores[0][0] == pytest.approx(expected, rel=1e-5), "likelihoods are over all ids, as in transformers"


def test_evaluation_and_chat_get_text(folder, monkeypatch, capsys):
    evaluated = open_model(f"hf:{folder}", EngineOptions(dtype="float32"), Template()).make()
    asked = [Instance("generate_until", {}, (text, {"until": [], "max_gen_toks": 8}), 0) for text in ("头痛", "发热")]
    assert all(evaluated.generate_until(asked))
    evaluated.close()
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO("头痛怎么办\n".encode())))
    flags = ["--model", f"hf:{folder}", "--max-new-tokens", "8", "--dtype", "float32"]
    assert not run_command("chat", flags, "chimed chat")
    assert len(capsys.readouterr().out.strip()) > 3


def test_a_tokenizer_with_more_ids_than_the_model_is_refused(folder, tmp_path):
    smaller = write_answering_hf(tmp_path / "smaller", POSITIONS, VOCAB - 1)
    with pytest.raises(InputError, match="the tokenizer has 420 ids, the model 419; they do not fit"):
        open_engine(f"hf:{smaller}", tokenizer=load_tokenizer(folder))
