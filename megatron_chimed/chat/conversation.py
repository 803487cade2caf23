"""A conversation with a model: questions in, answers out piece by piece; what no longer fits is left out."""

from collections.abc import Iterator
from dataclasses import replace

from megatron_chimed.chat.text import AnswerStream
from megatron_chimed.errors import InputError
from megatron_chimed.inference.engine import Engine
from megatron_chimed.inference.request import Request, SamplingParams
from megatron_chimed.records import Turn
from megatron_chimed.text.renderer import Renderer


class Conversation:
    """What was said so far, and how it goes on.

    params: how answers are drawn; answer n of the program (from 0) with seed + n. system: what the model is told before
    all else, its system turn; where the template has no place for one, a line in front of the oldest question that the
    model sees. A model that was never trained so may pass over it. exchanges: (question, answer) so far, without
    thinking. thinking: what the model thought before the last answer. left_out: how many of the oldest exchanges the
    last prompt had no room for. cut: the last answer ended at the limit of tokens and not by itself.
    """

    def __init__(self, engine: Engine, renderer: Renderer, params: SamplingParams, system: str = ""):
        self.engine, self.renderer, self.params, self.system = engine, renderer, params, system
        self.exchanges: list[tuple[str, str]] = []
        self.left_out, self.asked, self.cut = 0, 0, False
        self._text = AnswerStream(renderer)

    @property
    def thinking(self) -> str:
        """What the model has thought so far for the last question."""
        return self._text.thinking

    def answer(self, question: str) -> Iterator[str]:
        """The answer's text as it comes, a piece for each token (often an empty one); then it belongs to the history.

        Whoever closes this early keeps what was said as the answer, or takes the question back if nothing was. Raises
        InputError for a question that alone does not fit, or is no text; the conversation is as before.
        """
        params = replace(self.params, seed=self.params.seed + self.asked)
        request = Request(self.prompt(question), params)
        self.asked, self.cut = self.asked + 1, False
        ends, last = self.renderer.stop_ids, None
        self._text = text = AnswerStream(self.renderer)
        try:
            for last in self.engine.stream(request, list(ends)):
                if last not in ends:
                    yield text.add(last)
            rest = text.rest()
        except GeneratorExit:
            if text.shown:
                self.exchanges.append((question, text.shown))
            raise
        self.exchanges.append((question, text.shown))
        self.cut = last not in ends
        yield rest

    def prompt(self, question: str) -> list[int]:
        """The ids after which the answer is generated: as many of the newest exchanges as leave it room."""
        if any("\ud800" <= character <= "\udfff" for character in question):
            raise InputError("the question is not text in UTF-8; write it again, or convert the input")
        # Half of a context that is shorter than the longest answer stays for the conversation.
        limit = max(self.engine.max_positions - self.params.max_tokens, self.engine.max_positions // 2)
        for left_out in range(len(self.exchanges) + 1):
            ids = self.renderer.render_prompt(self._turns(question, left_out))
            if len(ids) <= limit:
                self.left_out = left_out
                return ids.tolist()
        raise InputError(
            f"the question has {len(ids)} tokens in the template; of the model's {self.engine.max_positions} positions "
            f"{limit} are left for it; make it, --system or --max-new-tokens shorter"
        )

    def _turns(self, question: str, left_out: int) -> list[Turn]:
        """The turns that the model sees."""
        seen = self.exchanges[left_out:]
        turns = [Turn(role, text) for pair in seen for role, text in zip(("user", "assistant"), pair, strict=True)]
        turns.append(Turn("user", question))
        if self.system and not self.renderer.template.system:
            turns[0] = Turn("user", f"{self.system}\n{turns[0].text}")
        elif self.system:
            turns.insert(0, Turn("system", self.system))
        return turns

    def reset(self) -> None:
        """Forget all exchanges."""
        self.exchanges, self.left_out = [], 0

    def undo(self) -> bool:
        """Forget the last exchange; False if there is none."""
        return bool(self.exchanges and self.exchanges.pop())
