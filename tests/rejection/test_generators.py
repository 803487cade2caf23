"""Generators: what is asked is what is answered, under the right key, from a real server on loopback and from vLLM's
interface; batches are the same in every run."""

import random
import sys
import types
from dataclasses import replace

import pytest
from support.candidates import make_candidate, make_prompt
from support.chat_server import ChatServer
from support.checkpoints import write_plain
from support.dialogues import make_renderer
from support.vllm_stand_in import parts_of, put_in_place

from megatron_chimed.convert.checkpoint import hf_to_megatron
from megatron_chimed.errors import InputError
from megatron_chimed.inference import vllm_engine
from megatron_chimed.inference.engine import Engine
from megatron_chimed.inference.request import Generated
from megatron_chimed.rejection.config import GeneratorOptions, Sampling
from megatron_chimed.rejection.engines import describe_sampling, open_generator
from megatron_chimed.rejection.generator import batches_left, build_requests, generate_into, sample
from megatron_chimed.rejection.store import CandidateStore
from megatron_chimed.steps import fingerprint
from megatron_chimed.text.tokenizer import load_tokenizer

PROMPTS = [make_prompt("您好", "请说", f"头痛{number * '很'}怎么办", id=f"p{number}") for number in range(7)]
SAMPLING = Sampling(n=3, max_tokens=9, temperature=0.7, top_p=0.8, top_k=5)


@pytest.fixture(scope="module")
def renderer(tmp_path_factory):
    return make_renderer("sentencepiece", tmp_path_factory.mktemp("tokenizer"))


@pytest.fixture(autouse=True)
def environment(monkeypatch):
    """No key, and no proxy between us and loopback."""
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")


def asked_of(renderer, prompts=PROMPTS, round=1, seed=(5, "sample", 1)):
    return build_requests(prompts, renderer, round=round, n=3, seed=seed)


class Echo(Engine):
    """Answers with what it was asked, in an order of its own; forgets what `lost` says."""

    def __init__(self, lost=lambda one: False):
        self.batches, self.lost = [], lost

    def generate(self, requests, stop):
        self.batches.append([one.params.seed for one in requests])
        answers = [
            (place, Generated([], True, f"{one.turns[-1].text} {one.params.seed}", 3))
            for place, one in enumerate(requests)
            if not self.lost(one)
        ]
        yield random.Random(0).sample(answers, len(answers))

    def close(self):
        pass


def test_a_seed_follows_from_round_prompt_and_sample_alone(renderer):
    seeds = {one.key: one.seed for one in asked_of(renderer)}
    assert len(set(seeds.values())) == len(seeds) == 21 and all(0 <= seed < 2**48 for seed in seeds.values())
    mixed = random.Random(1).sample(PROMPTS, 4)
    assert all(seeds[one.key] == one.seed for one in asked_of(renderer, mixed))
    others = {one.key[1:]: one.seed for one in asked_of(renderer, round=2, seed=(5, "sample", 2))}
    assert not set(others.values()) & set(seeds.values())


def test_an_interrupted_run_computes_the_same_batches_again_and_gives_the_same_answers(tmp_path, renderer):
    asked = asked_of(renderer)
    whole = Echo()
    with CandidateStore(tmp_path / "whole", "a") as store:
        generate_into(store, asked, whole, SAMPLING, renderer, 4)
        expected = store.candidates
    assert [key for batch in whole.batches for key in batch] == [one.seed for one in asked]
    for end in range(6):
        again, path = Echo(), tmp_path / f"killed{end}"
        with CandidateStore(path, "a") as store:
            for batch in list(batches_left(asked, store, 4))[:end]:
                store.append(sample(Echo(), batch, SAMPLING, renderer))
        with CandidateStore(path, "a") as store:
            generate_into(store, asked, again, SAMPLING, renderer, 4)
            assert again.batches == whole.batches[end:] and store.candidates == expected
    lengths = [len(one.tokens) for one in asked]
    assert lengths == sorted(lengths)


