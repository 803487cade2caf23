"""The engine against transformers on the converted model, on one and two ranks; what it refuses; how it ends."""

import json
import os
import random
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from support.checkpoints import CONFIG, KINDS, write_hf, write_plain
from support.forked import ON_CPU
from support.paths import TESTS
from support.processes import alive, wait_until_ended
from support.reference import chi_square_z
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from megatron_chimed.convert.checkpoint import hf_to_megatron
from megatron_chimed.errors import InputError
from megatron_chimed.inference.megatron_engine import MegatronEngine as Engine
from megatron_chimed.inference.request import Generated, Request, SamplingParams
from megatron_chimed.inference.sampling import draw, uniforms

pytestmark = pytest.mark.usefixtures("one_thread")
VOCAB, POSITIONS = CONFIG["vocab_size"], CONFIG["max_position_embeddings"]


def sequences(number: int, shortest: int, longest: int, seed: int = 0) -> list[list[int]]:
    chosen = random.Random(seed)
    return [[chosen.randrange(VOCAB) for _ in range(chosen.randint(shortest, longest))] for _ in range(number)]


PROMPTS = sequences(12, 1, 40)


@pytest.fixture(scope="module", params=[(1, "tied", "linear rope"), (2, "gqa")], ids=["TP1", "TP2"])
def served(request, tmp_path_factory):
    """(engine, the same model in transformers)."""
    folder, (ranks, *kinds) = tmp_path_factory.mktemp("lm"), request.param
    write_hf(folder / "hf", **{key: value for kind in kinds for key, value in KINDS[kind].items()})
    hf_to_megatron(folder / "hf", folder / "megatron", progress=False)
    model = AutoModelForCausalLM.from_pretrained(folder / "hf", dtype=torch.float32).eval()
    model.generation_config.eos_token_id, model.generation_config.pad_token_id = None, 0
    with Engine(folder / "megatron", tensor_parallel=ranks, progress=False) as engine:
        yield engine, model


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    folder = tmp_path_factory.mktemp("plain")
    hf_to_megatron(write_plain(folder / "hf"), folder / "megatron", progress=False)
    return folder / "megatron"


def generated(engine: Engine, requests: list[Request], stop=(), batch_size: int = 16) -> list[Generated]:
    engine.batch_size = batch_size
    done = [pair for batch in engine.generate(requests, stop) for pair in batch]
    assert sorted(index for index, _ in done) == list(range(len(requests)))
    return [sample for _, sample in sorted(done, key=lambda pair: pair[0])]


def greedy_by_transformers(model, prompt: list[int], number: int, **more) -> list[int]:
    ids = torch.tensor([prompt])
    whole = model.generate(ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=number, **more)
    return whole[0, len(prompt) :].tolist()


@torch.no_grad()
def sample_slowly(model, request: Request) -> list[int]:
    """A forward pass of transformers over all tokens for each new one, and the same draw."""
    tokens, uniform = list(request.prompt), uniforms(request.params.seed, request.params.max_tokens)
    settings = [
        torch.tensor([x])
        for x in (float(request.params.temperature), request.params.top_k, float(request.params.top_p))
    ]
    for step in range(request.params.max_tokens):
        logits = model(torch.tensor([tokens])).logits[:, -1]
        tokens.append(draw(logits, uniform[step : step + 1], *settings).item())
    return tokens[len(request.prompt) :]


def mixed_requests(number: int = 24) -> list[Request]:
    """Samples of prompts of many lengths, with settings of their own; three of each prompt."""
    prompts = [prompt for prompt in PROMPTS for _ in range(3)][:number]
    settings = [{"temperature": 0.3}, {"temperature": 0.5, "top_p": 0.6}, {"temperature": 1.0, "top_k": 4}]
    return [
        Request(prompt, SamplingParams(5 + 3 * (i % 4), seed=i, **settings[i % 3])) for i, prompt in enumerate(prompts)
    ]


def test_greedy_text_is_transformers_for_prompts_of_any_length(served):
    engine, model = served
    found = generated(engine, [Request(prompt, SamplingParams(20, temperature=0)) for prompt in PROMPTS], batch_size=5)
    assert [sample.tokens for sample in found] == [greedy_by_transformers(model, p, 20) for p in PROMPTS]
    assert not any(sample.finished for sample in found)


def test_a_sample_is_the_slow_twins_whatever_company_it_has(served):
    engine, model = served
    requests = mixed_requests()
    expected = [sample_slowly(model, request) for request in requests]
    assert [sample.tokens for sample in generated(engine, requests)] == expected
    assert len({tuple(tokens) for tokens in expected}) > 20  # the settings do leave a choice
    for batch_size in (1, 7):
        assert [sample.tokens for sample in generated(engine, requests, batch_size=batch_size)] == expected
    backwards = [sample.tokens for sample in generated(engine, requests[::-1])]
    assert backwards[::-1] == expected


