"""What is asked of the engine and what it answers, in tokens; no torch, so that callers stay light."""

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Request:
    """One sample to draw."""

    prompt: Sequence[int]
    """Token ids, as `template.Renderer.render_prompt` gives them; at least one."""

    max_tokens: int
    """At most so many new tokens, and not beyond the model's positions."""

    temperature: float = 1.0
    """Logits are divided by it; 0 takes the most likely token, the lowest id among equals."""

    top_p: float = 1.0
    """Draw from the most likely tokens that together hold this probability; the one that reaches it is kept."""

    top_k: int = 0
    """Draw from so many most likely tokens; 0 for all."""

    seed: int = 0
    """The sample's own, from 0 to 2^64 - 1."""


@dataclass(frozen=True)
class Generated:
    """A finished sample."""

    tokens: list[int]
    """New tokens, with the stop token where one was reached."""

    finished: bool
    """A stop token ended it, not max_tokens or the model's positions."""
