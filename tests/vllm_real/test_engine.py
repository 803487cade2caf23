"""The engine `vllm` on the real thing: greedy ids, seeds, likelihoods, copies, rewards; and nothing that is left."""

import os
import sys

import pytest
from support.checkpoints import write_hf
from support.real_vllm import (
    MARK,
    NEEDED,
    POSITIONS,
    SHAPE,
    SLOW,
    TOKENS,
    answers,
    greedy,
    greedy_of_transformers,
    marked,
)

from megatron_chimed.convert.checkpoint import hf_to_megatron, megatron_to_hf
from megatron_chimed.errors import InputError
from megatron_chimed.inference.open import open_engine
from megatron_chimed.inference.request import Request, SamplingParams

pytestmark = [NEEDED, SLOW]


@pytest.fixture(scope="module")
def engine(llama):
    """One copy, in the type in which the weights are stored."""
    with open_engine(f"vllm:{llama.export}", tokenizer=llama.renderer.tokenizer) as engine:
        yield engine


def test_greedy_ids_are_those_of_transformers_and_ours(llama, engine, case):
    case("greedy ids = transformers' = ours, float32 as stored (`--dtype auto`)")
    prompts = llama.prompts(30)
    expected = greedy_of_transformers(llama.export, prompts, TOKENS)
    found = [one.tokens for one in answers(engine, greedy(prompts, TOKENS), [2])]
    with open_engine(f"megatron:{llama.checkpoint}", tokenizer=llama.renderer.tokenizer) as ours:
        own = [one.tokens for one in answers(ours, greedy(prompts, TOKENS), [2])]
    equal = [sum(one == other for one, other in zip(found, those, strict=True)) for those in (expected, own)]
    assert equal == [30, 30]
    case(f"{equal[0]} of 30, {equal[1]} of 30 answers of {TOKENS} ids")


def test_a_stop_id_ends_an_answer_and_stays_in_it(llama, engine):
    prompts = llama.prompts(5)
    for prompt, free in zip(prompts, answers(engine, greedy(prompts, TOKENS), [2]), strict=True):
        stop = free.tokens[7]
        (found,) = answers(engine, greedy([prompt], TOKENS), [stop])
        assert found.finished and found.tokens == free.tokens[: free.tokens.index(stop) + 1]
        assert not free.finished and len(free.tokens) == TOKENS


def test_a_sample_follows_from_its_prompt_and_seed_whatever_is_asked_beside_it(llama, engine, case):
    case("seeded samples: a batch = alone = the batch reversed")
    limits = [{}, {"top_p": 0.5}, {"top_k": 3}, {"top_p": 0.9, "top_k": 50}]
    asked = [
        Request(prompt, SamplingParams(TOKENS, seed=(number * 7919) << 20, **limits[number % 4]))
        for number, prompt in enumerate(llama.prompts(16))
    ]
    batch = answers(engine, asked, [2])
    assert answers(engine, asked[::-1], [2])[::-1] == batch
    assert [answers(engine, [one], [2])[0] for one in asked] == batch
    assert len({tuple(one.tokens) for one in batch}) == 16
    case("16 of 16")


def test_many_prompts_with_seeds_at_once_end_no_engine(llama, engine, case):
    case("prompts of 16,000 tokens with seeds in one call: more than one step of the scheduler takes")
    asked = [Request([5 + number % 300] * 100, SamplingParams(4, seed=number)) for number in range(160)]
    assert all(len(one.tokens) == 4 for one in answers(engine, asked, []))
    case("160 answers")


