"""`vllm serve` of exports: the ids of the training from the export's own chat template, and the engine `openai`."""

import contextlib
import json
import threading
from dataclasses import replace

import pytest
from support.job import Job, write_corpus
from support.judging import candidates_of, write_rubric
from support.real_vllm import NEEDED, SLOW, TOKENS, answers, asked_of, messages_of, serve, write_llama

from megatron_chimed.convert.checkpoint import megatron_to_hf
from megatron_chimed.errors import InputError
from megatron_chimed.inference.open import open_engine
from megatron_chimed.inference.request import Request
from megatron_chimed.inference.thinking import spell
from megatron_chimed.judging import judge
from megatron_chimed.judging.judge import score_by_judges
from megatron_chimed.judging.options import JudgeOptions
from megatron_chimed.records import Prompt, Turn

pytestmark = [NEEDED, SLOW]
HOSTILE = [
    (Turn("user", " 头痛\n\n三次  "),),
    (Turn("user", "🩺 血压 37.5℃？"), Turn("assistant", " 休息 "), Turn("user", "再见")),
    (Turn("system", "你是医生"), Turn("user", "头痛")),
]


@pytest.fixture(scope="module")
def pair(llama, tmp_path_factory):
    """Two servers of one export."""
    folder = tmp_path_factory.mktemp("servers")
    with contextlib.ExitStack() as stack:
        servers = [stack.enter_context(serve(llama.export, folder / f"{number}.log")) for number in range(2)]
        for one in servers:
            one.wait_until_ready()
        yield servers


def ids_agree(model, server) -> int:
    """How many dialogues the server turns into the ids of the training; all of them."""
    dialogues = [*model.dialogues(20), *HOSTILE]
    for turns in dialogues:
        assert server.tokenize(messages_of(turns)) == model.renderer.render_prompt(turns).tolist()
    return len(dialogues)


def test_a_server_of_a_llama_shaped_export_makes_the_ids_of_the_training(llama, pair, case):
    case("LLaMA-shaped export served with its own chat_template.jinja: `/tokenize` = the training's ids")
    case(f"{ids_agree(llama, pair[0])} dialogues, with spaces, newlines, emoji, a system turn")


def test_a_server_of_a_qwen3_shaped_export_makes_the_ids_of_the_training(qwen3, tmp_path, case):
    case("Qwen3-shaped export served with its own chat_template.jinja: `/tokenize` = the training's ids")
    with serve(qwen3.export, tmp_path / "log") as server:
        server.wait_until_ready()
        case(f"{ids_agree(qwen3, server)} dialogues")


def texts(urls: list[str], requests: list[Request], name: str = "chimed") -> list[str]:
    with open_engine(f"openai:{name}", base_url=urls, concurrency=4) as engine:
        return [one.text for one in answers(engine, requests, [])]


def test_the_engine_openai_gives_the_answers_of_the_checkpoint(llama, pair, case):
    case("engine `openai` against `vllm serve`: greedy texts = our checkpoint's, seeds: together = alone")
    requests = asked_of(llama, 20, temperature=0.0)
    with open_engine(f"megatron:{llama.checkpoint}", tokenizer=llama.renderer.tokenizer) as ours:
        expected = [spell(one.tokens, llama.renderer).strip() for one in answers(ours, requests, [2])]
    assert texts([pair[0].url], requests) == expected
    seeded = asked_of(llama, 12, temperature=0.8, top_p=0.9)
    together = texts([pair[0].url], seeded)
    assert [texts([pair[0].url], [one])[0] for one in seeded] == together and len(set(together)) == 12
    case("20 of 20; 12 of 12")