def test_answers_that_could_not_be_had_are_asked_for_again_and_nothing_else(tmp_path, renderer):
    asked = asked_of(renderer)
    lost = asked[5].seed
    with CandidateStore(tmp_path / "store", "a") as store:
        with pytest.raises(InputError, match="1 of 21 answers could not be had; run the command again"):
            generate_into(store, asked, Echo(lambda one: one.params.seed == lost), SAMPLING, renderer, 4)
        again = Echo()
        generate_into(store, asked, again, SAMPLING, renderer, 4)
    assert again.batches == [[lost]]


def behave(body, attempt):
    """The server refuses one answer, cuts another, and gives a third at the second attempt, so after the others."""
    question = body["messages"][-1]["content"]
    if question == "头痛怎么办" and attempt == 0:
        return 503
    kinds = {"头痛很怎么办": {"text": "", "refusal": "no"}, "头痛很很怎么办": {"text": "长", "finish_reason": "length"}}
    return kinds.get(question)


def test_a_server_gets_dialogue_and_sampling_and_its_answers_keep_their_keys(tmp_path, renderer):
    with ChatServer(behave) as server:
        options = GeneratorOptions(engine="openai", base_url=server.url, model="m1", concurrency=4)
        with open_generator(options, tmp_path, tmp_path, renderer.tokenizer) as engine:
            answers = sample(engine, asked_of(renderer), SAMPLING, renderer)
            found = {one.key: one for one in answers}
    assert set(found) == {one.key for one in asked_of(renderer)}
    for number, prompt in enumerate(PROMPTS):
        one = found[1, prompt.id, 2]
        if number == 1:
            assert one.response == ""
        elif number == 2:
            assert (one.response, one.finished) == ("长", False)
        else:
            assert (one.response, one.finished) == (f"m1 答：{prompt.turns[-1].text}", True)
            assert one.num_tokens > 0
    seeds = {one.seed for one in asked_of(renderer)}
    assert {body["seed"] for body in server.requests} == seeds
    for body in server.requests:
        assert [message["role"] for message in body["messages"]] == ["user", "assistant", "user"]
        assert (body["max_tokens"], body["temperature"], body["top_p"], body["top_k"]) == (9, 0.7, 0.8, 5)


def test_servers_share_a_round_and_one_that_is_gone_changes_no_answer(tmp_path, renderer):
    def by_seed(body, attempt):
        return {"text": f"{body['seed']}"}

    def answers(*urls):
        options = GeneratorOptions(engine="openai", base_url=list(urls), model="m1", concurrency=4)
        with open_generator(options, tmp_path, tmp_path, renderer.tokenizer) as engine:
            return {one.key: one for one in sample(engine, asked_of(renderer), SAMPLING, renderer)}

    def dying(body, attempt):
        return by_seed(body, attempt) if next(answered, None) else "drop"

    answered = iter([True] * 5)
    with ChatServer(by_seed) as one, ChatServer(by_seed) as other:
        alone, shared = answers(one.url), answers(other.url, one.url)
    with (
        ChatServer(by_seed) as one,
        ChatServer(dying) as dead,
    ):
        left = answers(dead.url, one.url)
    assert alone == shared == left and len(other.requests) > 5 and dead.num_answered.total() == 5
    assert {int(found.response) for found in alone.values()} == {asked.seed for asked in asked_of(renderer)}


def test_the_first_of_several_servers_stands_for_all_in_what_decides_the_answers():
    def told(base_url):
        return describe_sampling(GeneratorOptions(engine="openai", base_url=base_url, model="m1"), SAMPLING)

    assert told("http://a/v1") == told(["http://a/v1"]) == told(["http://a/v1", "http://b/v1"]) != told("http://b/v1")


def test_without_vllm_the_error_is_one_line(tmp_path, renderer, monkeypatch):
    monkeypatch.setitem(sys.modules, "vllm", None)
    monkeypatch.setattr(vllm_engine.importlib.util, "find_spec", lambda name: None)
    (tmp_path / "weights").write_bytes(b"x")
    with pytest.raises(InputError, match="vllm is not installed; install the extra `vllm`") as error:
        open_generator(GeneratorOptions(engine="vllm"), tmp_path, tmp_path / "hf", renderer.tokenizer)
    assert "\n" not in str(error.value)


