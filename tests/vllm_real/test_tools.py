"""`chimed evaluate --model vllm:` and `chimed chat --serve` on the real thing."""

import contextlib
import os
import signal
import socket
import subprocess

from openai import OpenAI
from support.corpora import command
from support.exam_files import page, write_ccks, write_ceval, write_lines
from support.published_sets import write_cmb, write_promptcblue
from support.real_vllm import NEEDED, SLOW, Served, answers, greedy, messages_of, write_llama

from megatron_chimed.evaluation.backends.models import EngineOptions, open_model
from megatron_chimed.evaluation.run import Settings, evaluate_model
from megatron_chimed.inference.open import open_engine
from megatron_chimed.inference.thinking import spell
from megatron_chimed.jsonl import read_json_lines
from megatron_chimed.text.template import Template

pytestmark = [NEEDED, SLOW]


def test_an_evaluation_gives_the_figures_of_transformers(tmp_path, mark, case):
    case("`evaluate --model vllm:` = `hf:`: entities, choice of one or several letters, PromptCBLUE, texts, a scale")
    pages = write_lines(tmp_path / "chimed.jsonl", [page(number, "建议检查血压，服用三次。") for number in range(8)])
    flags = [f"ceval={write_ceval(tmp_path / 'ceval', 5)}", f"chimed={pages}", "scale=example"]
    flags.append(f"ccks2019={write_ccks(tmp_path / 'ccks', 4)}")
    flags += [f"cmb={write_cmb(tmp_path / 'cmb', 4)}", f"promptcblue={write_promptcblue(tmp_path / 'promptcblue', 1)}"]
    model_folder = tmp_path / "model"
    model_folder.mkdir()
    export, results = write_llama(model_folder, positions=2048).export, {}
    for kind in ("hf", "vllm"):
        model = open_model(f"{kind}:{export}", EngineOptions(batch_size=4), Template())
        settings = Settings(runs=1, max_new_tokens=16)
        results[kind] = evaluate_model(model, flags, tmp_path / kind, settings, Template(), progress=False)
    one, other = (results[kind]["tasks"] for kind in ("hf", "vllm"))
    assert {name: task["metrics"] for name, task in one.items()} == {name: t["metrics"] for name, t in other.items()}
    assert not any(task["cut_prompts"] for task in one.values()), "what is cut loses two tokens more in vLLM"
    samples = 0
    for path in sorted((tmp_path / "hf/samples").iterdir()):
        rows = zip(read_json_lines(path), read_json_lines(tmp_path / "vllm/samples" / path.name), strict=True)
        samples += sum(1 for _ in rows)
    case(f"{len(one)} tasks, {samples} samples: every figure equal")


def test_chat_serve_gives_the_answers_of_the_folder_and_ends_with_the_command(llama, mark, case, tmp_path):
    case("`chat --serve` starts vLLM: greedy texts = the folder's in transformers (float32 as stored); SIGTERM ends it")
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    words = command("chat.py", "--model", f"hf:{llama.export}", "--serve", "--port", port)
    dialogues = llama.dialogues(10)
    prompts = [llama.renderer.render_prompt(turns).tolist() for turns in dialogues]
    with open_engine(f"hf:{llama.export}", tokenizer=llama.renderer.tokenizer) as reference:
        expected = [spell(one.tokens, llama.renderer).strip() for one in answers(reference, greedy(prompts, 40), [2])]
    with open(tmp_path / "log", "wb") as log, subprocess.Popen(words, stdout=log, stderr=log) as program:
        try:
            Served(program, port, tmp_path / "log").wait_until_ready()
            client = OpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key="none", max_retries=0)
            (name,) = (model.id for model in client.models.list())
            found = []
            for turns in dialogues:
                asked = {"model": name, "messages": messages_of(turns), "max_tokens": 40, "temperature": 0}
                found.append(client.chat.completions.create(**asked).choices[0].message.content.strip())
        finally:
            program.send_signal(signal.SIGTERM)
            with contextlib.suppress(subprocess.TimeoutExpired):
                program.wait(60)
    assert found == expected and "by vllm" in (tmp_path / "log").read_text()
    assert program.returncode in (0, 1) and os.path.exists(llama.export)
    case("10 of 10; nothing left")
