"""A model behind an OpenAI-compatible server as a model for lm-eval: it generates, and gives no likelihoods."""

from lm_eval.api.instance import Instance
from lm_eval.api.model import LM

from megatron_chimed.api.client import ChatError, ChatRequest
from megatron_chimed.errors import InputError
from megatron_chimed.evaluation.backends.encoding import answer_marks
from megatron_chimed.evaluation.backends.engine_model import until
from megatron_chimed.inference.openai_engine import OpenAIEngine
from megatron_chimed.text.template import Template

MAX_TOKENS = 256


class ChatModel(LM):
    """seed: of the next call, passed on to the server, which need not heed it; cut: stays empty, as only the server
    knows how long a prompt is; fault: why an answer is missing. A refusal of the server (content filter) is an empty
    answer, and so counted as one."""

    def __init__(self, engine: OpenAIEngine, template: Template):
        super().__init__()
        self.marks = answer_marks(template)
        self.api, self.seed, self.cut, self.fault = engine.api, 0, {}, ""

    def loglikelihood(self, requests: list[Instance]) -> list[tuple[float, bool]]:
        """Raises InputError: chat servers give none."""
        raise InputError("a chat server gives no likelihoods; multiple choice is measured by the generated letter")

    def loglikelihood_rolling(self, requests: list[Instance]) -> list[float]:
        """Raises InputError as `loglikelihood`."""
        return self.loglikelihood(requests)

    def generate_until(self, requests: list[Instance]) -> list[str | None]:
        """The answers; None for those that could not be had, and `fault` then says why."""
        asked = [
            ChatRequest(number, self._messages(request.args[0]), self._options(request.args[1], number))
            for number, request in enumerate(requests)
        ]
        texts: list[str | None] = [None] * len(requests)
        try:
            for number, completion in self.api.complete_all(asked):
                if completion.failed:
                    self.fault = f"a request failed at all attempts ({completion.reason}); run the command again"
                else:
                    texts[number] = until(completion.text or "", requests[number].args[1].get("until", ()), self.marks)
        except ChatError as error:
            self.fault = str(error)
        return texts

    def _messages(self, prompt: str) -> list[dict[str, str]]:
        """A prompt's turns, or its text as one."""
        turns = getattr(prompt, "turns", None)
        if turns is None:
            return [{"role": "user", "content": prompt}]
        return [{"role": turn.role, "content": turn.text} for turn in turns]

    def _options(self, settings: dict, number: int) -> dict:
        """What the server is told. Stop strings are applied here, as not every server takes them."""
        options = {"max_tokens": settings.get("max_gen_toks", MAX_TOKENS), "temperature": 0.0, "seed": 0}
        if settings.get("do_sample"):
            options |= {name: settings[name] for name in ("temperature", "top_p")}
            options["seed"] = (self.seed + number) % 2**31
        return options
