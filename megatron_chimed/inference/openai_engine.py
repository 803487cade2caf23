"""Any OpenAI-compatible server as an engine, or several of one model: they sample from prompts as turns, which they
render themselves.

Give a server the template of the training. Whether a seed makes an answer repeatable is the server's affair. The key
is in OPENAI_API_KEY.
"""

from collections.abc import Iterator, Sequence

from megatron_chimed.api.client import CallSettings, ChatApi, ChatRequest
from megatron_chimed.api.servers import OPENAI_URL
from megatron_chimed.errors import InputError
from megatron_chimed.inference.engine import Engine
from megatron_chimed.inference.request import Generated, Request, SamplingParams


class OpenAIEngine(Engine):
    """num_ids and max_positions are the server's own business."""

    kind = "openai"

    def __init__(
        self,
        model: str,
        base_url: str | Sequence[str] | None = None,
        *,
        concurrency: int = 8,
        requests_per_minute: float = 0.0,
    ):
        """base_url: several share the work, and do that of one that is gone; concurrency: requests under way at once,
        at all of them. Raises InputError for a URL or a key of another form."""
        settings = CallSettings(concurrency=concurrency, requests_per_minute=requests_per_minute)
        base_url = base_url or OPENAI_URL
        first, *others = [base_url] if isinstance(base_url, str) else base_url
        self.api = ChatApi(model, first, settings, others=others)

    def generate(self, requests: Sequence[Request], stop: Sequence[int]) -> Iterator[list[tuple[int, Generated]]]:
        """Answers as they come, each a batch of its own: text in the place of tokens; `stop` is the server's own.

        A refusal is an empty answer; what failed at all attempts is left out. Raises InputError when the server refuses
        all requests.
        """
        for index, request in enumerate(requests):
            request.params.check(f"request {index}")
            if not request.turns:
                raise InputError(f"request {index} has no turns; a server renders its prompts itself")
        asked = (ChatRequest(index, messages_of(one), options_of(one.params)) for index, one in enumerate(requests))
        for index, answer in self.api.complete_all(asked):
            if not answer.failed:
                finished = answer.finish != "length"
                yield [(index, Generated([], finished, answer.text or "", answer.completion_tokens))]

    def close(self) -> None:
        """A connection lives as long as a call."""


def messages_of(request: Request) -> list[dict[str, str]]:
    """A prompt's turns as the server takes them."""
    return [{"role": turn.role, "content": turn.text} for turn in request.turns]


def options_of(params: SamplingParams) -> dict:
    """Settings as the server takes them."""
    options = {"max_tokens": params.max_tokens, "temperature": params.temperature, "top_p": params.top_p}
    if params.top_k:
        options["extra_body"] = {"top_k": params.top_k}  # no part of OpenAI's own interface; vLLM's takes it
    return options | {"seed": params.seed}
