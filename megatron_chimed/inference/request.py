"""What is asked of an engine and what it answers; no torch, so that callers stay light."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from megatron_chimed.errors import InputError
from megatron_chimed.records import Turn


@dataclass(frozen=True)
class SamplingParams:
    """How a sample is drawn; fields and meanings are vLLM's."""

    max_tokens: int = 512
    """At most so many new tokens, and not beyond the model's positions."""

    temperature: float = 1.0
    """Logits are divided by it; 0 takes the most likely token, the lowest id among equals."""

    top_p: float = 1.0
    """Draw from the most likely tokens that together hold this probability; the one that reaches it is kept."""

    top_k: int = 0
    """Draw from so many most likely tokens; 0 for all."""

    seed: int = 0
    """The sample's own, from 0 to 2^64 - 1."""

    def problems(self) -> list[tuple[str, str]]:
        """(field, what is expected of it) of each value that is out of its range."""
        checks = (
            ("max_tokens", self.max_tokens >= 1, "at least 1"),
            ("temperature", 0 <= self.temperature < float("inf"), "0 or more"),
            ("top_p", 0 < self.top_p <= 1, "above 0 and at most 1"),
            ("top_k", self.top_k >= 0, "0 or more"),
            ("seed", 0 <= self.seed < 1 << 64, "0 to 2^64 - 1"),
        )
        return [(name, expected) for name, good, expected in checks if not good]

    def check(self, where: str = "", names: Mapping[str, str] | None = None) -> None:
        """Raise InputError for values out of their range, all in one line: ``WHERE: max_tokens is 0; expected ...``.

        names: of fields, where a message calls them otherwise, such as `FLAGS`.
        """
        names = names or {}
        wrong = [f"{names.get(name, name)} is {getattr(self, name)}; expected {more}" for name, more in self.problems()]
        if wrong:
            raise InputError(f"{where}: {'; '.join(wrong)}" if where else "; ".join(wrong))


FLAGS = {"max_tokens": "--max-new-tokens", "temperature": "--temperature", "top_p": "--top-p", "seed": "--seed"}
"""The flags that give these fields."""


@dataclass(frozen=True)
class Request:
    """One sample to draw."""

    prompt: Sequence[int]
    """Token ids, as `renderer.Renderer.render_prompt` gives them; at least one."""

    params: SamplingParams

    turns: Sequence[Turn] = ()
    """The prompt as turns, for a server that renders it itself."""


@dataclass(frozen=True)
class Generated:
    """A finished sample."""

    tokens: list[int]
    """New tokens, with the stop token where one was reached; none where a server gives text alone."""

    finished: bool
    """A stop token ended it, not max_tokens or the model's positions."""

    text: str | None = None
    """What a server has said, where there are no tokens."""

    num_tokens: int | None = None
    """The number of tokens by the server's count."""
