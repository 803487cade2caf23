"""A conversation with a model: questions in, answers out piece by piece; what no longer fits is left out."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

from megatron_chimed.chat.text import TextStream
from megatron_chimed.errors import InputError
from megatron_chimed.inference.request import Request
from megatron_chimed.records import Turn
from megatron_chimed.text.template import Renderer


class Model(Protocol):
    """What answers: `inference.client.Engine` over a Megatron checkpoint, or `chat.hf.HuggingFaceStream`."""

    max_positions: int

    def stream(self, request: Request, stop: Sequence[int]) -> Iterator[int]:
        """The tokens of one sample as they are drawn, the stop token with them."""


@dataclass(frozen=True)
class ChatOptions:
    """temperature: 0 takes the most likely token. seed: answer n of the program (from 0) is drawn with seed + n."""

    temperature: float = 0.0
    top_p: float = 1.0
    max_new_tokens: int = 512
    seed: int = 0

    def __post_init__(self):
        for name, good, expected in (
            ("temperature", 0 <= self.temperature < float("inf"), "0 or more"),
            ("top-p", 0 < self.top_p <= 1, "above 0 and at most 1"),
            ("max-new-tokens", self.max_new_tokens >= 1, "at least 1"),
            ("seed", 0 <= self.seed < 1 << 63, "0 to 2^63 - 1"),
        ):
            if not good:
                raise InputError(f"--{name} is {getattr(self, name.replace('-', '_'))}; expected {expected}")


class Conversation:
    """What was said so far, and how it goes on.

    system: what the model is told before all else. The templates here have no place for it, so it stands, a line of
    its own, in front of the oldest question that the model sees; a model that was never trained so may pass over it.
    exchanges: (question, answer) so far. left_out: how many of the oldest the last prompt had no room for. cut: the
    last answer ended at the limit of tokens and not at EOS.
    """

    def __init__(self, model: Model, renderer: Renderer, options: ChatOptions, system: str = ""):
        self.model, self.renderer, self.options, self.system = model, renderer, options, system
        self.exchanges: list[tuple[str, str]] = []
        self.left_out, self.asked, self.cut = 0, 0, False

    def answer(self, question: str) -> Iterator[str]:
        """The answer's text as it comes, a piece for each token (often an empty one); then it belongs to the history.

        Whoever closes this early keeps what was said as the answer, or takes the question back if nothing was. Raises
        InputError for a question that alone does not fit, or is no text; the conversation is as before.
        """
        request = Request(
            self.prompt(question),
            self.options.max_new_tokens,
            temperature=self.options.temperature,
            top_p=self.options.top_p,
            seed=self.options.seed + self.asked,
        )
        self.asked, self.cut = self.asked + 1, False
        eos, text, last = self.renderer.tokenizer.eos_id, TextStream(self.renderer.tokenizer), None
        try:
            for last in self.model.stream(request, [eos]):
                if last != eos:
                    yield text.add(last)
            rest = text.rest()
        except GeneratorExit:
            if text.shown:
                self.exchanges.append((question, text.shown))
            raise
        self.exchanges.append((question, text.shown))
        self.cut = last != eos
        yield rest

    def prompt(self, question: str) -> list[int]:
        """The ids after which the answer is generated: as many of the newest exchanges as leave it room."""
        if any("\ud800" <= character <= "\udfff" for character in question):
            raise InputError("the question is not text in UTF-8; write it again, or convert the input")
        # Half of a context that is shorter than the longest answer stays for the conversation.
        limit = max(self.model.max_positions - self.options.max_new_tokens, self.model.max_positions // 2)
        for left_out in range(len(self.exchanges) + 1):
            ids = self.renderer.render_prompt(self._turns(question, left_out))
            if len(ids) <= limit:
                self.left_out = left_out
                return ids.tolist()
        raise InputError(
            f"the question has {len(ids)} tokens in the template; of the model's {self.model.max_positions} positions "
            f"{limit} are left for it; make it, --system or --max-new-tokens shorter"
        )

    def _turns(self, question: str, left_out: int) -> list[Turn]:
        """The turns that the model sees."""
        seen = self.exchanges[left_out:]
        turns = [Turn(role, text) for pair in seen for role, text in zip(("user", "assistant"), pair, strict=True)]
        turns.append(Turn("user", question))
        if self.system:
            turns[0] = Turn("user", f"{self.system}\n{turns[0].text}")
        return turns

    def reset(self) -> None:
        """Forget all exchanges."""
        self.exchanges, self.left_out = [], 0

    def undo(self) -> bool:
        """Forget the last exchange; False if there is none."""
        return bool(self.exchanges and self.exchanges.pop())
