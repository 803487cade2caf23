"""A model as lm-eval sees it, whose answers are kept on disk, and prompts that know their turns.

lm-eval hands prompts to models as texts. A text cannot say where an exchange ends, as a user may write any marker, so a
prompt here is a text with its turns beside it: models that we render ourselves take the turns, and the text is what the
records show.
"""

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol

from lm_eval.api.instance import Instance
from lm_eval.api.model import LM

from megatron_chimed.errors import InputError
from megatron_chimed.evaluation.backends.answers_log import AnswersLog
from megatron_chimed.evaluation.backends.encoding import answer_marks
from megatron_chimed.inference.thinking import split_thinking
from megatron_chimed.records import Turn
from megatron_chimed.text.template import Template
from megatron_chimed.workers import Bar


class ChatPrompt(str):
    """A prompt as plain text, and its turns, from a user's to a user's."""

    turns: tuple[Turn, ...]

    @classmethod
    def of(cls, turns: Sequence[Turn], template: Template) -> "ChatPrompt":
        """The prompt of these turns; BOS and EOS are ids and have no place in its text."""
        prompt = cls(template.shown(turns))
        prompt.turns = tuple(turns)
        return prompt


class Backend(Protocol):
    """What answers: an lm-eval model. cut: prompts that were too long -> [tokens, tokens kept]."""

    seed: int
    cut: dict[str, list[int]]

    def loglikelihood(self, requests: list[Instance]) -> list[tuple[float, bool]]:
        """As in lm-eval."""

    def generate_until(self, requests: list[Instance]) -> list[str]:
        """As in lm-eval."""


