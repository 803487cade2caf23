"""Talking to real models: a folder and its checkpoint say the same, in a terminal and over a pipe; the served form."""

import contextlib
import fcntl
import inspect
import json
import os
import re
import select
import signal
import socket
import subprocess
import sys
import termios
from collections.abc import Iterator
from pathlib import Path

import pytest
from openai import OpenAI
from support.checkpoints import CONFIG, write_hf
from support.corpora import command
from support.dialogues import make_tokenizer
from support.exam_hf import write_answering_hf
from transformers import AutoTokenizer

from megatron_chimed.chat import serve
from megatron_chimed.chat.conversation import Conversation
from megatron_chimed.convert.checkpoint import hf_to_megatron
from megatron_chimed.convert.tokenizer_files import copy_tokenizer
from megatron_chimed.errors import InputError
from megatron_chimed.inference.open import open_engine, split_name, tokenizer_of
from megatron_chimed.inference.request import Request, SamplingParams
from megatron_chimed.records import Turn
from megatron_chimed.text.renderer import Renderer
from megatron_chimed.text.template import PlainTexts, Template
from megatron_chimed.text.tokenizer import load_tokenizer

pytestmark = pytest.mark.usefixtures("one_thread")
QUESTIONS = ["头痛三次", "</s>服用什么", "血压 37.5℃？", "医生"]
POSITIONS = 20_000  # an answer that runs to their end takes minutes


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """hf and megatron: the same model, which never ends an answer by itself; small, so that long answers are cheap."""
    folder = tmp_path_factory.mktemp("model")
    write_answering_hf(folder / "hf", POSITIONS)
    hf_to_megatron(folder / "hf", folder / "megatron", progress=False)
    return folder


def open_model(name, tokenizer=None, **options):
    """(engine, tokenizer) as `chimed chat` opens them."""
    split_name(name, serve.CHAT_KINDS)
    ids = tokenizer_of(name, tokenizer)
    return open_engine(name, tokenizer=ids, **options), ids


@pytest.fixture(scope="module")
def models(folder):
    """Both, open."""
    hf = open_model(f"hf:{folder / 'hf'}", dtype="float32")
    tokenizer = str(folder / "hf/tokenizer.model")
    megatron = open_model(f"megatron:{folder / 'megatron'}", tokenizer=tokenizer, tensor_parallel=2)
    yield hf, megatron
    for model, _ in (hf, megatron):
        model.close()


def answers(model, tokenizer, **options) -> list[str]:
    talk = Conversation(
        model, Renderer(Template(), tokenizer), SamplingParams(40, **{"temperature": 0.0, **options}), "建议"
    )
    return ["".join(talk.answer(question)) for question in QUESTIONS]


@pytest.mark.parametrize("options", [{}, {"temperature": 0.5, "seed": 3}])
def test_a_folder_and_its_checkpoint_give_the_same_answers(models, options):
    one, other = (answers(model, tokenizer, **options) for model, tokenizer in models)
    assert one == other and len(set(one)) == len(QUESTIONS) and all(one)
    assert one != answers(*models[0], temperature=0.5, seed=4)


def test_the_engine_streams_what_it_generates_and_a_stream_can_be_left_at_any_token(models):
    (hf, _), (engine, _) = models
    request = Request([1, 300, 301], SamplingParams(20, temperature=0.7, seed=5))
    ((((_, whole),),)) = engine.generate([request], [])
    assert list(engine.stream(request, [])) == list(hf.stream(request, [])) == whole.tokens
    stop = whole.tokens[4]
    upto = whole.tokens[: whole.tokens.index(stop) + 1]
    assert list(engine.stream(request, [stop])) == list(hf.stream(request, [stop])) == upto
    left = engine.stream(request, [])
    assert [next(left), next(left)] == whole.tokens[:2]
    assert engine.loglikelihoods([([1], [300])]) == engine.loglikelihoods([([1], [300])])
    assert list(left) == []  # the other call has ended it
    assert list(engine.stream(request, [])) == whole.tokens


