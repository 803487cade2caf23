"""An OpenAI-compatible server on loopback that answers as it is told, or misbehaves."""

import json
import threading
import time
from collections import Counter
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from megatron_chimed.api.client import ChatRequest

GOOD = {"finish_reason": "stop"}


def answer_of(body: dict) -> str:
    """What the server says to a request: it depends on model and question alone."""
    return f"{body['model']} 答：{body['messages'][-1]['content']}"


class Gate:
    """Lets `num_answers` requests through to the behaviour and holds the others until it is opened: a run cannot end
    before it is killed, however slow the machine is."""

    def __init__(self, num_answers: int, behave: Callable[[dict, int], object] = lambda body, attempt: None):
        self.left, self.behave = num_answers, behave
        self.lock, self.opened = threading.Lock(), threading.Event()

    def __call__(self, body: dict, attempt: int) -> object:
        """What the behaviour says, when it is this request's turn."""
        with self.lock:
            self.left -= 1
            waits = self.left < 0
        if waits:
            self.opened.wait(60)
        return self.behave(body, attempt)


class ChatServer:
    """POST /v1/chat/completions. In a with statement it listens at `url` on a free port.

    behave(body, attempt): what is done to the attempt (from 0) at a question, one of

    - None or "good": an answer, `answer_of`; {"text": ..., "finish_reason": ..., "refusal": ...} changes parts of it;
    - an int or (int, headers) or (int, headers, error): a status, error the JSON object beside it;
    - bytes: this body with status 200; "drop": the connection is closed; "half": in the midst of the answer;
    - ("hang", seconds): nothing for so long; "trickle": a byte every tenth of a second.

    requests: bodies as they came; num_answered: by (model, question), good answers sent; most_at_once: requests.
    """

    def __init__(self, behave: Callable[[dict, int], object] = lambda body, attempt: None, delay: float = 0.0):
        self.behave, self.delay = behave, delay
        self.requests: list[dict] = []
        self.headers: list[dict] = []
        self.times: list[float] = []
        self.attempts: Counter = Counter()
        self.num_answered: Counter = Counter()
        self.at_once = self.most_at_once = 0
        self.lock, self.closing = threading.Lock(), threading.Event()
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
        self._server.chat = self
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}/v1"

    def __enter__(self) -> "ChatServer":
        """Start to listen."""
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        """Stop, and let those that hang go."""
        self.closing.set()
        self._server.shutdown()
        self._server.server_close()

    def count(self, body: dict, headers: dict) -> int:
        """Take note of a request; returns the number of its attempt."""
        with self.lock:
            key = (body["model"], body["messages"][-1]["content"], body.get("seed"))
            self.requests.append(body)
            self.headers.append(headers)
            self.times.append(time.monotonic())
            self.attempts[key] += 1
            self.at_once += 1
            self.most_at_once = max(self.most_at_once, self.at_once)
            return self.attempts[key] - 1


class _Handler(BaseHTTPRequestHandler):
    """One connection; what it does is up to `ChatServer.behave`."""

    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None:
        """Say nothing."""

    def do_POST(self) -> None:
        chat = self.server.chat
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        attempt = chat.count(body, {name.lower(): value for name, value in self.headers.items()})
        try:
            if self.path != "/v1/chat/completions":
                self.send(404, {}, {"error": {"message": f"no such path: {self.path}"}})
                return
            time.sleep(chat.delay)
            kind = chat.behave(body, attempt)
            with chat.lock:  # before the answer: whoever has it may send the next request at once
                chat.at_once -= 1
            self.react(body, kind)
        except (BrokenPipeError, ConnectionResetError):
            self.close_connection = True

    def react(self, body: dict, kind: object) -> None:
        if isinstance(kind, tuple) and kind[0] == "hang":
            self.server.chat.closing.wait(kind[1])
            self.close_connection = True
        elif kind == "drop":
            self.close_connection = True
        elif kind == "trickle":
            self.send(200, {}, b" " * 20, pause=0.1)
        elif isinstance(kind, bytes):
            self.send(200, {}, kind)
        elif isinstance(kind, int | tuple):
            status, headers, error = (*(kind if isinstance(kind, tuple) else (kind,)), {}, {})[:3]
            self.send(status, headers, {"error": {"message": "an error", **error}})
        else:
            self.answer(body, {} if kind in (None, "good", "half") else kind, half=kind == "half")

    def answer(self, body: dict, changed: dict, half: bool) -> None:
        text = changed.get("text", answer_of(body))
        message = {"role": "assistant", "content": text, "refusal": changed.get("refusal")}
        choice = {"index": 0, "message": message, "finish_reason": changed.get("finish_reason", "stop")}
        usage = {"prompt_tokens": 10, "completion_tokens": len(text or "")}
        if not half:
            with self.server.chat.lock:
                self.server.chat.num_answered[body["model"], body["messages"][-1]["content"]] += 1
        self.send(200, {}, {"id": "x", "object": "chat.completion", "choices": [choice], "usage": usage}, half)

    def send(self, status: int, headers: dict, content: object, half: bool = False, pause: float = 0) -> None:
        data = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        for name, value in {"Content-Type": "application/json", **headers}.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        for byte in data if pause else ():
            self.wfile.write(bytes([byte]))
            self.server.chat.closing.wait(pause)
        if pause:
            return
        self.wfile.write(data[: len(data) // 2] if half else data)
        if half:
            self.close_connection = True


def ask(text: str, key: str | None = None, **options) -> ChatRequest:
    """A request of one question."""
    return ChatRequest((key or text,), [{"role": "user", "content": text}], options)