def test_likelihoods_are_those_of_transformers_up_to_the_longest_pair(llama, engine, case):
    case("log-likelihoods = transformers', up to pairs as long as the context less one")
    prompts = llama.prompts(12)
    pairs = [(prompt[:-4], prompt[-4:]) for prompt in prompts]
    long = [3 + number % 400 for number in range(POSITIONS - 1)]
    pairs.append((long[:-3], long[-3:]))
    pairs.append((long[:5], long[5:]))
    with open_engine(f"hf:{llama.export}") as reference:
        expected = reference.loglikelihoods(pairs)
    found = engine.loglikelihoods(pairs)
    assert [greedy for _, greedy in found] == [greedy for _, greedy in expected]
    apart = max(abs(one - other) / max(1, abs(other)) for (one, _), (other, _) in zip(found, expected, strict=True))
    assert apart < 1e-4
    assert engine.max_pair == POSITIONS - 1
    with pytest.raises(InputError, match=f"pair 0 has {POSITIONS} tokens; expected 1 to {POSITIONS - 1}"):
        engine.loglikelihoods([(long, [5])])
    case(f"{len(pairs)} pairs, largest relative difference {apart:.0e}; one token more is one line")


def test_the_process_that_asks_is_as_it_was(engine, case):
    case("no vllm and no variable of its in the process that asks")
    assert "vllm" not in sys.modules
    assert not {"PYTORCH_NVML_BASED_CUDA_CHECK", "LD_PRELOAD", "LOCAL_WORLD_SIZE"} & os.environ.keys()
    case("none")


def test_two_copies_give_what_one_gives_and_end(llama, engine, mark, case):
    case("two copies: the same answers as one, and they end with the `with`")
    asked = [Request(prompt, SamplingParams(TOKENS, seed=n)) for n, prompt in enumerate(llama.prompts(9))]
    with open_engine(f"vllm:{llama.export}", data_parallel=2, tokenizer=llama.renderer.tokenizer) as copies:
        found, running = answers(copies, asked, [2]), len(marked(mark))
    left = marked(mark)
    assert found == answers(engine, asked, [2]) and running >= 4 and not left
    case(f"9 of 9; {running} processes, then {len(left)}")


def test_tensor_parallel_copies_give_what_one_rank_gives(llama, engine, mark, case, monkeypatch):
    case("`tensor_parallel: 2` in vLLM: greedy ids and likelihoods = one rank's; its processes end")
    monkeypatch.setenv("VLLM_CPU_OMP_THREADS_BIND", "nobind")  # it would give each rank a NUMA node of its own
    prompts = llama.prompts(20)
    pairs = [(prompt[:-4], prompt[-4:]) for prompt in prompts]
    with open_engine(f"vllm:{llama.export}", tensor_parallel=2, tokenizer=llama.renderer.tokenizer) as both:
        found, running = answers(both, greedy(prompts, TOKENS), [2]), len(marked(mark))
        scores = both.loglikelihoods(pairs)
    assert found == answers(engine, greedy(prompts, TOKENS), [2]) and running >= 3 and not marked(mark)
    for (one, first), (other, second) in zip(scores, engine.loglikelihoods(pairs), strict=True):
        assert one == pytest.approx(other, rel=1e-4) and first == second
    case(f"20 of 20; {running} processes, then 0")


def test_rewards_by_the_pooling_runner_are_ours(tmp_path, llama, mark, case):
    case("rewards by the pooling runner (`scorer: {engine: vllm}`) = ours = transformers'")
    hf = write_hf(tmp_path / "hf", reward=True, vocab_size=420, max_position_embeddings=POSITIONS, **SHAPE)
    hf_to_megatron(hf, tmp_path / "megatron", progress=False)
    megatron_to_hf(tmp_path / "megatron", tmp_path / "export", tokenizer=llama.export, progress=False)
    sequences = [[*prompt, 2] for prompt in llama.prompts(30)]
    sequences.append([3 + number % 400 for number in range(POSITIONS)])
    found = {}
    for name in (f"megatron:{tmp_path / 'megatron'}", f"hf:{tmp_path / 'export'}", f"vllm:{tmp_path / 'export'}"):
        with open_engine(name, head="reward") as scorer:
            found[name.split(":")[0]] = scorer.rewards(sequences)
    assert MARK in os.environ and max(found["vllm"]) - min(found["vllm"]) > 0.1
    apart = max(
        abs(one - other) for kind in ("megatron", "hf") for one, other in zip(found["vllm"], found[kind], strict=True)
    )
    assert apart < 1e-4
    case(f"31 sequences, one as long as the context; largest difference {apart:.0e}")
