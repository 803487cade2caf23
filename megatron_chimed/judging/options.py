"""Options of one or two judges, as a block of a YAML or a YAML of its own."""

import math
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from megatron_chimed.config import parse_dataclass, read_mapping
from megatron_chimed.errors import InputError

Problem = tuple[str, str]
"""A field, and what is expected of it."""


@dataclass(frozen=True)
class JudgeOptions:
    """One or two language models behind an OpenAI-compatible server, which say of each criterion of a rubric whether an
    answer meets it; see `judge`. The key is in the environment variable OPENAI_API_KEY, and goes to each server."""

    engine: Literal["judge"] = "judge"
    """``judge``."""

    rubric: str = ""
    """Criteria with points: a YAML for all prompts, or HealthBench's JSON for each prompt its own; see `rubric`."""

    model: str | list[str] = ""
    """The judge's name at its server; of two judges a list. The score is the mean of theirs."""

    base_url: str | list[str] = ""
    """Of the server, up to and with /v1; of two judges a list, where they have not the same."""

    temperature: float | int | None = 0.0
    """Of the verdicts; null leaves it to the server."""

    max_tokens: int | None = 1024
    """Of a verdict with its explanation; null leaves it to the server."""

    response_format: Literal["text", "json_object", "json_schema"] = "text"
    """What is asked of a server that can make a model write JSON; vLLM can do all three."""

    concurrency: int = 8
    """Requests under way at once."""

    requests_per_minute: float = 0.0
    """0 for no limit."""

    timeout: float = 120.0
    """Seconds for one attempt at a verdict."""

    price_in: list[float | int] = field(default_factory=list)
    """Of a million tokens, for the estimate: one for each judge, or one for all."""

    price_out: list[float | int] = field(default_factory=list)
    """Likewise, of verdicts."""

    answer_tokens: int = 150
    """Expected in a verdict, for the estimate."""

    max_price: float | int | None = None
    """The step stops before it sends anything where the estimate is above it; 0 only estimates."""

    weight: float = 1.0
    """Of the score in the reward."""

    @property
    def judges(self) -> list[tuple[str, str]]:
        """(Name, URL) of each judge."""
        names = [self.model] if isinstance(self.model, str) else self.model
        urls = [self.base_url] if isinstance(self.base_url, str) else self.base_url
        return list(zip(names, urls * len(names) if len(urls) == 1 else urls, strict=False))

    def problems(self) -> list[Problem]:
        """The fields that are out of their range."""
        names = [self.model] if isinstance(self.model, str) else self.model
        urls = [self.base_url] if isinstance(self.base_url, str) else self.base_url
        prices = [*self.price_in, *self.price_out]
        counts = {len(self.price_in), len(self.price_out)}
        checks = [
            ("rubric", bool(self.rubric), "a file"),
            ("model", len(names) in (1, 2) and all(names) and len(set(names)) == len(names), "one name or two"),
            ("base_url", len(urls) in (1, len(names)) and all(urls), "a URL with /v1, or one for each model"),
            ("temperature", self.temperature is None or 0 <= self.temperature <= 2, "from 0 to 2"),
            ("max_tokens", self.max_tokens is None or self.max_tokens >= 1, "1 or more"),
            ("concurrency", self.concurrency >= 1, "1 or more"),
            ("requests_per_minute", 0 <= self.requests_per_minute < math.inf, "0 or more"),
            ("timeout", 0 < self.timeout < math.inf, "seconds above 0"),
            ("price_in, price_out", len(counts) == 1 and counts <= {0, 1, len(names)}, "as many prices as models"),
            ("price_in, price_out", all(0 <= price < math.inf for price in prices), "prices of 0 or more"),
            (
                "max_price",
                self.max_price is None or (prices and self.max_price >= 0),
                "0 or more, with price_in, price_out",
            ),
            ("answer_tokens", self.answer_tokens >= 1, "1 or more"),
        ]
        return [(name, expected) for name, good, expected in checks if not good]

    def decisive(self) -> dict[str, Any]:
        """What decides the scores."""
        names = ("engine", "model", "base_url", "temperature", "max_tokens", "response_format")
        return {name: getattr(self, name) for name in names}

    def files(self, reward: str) -> list[Path]:
        """The rubric."""
        return [Path(self.rubric)]


def read_judge(path: str | Path) -> JudgeOptions:
    """The options of a YAML that holds nothing else, for a benchmark that brings its own rubrics.

    Raises InputError with file and field: an unknown key, a wrong type, a value out of its range, a rubric.
    """
    options = parse_dataclass(read_mapping(path), JudgeOptions, block=" in a judge's YAML:")[0]
    if options.rubric:
        raise InputError(f"{path}: rubric: the benchmark brings its own; leave it out")
    for name, expected in replace(options, rubric="of the benchmark").problems():
        raise InputError(f"{path}: {name}: expected {expected}")
    return options