def stand_in(monkeypatch, renderer) -> list:
    """Modules with the names of vLLM's that we call; the engine answers with the prompt's length and the seed."""
    calls = []

    class LLM:
        def __init__(self, **settings):
            calls.append(settings)
            self.llm_engine = parts_of()

        def generate(self, prompts, params, use_tqdm):
            calls.extend(params)
            eos = renderer.tokenizer.eos_id
            return [
                types.SimpleNamespace(
                    outputs=[
                        types.SimpleNamespace(
                            token_ids=tuple(
                                renderer.tokenizer.encode(f"{len(prompt['prompt_token_ids'])}号{param['seed']}")
                            )
                            + (eos,),
                            finish_reason="stop" if param["seed"] % 2 else "length",
                        )
                    ]
                )
                for prompt, param in zip(prompts, params, strict=True)
            ]

    put_in_place(monkeypatch, LLM)
    return calls


@pytest.mark.parametrize("copies", [1, 2])
def test_vllm_gets_tokens_seeds_and_settings_and_answers_keep_their_keys(tmp_path, renderer, monkeypatch, copies):
    calls = stand_in(monkeypatch, renderer)
    checkpoint = tmp_path / "run"
    checkpoint.mkdir()
    (checkpoint / "weights").write_bytes(b"x")
    export = tmp_path / f"hf-{fingerprint(checkpoint)[:12]}"
    export.mkdir()
    (export / "config.json").write_text('{"architectures": ["LlamaForCausalLM"]}')
    options = GeneratorOptions(engine="vllm", tensor_parallel=2, data_parallel=copies, dtype="bfloat16")
    asked = asked_of(renderer)
    with open_generator(options, checkpoint, tmp_path / "hf", renderer.tokenizer) as engine:
        answers = sample(engine, asked, replace(SAMPLING, top_k=0), renderer)
        found = {one.key: one for one in answers}
    assert len(found) == 21
    for one in asked:
        assert found[one.key].response == f"{len(one.tokens)}号{one.seed}"
        assert found[one.key].finished == bool(one.seed % 2)
    settings = {"model": str(export), "dtype": "bfloat16", "tensor_parallel_size": 2}
    settings["skip_tokenizer_init"] = True
    assert calls[:copies] == [settings] * copies
    for params in calls[copies:]:
        assert params["stop_token_ids"] == [renderer.tokenizer.eos_id] and params["top_k"] == -1
        assert (params["max_tokens"], params["temperature"], params["top_p"]) == (9, 0.7, 0.8)


def test_an_export_has_the_loops_tokenizer_where_that_of_the_training_is_not_found(tmp_path, renderer, monkeypatch):
    stand_in(monkeypatch, renderer)
    model = tmp_path / "sentencepiece/tokenizer.model"
    make_renderer("sentencepiece", tmp_path)
    hf = write_plain(tmp_path / "plain", vocab_size=renderer.tokenizer.vocab_size)
    hf_to_megatron(hf, tmp_path / "run", progress=False)
    options, place = GeneratorOptions(engine="vllm"), tmp_path / "hf"
    with open_generator(options, tmp_path / "run", place, renderer.tokenizer, str(model)):
        assert load_tokenizer(next(tmp_path.glob("hf-*"))).encode("头痛") == renderer.tokenizer.encode("头痛")


def test_each_copy_of_the_model_gets_gpus_of_its_own(monkeypatch):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert vllm_engine.split_gpus(2, 2) == [["0", "1"], ["2", "3"]]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,5,7")
    assert vllm_engine.split_gpus(3, 1) == [["4"], ["5"], ["7"]]
    with pytest.raises(InputError, match="2 x 2 GPUs are asked for, CUDA_VISIBLE_DEVICES names 3"):
        vllm_engine.split_gpus(2, 2)


def test_a_candidate_is_known_by_what_was_asked(renderer):
    one = asked_of(renderer)[4]
    assert one.candidate(Generated([], True, "x", 1), renderer).key == one.key == (1, one.prompt.id, one.key[2])
    assert make_candidate(one.prompt.id, one.key[2]).key == one.key