def test_over_a_pipe_the_command_prints_the_answers_alone(models, folder):
    asked = "\n".join(QUESTIONS)
    flags = ["--model", f"hf:{folder / 'hf'}", "--max-new-tokens", "40", "--system", "建议", "--dtype", "float32"]
    done = subprocess.run(command("chat.py", *flags), input=asked, capture_output=True, text=True, encoding="utf-8")
    assert done.returncode == 0, done.stderr
    assert done.stdout == "".join(f"{answer}\n" for answer in answers(*models[0]))
    assert "no medical advice" in done.stderr.splitlines()[0]


class Person:
    """A program at a terminal of its own, and what it has shown there so far."""

    def __init__(self, *arguments: str):
        self.ours, theirs = os.openpty()

        def take_terminal() -> None:
            fcntl.ioctl(0, termios.TIOCSCTTY, 0)
            signal.signal(signal.SIGINT, signal.SIG_DFL)  # it is ignored where tests run in the background

        self.program = subprocess.Popen(
            arguments,
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
            env=os.environ | {"TERM": "dumb"},
            start_new_session=True,
            preexec_fn=take_terminal,
        )
        os.close(theirs)
        self.shown = b""

    def sees(self, what: str, after: str = "") -> str:
        """Wait until it is shown; all that was shown up to its end, which is then behind us.

        after: keys that should bring it about, pressed again as long as nothing happens: a key that comes between the
        moment when a prompt is shown and that when the program waits for keys can be lost.
        """
        self.types(after)
        while what.encode() not in self.shown:
            if after and not select.select([self.ours], [], [], 5)[0]:
                self.types(after)
                continue
            chunk = os.read(self.ours, 4096)
            assert chunk, self.shown.decode(errors="replace")
            self.shown += chunk
        seen, _, self.shown = self.shown.partition(what.encode())
        return seen.decode() + what

    def types(self, what: str) -> None:
        """Press these keys."""
        os.write(self.ours, what.encode())


@pytest.mark.real_processes  # at a terminal of their own
def test_control_c_stops_an_answer_of_the_ranks_and_not_the_program(models, folder):
    flags = ["--model", f"megatron:{folder / 'megatron'}", "--tokenizer", folder / "hf" / "tokenizer.model"]
    person = Person(*command("chat.py", *flags, "--tensor-parallel", "2", "--max-new-tokens", str(POSITIONS)))
    person.sees("no medical advice")
    person.sees("> ")
    model, tokenizer = models[0]
    talk = Conversation(model, Renderer(Template(), tokenizer), SamplingParams(12, temperature=0.0))
    for question in QUESTIONS[:2]:
        person.types(f"{question}\n")
        start = "".join(talk.answer(question))[:8]
        talk.undo()
        person.sees(start)  # while thousands of tokens are still to come
        person.types("\x03")
        person.sees("(stopped)")
        person.sees("> ")
        person.types("/undo\n")
        person.sees("forgotten")
        person.sees("> ")
    person.sees("Ctrl-D or /exit leaves", after="\x03")
    person.sees("> ")  # before it, the terminal is not yet the prompt's, and a Ctrl-D is lost
    person.types("\x04")
    assert person.program.wait() == 0
    os.close(person.ours)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["hf:{}/none"], "none is no folder"),
        (["gpt:{}/hf"], "expected hf:DIR or megatron:DIR"),
        (["hf:{}/megatron"], "holds no config.json"),
        (["hf:{}/reward"], "no language model; lm_head.weight is missing"),
        (["megatron:{}/megatron"], "give the checkpoint's tokenizer"),
        (["hf:{}/small"], "the tokenizer has 420 ids, the model 103"),
    ],
)
def test_what_cannot_be_talked_to_is_one_line(folder, arguments, message):
    for name, reward in (("reward", True), ("small", False)):
        if not (folder / name).exists():
            write_hf(folder / name, reward=reward, num_hidden_layers=1, **{"vocab_size": 420} if reward else {})
            copy_tokenizer(folder / "hf", folder / name)
    with pytest.raises(InputError, match=message):
        open_model(*[argument.format(folder) for argument in arguments])