class RecordedLM(LM):
    """Answers from the log; what is not there is asked for in batches, each of them written as soon as it is answered.

    make: makes the backend, when the first answer is missing. batch: requests between two writes. temperature, top_p:
    of all generation; at temperature 0 an answer does not depend on `seed`, and is asked for once. name: of the model,
    for the progress bar.
    """

    def __init__(
        self,
        make: Callable[[], Backend],
        log: AnswersLog,
        template: Template,
        name: str,
        *,
        batch: int = 64,
        temperature: float = 0.0,
        top_p: float = 1.0,
        progress: bool = True,
    ):
        super().__init__()
        self.make, self.log, self.template, self.name = make, log, template, name
        self.marks = answer_marks(template)
        self.batch, self.progress = batch, progress
        self.sampling = {"do_sample": True, "temperature": temperature, "top_p": top_p} if temperature > 0 else {}
        self.seed = 0
        self._backend: Backend | None = None

    @property
    def tokenizer_name(self) -> str:
        """For lm-eval's cache of prompts, which is not used."""
        return ""

    def apply_chat_template(self, chat_history: list[dict], add_generation_prompt: bool = True) -> ChatPrompt:
        """The prompt of a conversation; a system's message is put in front of the user's that follows, or is a turn of
        its own where the template has one."""
        turns: list[Turn] = []
        system = ""
        for message in chat_history:
            if message["role"] == "system":
                system += message["content"]
            elif system and not turns and self.template.system and self.template.system_in == "turn":
                turns = [Turn("system", system.strip()), Turn(message["role"], message["content"])]
                system = ""
            else:
                turns.append(Turn(message["role"], system + message["content"]))
                system = ""
        return ChatPrompt.of(turns, self.template)

    def loglikelihood(self, requests: list[Instance]) -> list[tuple[float, bool]]:
        """As in lm-eval."""
        rows = self._answer("loglikelihood", requests)
        return [(float(row["answer"][0]), bool(row["answer"][1])) for row in rows]

    def loglikelihood_rolling(self, requests: list[Instance]) -> list[float]:
        """No task here needs it. Raises NotImplementedError."""
        raise NotImplementedError("no perplexity here")

    def generate_until(self, requests: list[Instance]) -> list[str]:
        """As in lm-eval, with this model's temperature and top_p in place of a task's; an answer without its thinking,
        which is not scored."""
        for request in requests:
            request.arguments = (request.args[0], {**request.args[1], **self.sampling})
        rows = self._answer("generate_until", requests)
        return [split_thinking(row["answer"], self.marks).text for row in rows]

    def thinking_of(self, request_type: str, arguments: Sequence[Any]) -> str:
        """What stood in a request's answer as thinking; "" for nothing."""
        answer = self.log.answers[self._key(request_type, arguments)]["answer"]
        return split_thinking(answer, self.marks).thinking if isinstance(answer, str) else ""

    def has_ended(self, request_type: str, arguments: Sequence[Any]) -> bool:
        """Whether the thinking in a request's answer came to its end, within the tokens that it was given."""
        answer = self.log.answers[self._key(request_type, arguments)]["answer"]
        return not isinstance(answer, str) or self.marks.closing in answer

    def cut_of(self, request_type: str, arguments: Sequence[Any]) -> list[int] | None:
        """[tokens, tokens kept] of the request's prompt where it was too long, else None."""
        return self.log.answers[self._key(request_type, arguments)].get("cut")

    def _key(self, request_type: str, arguments: Sequence[Any]) -> str:
        """What a request's answer is known by."""
        turns = [[turn.role, turn.text] for turn in getattr(arguments[0], "turns", ())]
        seed = self.seed if self.sampling and request_type == "generate_until" else None
        text = json.dumps([request_type, list(arguments), turns, seed], ensure_ascii=False, sort_keys=True)
        return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()

    def _answer(self, request_type: str, requests: list[Instance]) -> list[dict]:
        """The log's row of each request."""
        keys = [self._key(request_type, request.args) for request in requests]
        for batch in self._batches(dict(zip(keys, requests, strict=True)), request_type):
            missing = {key: request for key, request in batch.items() if key not in self.log}
            if missing:  # samples depend on the company they are drawn in
                again = batch if self.sampling and request_type == "generate_until" else missing
                self._ask(request_type, again, seed=int(next(iter(batch))[:8], 16) + self.seed)
        return [self.log.answers[key] for key in keys]

    def _batches(self, requests: dict[str, Instance], request_type: str) -> Iterator[dict[str, Instance]]:
        """All requests in batches: for likelihoods of prompts that begin alike, which engines read once; for answers of
        like length, the longest first. What a batch holds does not depend on what is answered already, so that a run
        that was killed draws the same samples."""
        by_length = request_type == "generate_until"
        ordered = sorted(
            requests.items(), key=lambda pair: (-len(pair[1].args[0]) * by_length, pair[1].args[0], pair[0])
        )
        todo = sum(key not in self.log for key in requests)
        desc, silent = f"{self.name}: {request_type}", not self.progress or not todo
        with Bar(total=todo, desc=desc, unit=" answers", disable=silent) as bar:
            for start in range(0, len(ordered), self.batch):
                batch = dict(ordered[start : start + self.batch])
                new = sum(key not in self.log for key in batch)
                yield batch
                bar.update(new)

    def _ask(self, request_type: str, requests: dict[str, Instance], seed: int) -> None:
        """Ask the backend and write down what it answers. Raises InputError when answers are missing, after that."""
        if self._backend is None:
            self._backend = self.make()
        self._backend.seed = seed
        answers = getattr(self._backend, request_type)(list(requests.values()))
        rows = []
        for (key, request), answer in zip(requests.items(), answers, strict=True):
            if answer is None:  # only a server gives none
                continue
            row = {"key": key, "answer": answer if isinstance(answer, str) else list(answer)}
            if cut := self._backend.cut.get(request.args[0]):
                row["cut"] = cut
            rows.append(row)
        self.log.add(rows)
        if missing := len(requests) - len(rows):
            raise InputError(f"{missing} of {len(requests)} answers are missing: {self._backend.fault}")

    def close(self) -> None:
        """End the backend, if it was made, and close the log."""
        close = getattr(self._backend, "close", None)
        if close is not None:
            close()
        self.log.close()