def test_ids_that_may_not_be_sampled_are_not_however_likely_they_are(served, monkeypatch):
    engine, model = served
    limit = 60  # of 103
    requests = mixed_requests() + [Request(prompt, SamplingParams(12, temperature=0)) for prompt in PROMPTS]
    pairs = [(tokens[:4], tokens[4:]) for tokens in sequences(6, 6, 20, seed=4)]
    scores = engine.loglikelihoods(pairs)
    assert sum(token >= limit for sample in generated(engine, requests) for token in sample.tokens) > 100
    monkeypatch.setattr(engine, "sampled_ids", limit)
    found = [sample.tokens for sample in generated(engine, requests)]
    assert max(map(max, found)) < limit and engine.loglikelihoods(pairs) == scores
    assert list(engine.stream(requests[-1], [])) == found[-1]
    for prompt, tokens in zip(PROMPTS, found[-len(PROMPTS) :], strict=True):
        assert tokens == greedy_by_transformers(model, prompt, 12, suppress_tokens=list(range(limit, VOCAB)))


def test_a_stop_token_ends_a_sample_and_its_row_leaves_the_batch(served):
    engine, model = served
    whole = {tuple(p): greedy_by_transformers(model, p, 20) for p in PROMPTS}
    stop = [whole[tuple(PROMPTS[0])][3], whole[tuple(PROMPTS[5])][0], 101]
    found = generated(engine, [Request(prompt, SamplingParams(20, temperature=0)) for prompt in PROMPTS], stop)
    for prompt, sample in zip(PROMPTS, found, strict=True):
        ends = [place for place, token in enumerate(whole[tuple(prompt)]) if token in stop]
        assert sample.tokens == whole[tuple(prompt)][: ends[0] + 1 if ends else 20]
        assert sample.finished == bool(ends)
    assert len(found[0].tokens) <= 4 and len(found[5].tokens) == 1
    assert len({len(sample.tokens) for sample in found}) > 2


def test_an_answer_ends_where_the_models_positions_do(served):
    engine, model = served
    prompts = sequences(3, POSITIONS - 6, POSITIONS - 1, seed=3)
    found = generated(engine, [Request(prompt, SamplingParams(50, temperature=0)) for prompt in prompts])
    for prompt, sample in zip(prompts, found, strict=True):
        assert sample.tokens == greedy_by_transformers(model, prompt, POSITIONS - len(prompt))
        assert not sample.finished


def test_frequencies_fit_the_softmax_and_no_token_comes_from_outside(served):
    engine, model = served
    prompt, number = PROMPTS[0], 3000
    with torch.no_grad():
        logits = model(torch.tensor([prompt])).logits[0, -1].double()

    def counts(**settings) -> list[int]:
        requests = [Request(prompt, SamplingParams(1, seed=seed, **settings)) for seed in range(number)]
        tokens = [sample.tokens[0] for sample in generated(engine, requests, batch_size=1000)]
        return torch.bincount(torch.tensor(tokens), minlength=VOCAB).tolist()

    found = counts(temperature=0.3)
    assert len(found) == VOCAB  # padding is never drawn
    assert abs(chi_square_z(found, (number * (logits / 0.3).softmax(-1)).tolist())) < 4
    assert chi_square_z(found, (number * (logits / 0.4).softmax(-1)).tolist()) > 8
    probability, order = (logits / 0.3).softmax(-1).sort(descending=True)
    inside = order[: int((probability.cumsum(-1) < 0.5).sum()) + 1].tolist()
    found = counts(temperature=0.3, top_p=0.5)
    assert {token for token, count in enumerate(found) if count} == set(inside)


@torch.no_grad()
def test_log_likelihoods_are_transformers(served):
    engine, model = served
    pairs = [(tokens[: len(tokens) // 2], tokens[len(tokens) // 2 :]) for tokens in sequences(30, 2, 60, seed=1)]
    context = PROMPTS[3]
    pairs += [(context, [token]) for token in range(4)]  # one input, four answers
    pairs += [(context, greedy_by_transformers(model, context, 4))]
    pairs += [(tokens[:1], tokens[1:]) for tokens in sequences(1, POSITIONS + 1, POSITIONS + 1, seed=2)]
    pairs += [(context, tokens) for context in PROMPTS[2:5] for tokens in sequences(5, 1, 9, seed=3)]  # they share it
    engine.batch_size = 8
    found = engine.loglikelihoods(pairs)
    for (context, continuation), (score, greedy) in zip(pairs, found, strict=True):
        logits = model(torch.tensor([context + continuation[:-1]])).logits[0, len(context) - 1 :]
        target = torch.tensor(continuation)
        assert score == pytest.approx(logits.log_softmax(-1).gather(-1, target[:, None]).sum().item(), abs=1e-4)
        assert greedy == bool((logits.argmax(-1) == target).all())
    assert [greedy for _, greedy in found].count(True) >= 1


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda e: e.generate([Request([1], SamplingParams(1)), Request([], SamplingParams(1))], []),
            "request 1 has 0 tokens",
        ),
        (
            lambda e: e.generate([Request([1] * POSITIONS, SamplingParams(1))], []),
            f"request 0 has {POSITIONS} tokens; expected 1 to",
        ),
        (lambda e: e.generate([Request([1, VOCAB], SamplingParams(1))], []), f"request 0 has the token {VOCAB}"),
        (lambda e: e.generate([Request([1], SamplingParams(0, top_p=0.0))], []), "max_tokens is 0; .*top_p is 0.0"),
        (lambda e: e.generate([Request([1], SamplingParams(1, temperature=float("nan")))], []), "temperature is nan"),
        (lambda e: e.generate([Request([1], SamplingParams(1, seed=-1))], []), "seed is -1"),
        (lambda e: e.loglikelihoods([([1], [2]), ([1], [])]), "pair 1: an empty side"),
        (lambda e: e.loglikelihoods([([1] * POSITIONS, [2, 3])]), f"pair 0 has {POSITIONS + 2} tokens"),
        (lambda e: e.rewards([[1]]), "rewards need a model with the head 'reward'"),
    ],
)
def test_bad_input_is_refused_by_its_number_and_the_engine_goes_on(served, call, message):
    engine, _ = served
    with pytest.raises(InputError, match=message):
        call(engine)
    assert len(generated(engine, [Request([1], SamplingParams(1))])) == 1