# Serving.

DIALOGUE = [
    Turn(("user", "assistant")[n % 2], text) for n, text in enumerate(["头痛 三次", "建议检查。", "服用\n什么"])
]
MESSAGES = [{"role": turn.role, "content": turn.text} for turn in DIALOGUE]


@pytest.fixture(scope="module")
def dummy_prefix(tmp_path_factory) -> Path:
    """A folder with a tokenizer as other trainers leave it: a space piece in front of every text."""
    folder = tmp_path_factory.mktemp("dummy")
    make_tokenizer("dummy_prefix", folder)
    (folder / "hf").mkdir()
    copy_tokenizer(folder / "dummy_prefix" / "tokenizer.model", folder / "hf")
    return folder / "hf"


@pytest.mark.parametrize("fields", [{}, {"user_prefix": "问：\"'{{", "user_suffix": "\n\n答：\\n", "bos": False}])
@pytest.mark.parametrize("kind", ["ours", "dummy_prefix"])
def test_a_served_prompt_is_that_of_the_training(folder, dummy_prefix, kind, fields):
    place, template = folder / "hf" if kind == "ours" else dummy_prefix, PlainTexts(**fields).template()
    text = serve.chat_template(place, template)
    renderer, theirs = Renderer(template, load_tokenizer(place)), AutoTokenizer.from_pretrained(place)
    for start in (0, 2):
        found = theirs.apply_chat_template(MESSAGES[start:], chat_template=text, return_dict=False)
        assert found == renderer.render_prompt(DIALOGUE[start:]).tolist()
    system = [{"role": "system", "content": "你是医生"}, *MESSAGES]
    told = [Turn("user", f"你是医生\n{DIALOGUE[0].text}"), *DIALOGUE[1:]]
    found = theirs.apply_chat_template(system, chat_template=text, return_dict=False)
    assert found == renderer.render_prompt(told).tolist()


def only(*installed: str):
    """find_spec where these packages and no others are installed."""
    return lambda name: name if name in installed else None


def test_without_a_server_one_line_says_what_to_install(monkeypatch, folder):
    monkeypatch.setattr(serve.importlib.util, "find_spec", only("openai", "pydantic", "accelerate", "uvicorn"))
    with pytest.raises(InputError, match=r"^--serve needs fastapi, which is not installed: pip install [^\n]*$"):
        serve.serve(f"hf:{folder / 'hf'}", Template(), port=1)
    with pytest.raises(InputError, match="needs vllm"):
        serve.serve(f"hf:{folder / 'hf'}", Template(), port=1, tensor_parallel=2)
    with pytest.raises(InputError, match="export the checkpoint"):
        serve.serve(f"megatron:{folder / 'megatron'}", Template(), port=1)


def test_the_server_of_transformers_takes_our_flags_and_loads_what_it_is_given(monkeypatch, folder):
    from transformers.cli.serve import Serve
    from transformers.cli.serving.model_manager import ModelManager

    monkeypatch.setattr(serve.importlib.util, "find_spec", only(*serve.NEEDED))
    words = serve.server_command("hf", 8123, "auto", 1, 5)
    assert words[1:5] == ["-m", "transformers.cli.transformers", "serve", "hf"] and serve.HOST in words
    flags = dict(zip(words[5::2], words[6::2], strict=True))
    assert {flag.removeprefix("--").replace("-", "_") for flag in flags} <= set(inspect.signature(Serve).parameters)
    assert flags["--host"] == "127.0.0.1" and flags["--port"] == "8123" and flags["--default-seed"] == "5"
    text = serve.chat_template(folder / "hf", Template())
    with serve.with_template(folder / "hf", text) as view:
        monkeypatch.chdir(view.parent)
        manager = ModelManager(device="cpu", dtype="auto", force_model=view.name)
        model, processor = manager.load_model_and_processor(f"{view.name}@main")
        found = processor.apply_chat_template(MESSAGES, return_dict=False, add_generation_prompt=True)
        manager.shutdown()
    renderer = Renderer(Template(), load_tokenizer(folder / "hf"))
    assert found == renderer.render_prompt(DIALOGUE).tolist()
    assert model.config.vocab_size > CONFIG["vocab_size"] and not view.exists()


