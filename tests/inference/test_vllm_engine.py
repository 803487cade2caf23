"""vLLM as an engine of evaluations: its calls, against stand-ins for its classes that a transformers model answers.

vllm itself needs GPUs and a torch of its own; it is not run here.
"""

import importlib.machinery
import sys
import types

import pytest
import torch
from support.checkpoints import write_hf
from transformers import AutoModelForCausalLM

from megatron_chimed.errors import InputError
from megatron_chimed.inference import vllm_engine
from megatron_chimed.inference.request import Request, SamplingParams
from megatron_chimed.inference.vllm_engine import VllmEngine

Record = types.SimpleNamespace


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> torch.nn.Module:
    return AutoModelForCausalLM.from_pretrained(write_hf(tmp_path_factory.mktemp("hf") / "hf", num_hidden_layers=1))


@pytest.fixture
def settings_seen(monkeypatch, model) -> list[dict]:
    """Puts a `vllm` with the documented names in place; returns the settings that its models are asked with."""
    seen = []

    class LLM:
        def __init__(self, **settings):
            seen.append(settings)
            config = Record(get_vocab_size=lambda: 103, max_model_len=128)
            self.llm_engine = Record(model_config=config)

        def generate(self, prompts, params, use_tqdm):
            return [self.answer(prompt["prompt_token_ids"], one) for prompt, one in zip(prompts, params, strict=True)]

        @torch.no_grad()
        def answer(self, ids: list[int], params: dict):
            seen.append(params)
            logprobs = model(torch.tensor([ids])).logits[0].log_softmax(-1)
            for token, bias in params.get("logit_bias", {}).items():
                logprobs[:, token] += bias
            best = logprobs.argmax(-1).tolist()
            places = [None]
            for token, row, likeliest in zip(ids[1:], logprobs, best, strict=False):
                rank = 1 + int((row > row[token]).sum())
                places.append({n: Record(logprob=row[n].item(), rank=rank) for n in (token, likeliest)})
            reason = "stop" if best[-1] in params.get("stop_token_ids", ()) else "length"
            return Record(outputs=[Record(token_ids=(best[-1],), finish_reason=reason)], prompt_logprobs=places)

    module = types.ModuleType("vllm")
    module.__spec__ = importlib.machinery.ModuleSpec("vllm", None)
    module.LLM, module.SamplingParams, module.TokensPrompt = LLM, dict, dict
    monkeypatch.setitem(sys.modules, "vllm", module)
    return seen


@torch.no_grad()
def test_likelihoods_are_those_of_the_model(tmp_path, model, settings_seen):
    draw = torch.Generator().manual_seed(0)
    pairs = [
        (torch.randint(103, (context,), generator=draw).tolist(), torch.randint(103, (n,), generator=draw).tolist())
        for context, n in ((5, 1), (9, 4), (1, 3))
    ]
    context = pairs[0][0]
    pairs.append((context, [model(torch.tensor([context])).logits[0, -1].argmax().item()]))
    found = VllmEngine(tmp_path).loglikelihoods(pairs)
    for (context, continuation), (total, greedy) in zip(pairs, found, strict=True):
        rows = model(torch.tensor([[*context, *continuation]])).logits[0].log_softmax(-1)[len(context) - 1 : -1]
        assert total == pytest.approx(sum(row[n].item() for row, n in zip(rows, continuation, strict=True)), abs=1e-5)
        assert greedy == (rows.argmax(-1).tolist() == continuation)
    assert [greedy for _, greedy in found][-1] and not all(greedy for _, greedy in found)


def test_settings_go_through_and_answers_keep_their_places(tmp_path, model, settings_seen):
    engine = VllmEngine(tmp_path, tensor_parallel=2, dtype="bfloat16")
    requests = [
        Request([1, 2, 3], SamplingParams(7, temperature=0.5, top_p=0.9, seed=4)),
        Request([5], SamplingParams(2, temperature=0.0, top_k=3)),
    ]
    with torch.no_grad():
        best = [model(torch.tensor([list(one.prompt)])).logits[0, -1].argmax().item() for one in requests]
    answers = dict(answer for batch in engine.generate(requests, [best[0]]) for answer in batch)
    assert [answers[n].tokens for n in range(2)] == [[best[0]], [best[1]]]
    assert answers[0].finished and answers[1].finished == (best[0] == best[1])
    made, first, second = settings_seen
    assert made["tensor_parallel_size"] == 2 and made["dtype"] == "bfloat16"
    assert (first["temperature"], first["top_p"], first["top_k"], first["seed"]) == (0.5, 0.9, -1, 4)
    assert (second["temperature"], second["top_k"], second["max_tokens"]) == (0.0, 3, 2)
    engine.close()


def test_ids_behind_the_tokenizers_are_never_sampled(tmp_path, model, settings_seen):
    engine = VllmEngine(tmp_path)
    requests = [Request([number], SamplingParams(1, temperature=0.0)) for number in range(20)]

    def answers() -> list[int]:
        return [answer.tokens[0] for batch in engine.generate(requests, []) for _, answer in batch]

    free = answers()
    engine.sampled_ids = sorted(free)[10]
    likelihood = engine.loglikelihoods([([1], [102])])
    assert max(answers()) < engine.sampled_ids <= max(free)
    engine.sampled_ids = None
    assert engine.loglikelihoods([([1], [102])]) == likelihood
    assert answers() == free


def test_without_vllm_the_error_is_one_line(tmp_path, monkeypatch):
    monkeypatch.setattr(vllm_engine.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(InputError, match="vllm is not installed; install the extra `vllm`"):
        VllmEngine(tmp_path)