def test_two_servers_give_what_one_gives_and_one_does_the_work_of_one_that_is_killed(llama, pair, case):
    case("two servers (`base_url` a list), one killed with -9 in the middle: the answers of one server")
    seeded = asked_of(llama, 60)
    expected = texts([pair[0].url], seeded)
    assert texts([one.url for one in pair], seeded) == expected
    killing = threading.Timer(1.0, pair[1].kill)
    with open_engine("openai:chimed", base_url=[pair[1].url, pair[0].url], concurrency=2) as engine:
        killing.start()
        found = answers(engine, seeded, [])
        killing.join()
    assert engine.api.retried.total() >= 1, "it was killed when all was done"
    assert [one.text for one in found] == expected
    case(f"60 of 60; {engine.api.retried.total()} tried again")


def test_a_judge_behind_a_server_scores_by_the_verdicts_that_can_be_read_in_what_it_writes(tmp_path, case, monkeypatch):
    case("scorer `judge`, a random model: as text nothing is readable, one line; `json_schema`: all; again: no request")
    model = write_llama(tmp_path, 4096)
    prompts = {f"p{number}": Prompt(f"p{number}", "test", turns) for number, turns in enumerate(model.dialogues(6))}
    candidates = candidates_of({name: ["多喝水", "去神经内科"] for name in prompts})
    rubric = write_rubric(tmp_path / "rubric.yaml")
    spaceless = json.dumps({"backend": "xgrammar", "disable_any_whitespace": True})  # else it writes spaces for ever
    with serve(model.export, tmp_path / "log", "--structured-outputs-config", spaceless) as server:
        server.wait_until_ready()
        options = JudgeOptions(rubric=rubric, model="chimed", base_url=server.url, max_tokens=TOKENS, concurrency=4)
        with pytest.raises(InputError, match=r"none of 12 answers has all of its verdicts \(chimed: 36 unreadable\)"):
            score_by_judges(options, candidates, prompts, tmp_path / "text.jsonl")
        monkeypatch.delitem(judge.FORM["properties"], "explanation")  # that of a random model need not end
        monkeypatch.setitem(judge.FORM, "required", ["criteria_met"])
        asked = replace(options, response_format="json_schema")
        scores, figures = score_by_judges(asked, candidates, prompts, tmp_path / "log.jsonl")
    told = figures["judges"]["chimed"]
    assert set(told["verdicts"]) <= {"met", "not met"} and sum(told["verdicts"].values()) == 36
    assert None not in scores.values() and told["prompt_tokens"] > 36 * 100
    assert score_by_judges(asked, candidates, prompts, tmp_path / "log.jsonl") == (
        scores,
        figures,
    )  # of no server any more
    case(f"36 of 36 unreadable; then {told['verdicts']}; the same")


def test_vllm_serves_adapters_as_they_were_trained(llama, tmp_path, case):
    case("adapters (`--enable-lora`): greedy texts = `megatron:ADAPTER`, and not the base's")
    tokens = write_corpus(tmp_path, ids=llama.renderer.tokenizer.vocab_size)
    job = Job(tmp_path, None, {"data-path": str(tokens), "lr": 3e-2}, {"lora": {"rank": 8, "alpha": 32}})
    job.model = llama.checkpoint / "model.yaml"
    start = ["--load", llama.checkpoint, "--finetune", "--tokenizer-type", "NullTokenizer", "--train-iters", 10]
    job.run(*start, "--save", tmp_path / "lora", ranks=1)
    megatron_to_hf(tmp_path / "lora", tmp_path / "peft", tokenizer=llama.export, progress=False)
    requests = asked_of(llama, 12, temperature=0.0)
    with open_engine(f"megatron:{tmp_path / 'lora'}", tokenizer=llama.renderer.tokenizer) as ours:
        expected = [spell(one.tokens, llama.renderer).strip() for one in answers(ours, requests, [2])]
    words = ["--enable-lora", "--max-lora-rank", 8, "--lora-modules", f"adapted={tmp_path / 'peft'}"]
    with serve(llama.export, tmp_path / "log", *words) as server:
        server.wait_until_ready()
        found, base = texts([server.url], requests, "adapted"), texts([server.url], requests)
    differ = sum(one != other for one, other in zip(found, base, strict=True))
    assert found == expected and differ > 6
    case(f"12 of 12; {differ} of 12 are others than the base's")