@torch.no_grad()
def test_rewards_are_transformers(tmp_path):
    hf_to_megatron(write_hf(tmp_path / "hf", reward=True), tmp_path / "megatron", progress=False)
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path / "hf", dtype=torch.float32).eval()
    asked = [[token or 1 for token in tokens] for tokens in sequences(20, 1, POSITIONS)]  # 0 pads there
    asked += [asked[0][:40] + tokens[:9] for tokens in asked[1:10]]  # answers to one prompt
    with Engine(tmp_path / "megatron", tensor_parallel=2, batch_size=6, progress=False) as engine:
        found = engine.rewards(asked)
        with pytest.raises(InputError, match="generation need"):
            engine.generate([Request([1], SamplingParams(1))], [])
    expected = [model(torch.tensor([tokens])).logits.item() for tokens in asked]
    assert found == pytest.approx(expected, abs=1e-4)
    assert max(expected) - min(expected) > 0.5


def test_a_checkpoint_that_cannot_be_served_is_one_line(tmp_path):
    with pytest.raises(InputError, match="no such folder"):
        Engine(tmp_path / "none", progress=False)
    hf_to_megatron(write_plain(tmp_path / "hf", **KINDS["mqa"]), tmp_path / "one group", progress=False)
    with pytest.raises(InputError, match=r"--num-query-groups 1 is no multiple of TP \(2\)"):
        Engine(tmp_path / "one group", tensor_parallel=2, progress=False)


@pytest.mark.real_processes
def test_a_killed_rank_is_one_line_and_takes_the_others_along(checkpoint):
    with Engine(checkpoint, tensor_parallel=2, batch_size=4, progress=False) as engine:
        ranks = [process.pid for process in engine._workers._processes]
        requests = [Request([1, 2], SamplingParams(POSITIONS, seed=seed)) for seed in range(4000)]
        died = r"^inference rank [01] (was killed by signal 9|ended with code)[^\n]*$"
        with pytest.raises(ChildProcessError, match=died):
            for number, _ in enumerate(engine.generate(requests, [])):
                if number == 2:
                    os.kill(ranks[1], signal.SIGKILL)
        wait_until_ended(ranks)


ENDLESS = """
import sys
from megatron_chimed.inference.megatron_engine import MegatronEngine as Engine
from megatron_chimed.inference.request import Request, SamplingParams
engine = Engine(sys.argv[1], tensor_parallel=2, batch_size=4, progress=False)
print(engine._workers._folder.name, *(process.pid for process in engine._workers._processes), flush=True)
for batch in engine.generate([Request([1, 2], SamplingParams(120, seed=seed)) for seed in range(100000)], []):
    print("batch", flush=True)
"""


@pytest.mark.real_processes
def test_the_ranks_end_with_a_parent_that_is_killed(checkpoint):
    command = [sys.executable, "-c", ENDLESS, checkpoint]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as parent:
        folder, *ranks = parent.stdout.readline().split()
        ranks = [int(rank) for rank in ranks]
        assert parent.stdout.readline() == "batch\n" and len(ranks) == 2 and all(map(alive, ranks))
        assert Path(folder).is_dir()
        parent.kill()
    wait_until_ended(ranks)
    assert not Path(folder).exists()


def test_a_generation_in_the_middle_of_training_changes_no_loss():
    worker = TESTS / "support" / "generation_worker.py"
    environment = os.environ | ON_CPU | {"PYTHONPATH": str(TESTS)}
    done = subprocess.run([sys.executable, worker], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-4000:]
    line = next(line for line in done.stdout.splitlines() if line.startswith("FIGURES "))
    figures = json.loads(line.removeprefix("FIGURES "))
    assert figures.pop("control_global_draw") is False and figures.pop("control_eval") is False
    assert figures == {"generation": True, "left_alone": True, "listeners": True, "weights_move": True}
