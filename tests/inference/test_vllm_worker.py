"""vLLM as an engine of evaluations: its calls, against stand-ins for its classes that a transformers model answers.

`make test-vllm` runs the real one.
"""

import json
import types

import pytest
import torch
from support.chatml import write_chatml
from support.checkpoints import write_hf
from support.vllm_stand_in import parts_of, put_in_place
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from megatron_chimed.errors import InputError
from megatron_chimed.inference.request import Request, SamplingParams
from megatron_chimed.inference.vllm_engine import VllmEngine
from megatron_chimed.inference.vllm_worker import passes_of

Record = types.SimpleNamespace


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> torch.nn.Module:
    return AutoModelForCausalLM.from_pretrained(write_hf(tmp_path_factory.mktemp("hf") / "hf", num_hidden_layers=1))


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"architectures": ["LlamaForCausalLM"], "dtype": "float32"}))
    return tmp_path


@pytest.fixture
def settings_seen(monkeypatch, model) -> list[dict]:
    """Puts a `vllm` with the documented names in place; returns the settings that its models are asked with."""
    seen = []

    class LLM:
        def __init__(self, **settings):
            seen.append(settings)
            self.llm_engine = parts_of(103)

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

    put_in_place(monkeypatch, LLM)
    return seen


@torch.no_grad()
def test_likelihoods_are_those_of_the_model(folder, model, settings_seen):
    draw = torch.Generator().manual_seed(0)
    pairs = [
        (torch.randint(103, (context,), generator=draw).tolist(), torch.randint(103, (n,), generator=draw).tolist())
        for context, n in ((5, 1), (9, 4), (1, 3))
    ]
    context = pairs[0][0]
    pairs.append((context, [model(torch.tensor([context])).logits[0, -1].argmax().item()]))
    found = VllmEngine(folder).loglikelihoods(pairs)
    for (context, continuation), (total, greedy) in zip(pairs, found, strict=True):
        rows = model(torch.tensor([[*context, *continuation]])).logits[0].log_softmax(-1)[len(context) - 1 : -1]
        assert total == pytest.approx(sum(row[n].item() for row, n in zip(rows, continuation, strict=True)), abs=1e-5)
        assert greedy == (rows.argmax(-1).tolist() == continuation)
    assert [greedy for _, greedy in found][-1] and not all(greedy for _, greedy in found)


def test_settings_go_through_and_answers_keep_their_places(folder, model, settings_seen):
    engine = VllmEngine(folder, tensor_parallel=2, dtype="bfloat16")
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
    assert first["stop_token_ids"] == [best[0]] and first["ignore_eos"], "the folder's own EOS ends nothing"
    assert made["tensor_parallel_size"] == 2 and made["dtype"] == "bfloat16"
    assert (first["temperature"], first["top_p"], first["top_k"], first["seed"]) == (0.5, 0.9, -1, 4)
    assert (second["temperature"], second["top_k"], second["max_tokens"]) == (0.0, 3, 2)
    engine.close()


def test_ids_behind_the_tokenizers_are_never_sampled(folder, model, settings_seen):
    engine = VllmEngine(folder)
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


def test_a_pair_may_be_as_long_as_the_context_less_the_token_that_vllm_wants_behind_it(folder, model, settings_seen):
    engine = VllmEngine(folder)
    assert engine.max_pair == 127
    assert len(engine.loglikelihoods([([1] * 120, [2] * 7)])) == 1
    with pytest.raises(InputError, match="pair 0 has 128 tokens; expected 1 to 127"):
        engine.loglikelihoods([([1] * 120, [2] * 8)])


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_auto_is_the_type_in_which_the_weights_are_stored(folder, settings_seen, dtype):
    for key, text in (("dtype", dtype), ("torch_dtype", dtype), ("torch_dtype", f"torch.{dtype}")):
        (folder / "config.json").write_text(json.dumps({"architectures": ["LlamaForCausalLM"], key: text}))
        VllmEngine(folder).close()
        assert settings_seen[-1]["dtype"] == dtype
    VllmEngine(folder, dtype="bfloat16").close()
    assert settings_seen[-1]["dtype"] == "bfloat16"
    (folder / "config.json").write_text(json.dumps({"architectures": ["LlamaForCausalLM"]}))
    VllmEngine(folder).close()
    assert settings_seen[-1]["dtype"] == "auto"


@torch.no_grad()
def test_rewards_are_the_scores_of_the_pooling_runner_without_its_sigmoid(tmp_path, monkeypatch):
    folder = write_chatml(tmp_path / "hf")
    write_hf(folder, reward=True, num_hidden_layers=1)
    reward, seen = AutoModelForSequenceClassification.from_pretrained(folder).eval(), []

    def score(tokens: list[int]) -> torch.Tensor:
        return reward(torch.tensor([tokens])).logits[0]

    class LLM:
        def __init__(self, **settings):
            seen.append(settings)
            self.llm_engine = parts_of(103)

        def classify(self, prompts, pooling_params, use_tqdm):
            raw = [score(prompt["prompt_token_ids"]) for prompt in prompts]
            shown = [one if pooling_params["use_activation"] is False else one.sigmoid() for one in raw]
            return [Record(outputs=Record(probs=one.tolist())) for one in shown]

    put_in_place(monkeypatch, LLM)
    sequences = [[5, 6, 7, 2], [9, 2], [3, 4, 2]]
    with VllmEngine(folder, head="reward") as engine:
        assert engine.rewards(sequences) == pytest.approx([score(one).item() for one in sequences])
        with pytest.raises(InputError, match="sequence 1 has 0 tokens"):
            engine.rewards([[1], []])
        with pytest.raises(InputError, match="need a model with the head 'lm'"):
            engine.loglikelihoods([([1], [2])])
    assert seen[0]["runner"] == "pooling" and not seen[0]["skip_tokenizer_init"], "vLLM's runner insists on a tokenizer"
    with pytest.raises(InputError, match="a reward model, of the stage `reward`; expected a language model$"):
        VllmEngine(folder)
    with pytest.raises(InputError, match="no tokenizer, which vLLM wants with a reward model; export it with --token"):
        VllmEngine(write_hf(tmp_path / "bare", reward=True, num_hidden_layers=1), head="reward")
    config = json.loads((folder / "config.json").read_text()) | {"id2label": {"0": "a", "1": "b"}}
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(InputError, match="2 labels; expected a reward model, which has one"):
        VllmEngine(folder, head="reward")


def test_prompts_of_a_call_are_as_many_as_one_step_takes():
    assert passes_of([2, 3, 3, 9, 1], 8) == [slice(0, 3), slice(3, 4), slice(4, 5)]
    assert passes_of([], 8) == [] and passes_of([9] * 3, 8) == [slice(n, n + 1) for n in range(3)]
    assert passes_of([1] * 5, 8) == [slice(0, 5)]