def test_a_served_folder_ends_its_answers_where_the_template_does(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    settings = tmp_path / "generation_config.json"
    settings.write_text('{"temperature": 0.7, "eos_token_id": 2}')
    for ends, written in (((7, 2), [7, 2]), ((7,), 7), ((), 2)):
        with serve.with_template(tmp_path, "{{ 1 }}", ends) as view:
            found = json.loads((view / "generation_config.json").read_text())
            assert found == {"temperature": 0.7, "eos_token_id": written}
    assert json.loads(settings.read_text())["eos_token_id"] == 2, "the folder is as it was"


STAND_IN = '''
"""A server in vLLM's place: it answers with its arguments and the chat template of the folder that it serves."""
import json, sys, http.server
from pathlib import Path

class Handler(http.server.BaseHTTPRequestHandler):
    def do_POST(self):
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        content = json.dumps([sys.argv[1:], Path(asked["model"], "chat_template.jinja").read_text(), str(Path.cwd())])
        choice = {"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": content}}
        body = json.dumps({"id": "1", "object": "chat.completion", "created": 1, "model": "hf", "choices": [choice]})
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.end_headers()
        self.wfile.write(body.encode())

address = sys.argv[sys.argv.index("--host") + 1], int(sys.argv[sys.argv.index("--port") + 1])
server = http.server.HTTPServer(address, Handler)
print("listening", flush=True)
server.serve_forever()
'''


@contextlib.contextmanager
def serving(folder: Path, *flags: object, **options) -> Iterator[tuple[subprocess.Popen, OpenAI, int]]:
    """The command that serves a folder, which ends behind this; a client; the port."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    words = command("chat.py", "--model", f"hf:{folder / 'hf'}", "--serve", "--port", port, *flags)
    with subprocess.Popen(words, text=True, **options) as program:
        try:
            yield program, OpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key="none", max_retries=0), port
        finally:
            program.send_signal(signal.SIGTERM)
            program.communicate()


def test_an_openai_client_reaches_the_server_which_ends_with_the_command(tmp_path, folder):
    package = tmp_path / "vllm" / "entrypoints" / "cli"
    package.mkdir(parents=True)
    for place in (package, package.parent, package.parent.parent):
        (place / "__init__.py").touch()
    (package / "main.py").write_text(STAND_IN)
    options = {
        "stdout": subprocess.PIPE,
        "env": os.environ | {"PYTHONPATH": os.pathsep.join([str(tmp_path), *sys.path])},
    }
    with serving(folder, "--tensor-parallel", 2, **options) as (program, client, port):
        assert re.fullmatch(rf"model 'hf' at http://127.0.0.1:{port}/v1, by vllm\n", program.stdout.readline())
        assert program.stdout.readline() == "listening\n"
        answer = client.chat.completions.create(model="hf", messages=MESSAGES).choices[0].message.content
    arguments, text, place = json.loads(answer)
    assert arguments[:2] == ["serve", "hf"] and arguments[arguments.index("--tensor-parallel-size") + 1] == "2"
    assert arguments[arguments.index("--dtype") + 1] == "float32", "as stored; vLLM's own auto would make it bfloat16"
    assert text == serve.chat_template(folder / "hf", Template())
    assert not Path(place).exists()
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", port))
